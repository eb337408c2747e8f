"""Studies in Python: results as arrays and tables, texts of one's own read, and the model steered.

Everything public here is also an attribute of the package itself: ``affectlens.open_study``, ``affectlens.run_study``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from affectlens.run import runner
from affectlens.study import Study
from affectlens.use.opened import Opened, finished

if TYPE_CHECKING:
    import pandas as pd

    from affectlens.use.readings import Readings
    from affectlens.use.texts import Messages


def open_study(source: str | Path, *overrides: str) -> OpenStudy:
    """Open what is computed of a study; nothing is computed.

    Args:
        source: a study file, the name of a shipped one (``quickstart``), or the folder of a result, which is followed
            back to the texts.
        overrides: ``key=value``, as on the command line; for a study file alone.

    Raises:
        ConfigError: the study file is wrong.
        MissingResult: the folder holds no result, or one that it was made of is gone.
    """
    return OpenStudy(*finished(source, *overrides))


def run_study(
    source: str | Path,
    *overrides: str,
    stages: Sequence[str] = (),
    mode: Literal["cached", "retry", "force", "read-only"] = "cached",
    workers: int | None = None,
) -> OpenStudy:
    """Bring a study up to date, and open it.

    Args:
        source: a study file, or the name of a shipped one.
        overrides: ``key=value``, as on the command line.
        stages: only these and what they need; all when none is named.
        mode: as ``affectlens run --mode``.
        workers: processes to share the parts among.

    Raises:
        UserError: what ``affectlens.run_study`` would say.
    """
    runner.run(Study.load(Path(source).expanduser(), overrides), mode=mode, only=stages, workers=workers)
    return open_study(source, *overrides)


@dataclass(frozen=True)
class Steered:
    """The same prompt answered three times.

    Attributes:
        plain: answers of the model as it is.
        steered: answers under the vectors.
        random: answers under a random vector of the same norm: what any push of that size does.
        perplexity: of each, under the model as it is.
        readings: a row an answer: ``sort``, ``sample``, then how its text reads to the model as it is, in standard
            deviations of neutral tokens.
    """

    plain: list[str]
    steered: list[str]
    random: list[str]
    perplexity: dict[str, list[float]]
    readings: pd.DataFrame = field(compare=False)


class OpenStudy(Opened):
    """The finished results of a study, and its model to read and steer."""

    def readings(self, features: Sequence[int] = ()) -> Readings:
        """What texts are read for: every concept, valence and arousal, and the chosen SAE features."""
        from affectlens.use.readings import Readings

        return Readings.of(self, features)

    def read(self, text: str | Messages, *, features: Sequence[int] = (), standard: bool = False) -> pd.DataFrame:
        """How far every token of a text reads as each concept.

        A value is the projection of the centred residual stream onto the concept's unit direction, as a share of the
        mean residual norm: the unit in which :meth:`steer` pushes. It says how the representation of a concept is
        active at that token, not what anybody feels.

        Args:
            text: plain text, or a chat, of which the contents of the messages are read.
            features: numbers of SAE features to read as well, in their activations.
            standard: in standard deviations of neutral tokens instead.

        Returns:
            A row a token: ``message``, ``role``, ``token``, then a column each for the concepts, valence, arousal and
            the features.
        """
        from affectlens.use.texts import read_texts

        (reading,) = read_texts(self, self.readings(features), [("text", text)])
        return reading.frame(standard=standard)

    def steer(
        self,
        prompt: str | Messages,
        strengths: Mapping[str, float] | None = None,
        *,
        out: Sequence[str] = (),
        clamp: Mapping[str, float] | None = None,
        cap: Mapping[str, float] | None = None,
        layers: Sequence[int] = (),
        tokens: int = 60,
        samples: int = 1,
        temperature: float = 0.8,
        seed: int = 0,
    ) -> Steered:
        """Answer a prompt plainly, steered, and steered as far along a random direction.

        All three use the same random draws, so what differs between them is the steering's doing. It acts on every
        token of the prompt and of the answer.

        Args:
            prompt: plain text, which is continued, or a chat, which is answered.
            strengths: concept, axis, ``feature:<number>`` or ``circuit:<concept>`` -> size of the push, as a share of
                the mean residual norm; 0.05 to 0.2 is usual.
            out: what is projected out.
            clamp: what is held at a value; of concepts, a share of the mean residual norm.
            cap: what is held at most at a value.
            layers: after which blocks; the study's when none is named.
            tokens: most tokens of an answer.
            samples: answers of each sort.
            temperature: 0 takes the likeliest token.
            seed: of the draws and of the random direction.

        Raises:
            UserError: a vector that the study does not have.
        """
        import pandas as pd

        from affectlens.use.steering import Answers, Draws, Recipe, mean, pushes

        done = pushes(strengths or {}, out, clamp or {}, cap or {}, tuple(layers))
        recipes = [Recipe(), Recipe(done), Recipe(done, random=seed)]
        answers = Answers(self, prompt, recipes, Draws(tokens, samples, temperature, seed)).run()
        readings, sorts = self.readings(), ("plain", "steered", "random")
        rows = [
            {"sort": sort, "sample": sample} | dict(zip(readings.names, readings.standard(mean(values)), strict=True))
            for sort, row in zip(sorts, answers.readings(readings), strict=True)
            for sample, values in enumerate(row)
        ]
        perplexity = dict(zip(sorts, answers.perplexities(), strict=True))
        plain, steered, random = answers.texts
        return Steered(plain, steered, random, perplexity, pd.DataFrame(rows))
