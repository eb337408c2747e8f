"""Studies in Python: results as arrays and tables, texts of one's own read, and the model steered.

Everything public here is also an attribute of the package itself: ``affectlens.open_study``, ``affectlens.run_study``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from affectlens import results
from affectlens.errors import MissingResult, UserError
from affectlens.run import manifest, runner
from affectlens.study import STAGES, Study

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from jaxtyping import Float

    from affectlens.activations import ActivationStore
    from affectlens.model.subject import Subject
    from affectlens.model.tokens import Text
    from affectlens.probing.directions import Directions
    from affectlens.sae.model import Sae

Messages = Sequence[Mapping[str, str]]
"""A chat: mappings with ``role`` and ``content``."""


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
    path = Path(source).expanduser()
    if (path / manifest.NAME).is_file():
        return OpenStudy(None, _back_to_the_texts(path.resolve()))
    if path.is_dir():
        raise MissingResult(
            f"{path}: holds no result; give a folder such as cache/report/<fingerprint>, or a study file"
        )
    study = Study.load(path, overrides)
    folders = {stage.name: study.folder(stage) for stage in study.stages}
    return OpenStudy(study, {name: folder for name, folder in folders.items() if (folder / manifest.NAME).is_file()})


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


def _back_to_the_texts(folder: Path) -> dict[str, Path]:
    """A result and all that it was made of, by stage."""
    record = manifest.read(folder) or {}
    folders = {str(record.get("stage")): folder}
    for stage, fingerprint in (record.get("needs") or {}).items():
        needed = folder.parent.parent / stage / fingerprint[:16]
        if not (needed / manifest.NAME).is_file():
            raise MissingResult(f"{folder}: was made of {needed}, which is no longer there; run its study again")
        folders |= _back_to_the_texts(needed)
    return folders


@dataclass(frozen=True)
class Steered:
    """The same prompt answered three times.

    Attributes:
        plain: answers of the model as it is.
        steered: answers under the vectors.
        random: answers under a random vector of the same norm: what any push of that size does.
        strength: norm of the push, as a share of the mean residual norm.
    """

    plain: list[str]
    steered: list[str]
    random: list[str]
    strength: float


class OpenStudy:
    """The finished results of a study.

    Attributes:
        study: the study; None where a result folder was opened.
        folders: of the finished results, by stage.
    """

    def __init__(self, study: Study | None, folders: Mapping[str, Path]) -> None:
        self.study = study
        self.folders = dict(folders)

    def __repr__(self) -> str:
        name = self.study.config.name if self.study else "results"
        return f"<affectlens study {name}: {', '.join(self.folders) or 'nothing computed yet'}>"

    def folder(self, stage: str) -> Path:
        """The result folder of a stage.

        Raises:
            MissingResult: the stage is not finished.
        """
        if stage not in self.folders:
            raise MissingResult(f"stage `{stage}` is not finished; there are {', '.join(self.folders) or 'none'}")
        return self.folders[stage]

    def result(self, stage: str) -> Any:
        """The result of a stage as later stages see it.

        Raises:
            MissingResult: the stage is not finished.
        """
        stages = self.study.stages if self.study else STAGES
        kind = next((each for each in stages if each.name == stage), None)
        if kind is None:
            raise MissingResult(f"stage `{stage}` does not exist; there are {', '.join(each.name for each in stages)}")
        return kind.open(self.folder(stage))

    @property
    def tables(self) -> list[str]:
        """Names of all tables, as ``stage/table``."""
        return [f"{stage}/{name}" for stage, folder in self.folders.items() for name in results.names(folder)]

    def table(self, name: str) -> pd.DataFrame:
        """A table, ``stage/table``; ``attrs["table"]`` says what its columns are.

        Raises:
            MissingResult: there is no such table.
        """
        stage, _, table = name.partition("/")
        if table not in results.names(self.folder(stage)):
            raise MissingResult(f"there is no table `{name}`; there are {', '.join(self.tables)}")
        return results.read(self.folder(stage), table)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Every metric: ``stage``, ``metric``, ``value``, and ``low`` and ``high`` where it has a 95% interval."""
        import pandas as pd

        rows = []
        for stage, folder in self.folders.items():
            values = manifest.read_metrics(folder)
            for name, value in values.items():
                if name.endswith(("_low", "_high")):
                    continue
                ends = [values.get(f"{name}_{end}") for end in ("low", "high")]
                rows.append({"stage": stage, "metric": name, "value": value, "low": ends[0], "high": ends[1]})
        return pd.DataFrame(rows, columns=["stage", "metric", "value", "low", "high"])

    @property
    def concepts(self) -> tuple[str, ...]:
        """The emotion concepts, in the order of every "concepts" axis."""
        return self.result("corpus").emotions

    @cached_property
    def documents(self) -> pd.DataFrame:
        """The corpus, a row a document: index, kind, emotion, topic, narrator, split and text."""
        import pandas as pd

        columns = ["index", "kind", "emotion", "topic", "narrator", "split", "text"]
        return pd.DataFrame([{name: getattr(row, name) for name in columns} for row in self.result("corpus").documents])

    @cached_property
    def activations(self) -> ActivationStore:
        """The cache: ``pooled(layer)`` (documents x d_model), ``tokens(layer)``, ``batches(...)``."""
        return self.result("activations")

    @cached_property
    def sae(self) -> Sae:
        """The study's SAE: ``encode``, ``decode``, ``decoder``, ``health``."""
        return self.result("sae")

    @property
    def layer(self) -> int:
        """The layer that is studied."""
        return int((manifest.read(self.folder("activations")) or {})["model"]["layer"])

    def directions(self, layer: int | None = None) -> dict[str, Float[np.ndarray, "d_model"]]:
        """The direction of each concept at norm 1.

        Args:
            layer: one of ``activations.pooled_layers``; the study's when None.
        """
        found = self._directions
        return dict(zip(found.concepts, found.unit(self.layer if layer is None else layer), strict=True))

    @cached_property
    def _directions(self) -> Directions:
        return self.result("directions")

    @cached_property
    def subject(self) -> Subject:
        """The loaded model.

        Raises:
            UserError: a result folder was opened, which does not say where the model lies.
        """
        from affectlens.model.subject import Subject

        if self.study is None:
            raise UserError("the model is not known from a result folder; open the study file instead")
        setting = self.study.setting("cpu")
        return Subject.load(setting.model, device="cpu", models=setting.models)

    def read(self, text: str | Messages) -> pd.DataFrame:
        """How far every token of a text reads as each concept.

        A value is the projection of the centred residual stream onto the concept's unit direction, as a share of the
        mean residual norm: the unit in which :meth:`steer` pushes. It says how the representation of a concept is
        active at that token, not what anybody feels.

        Args:
            text: plain text, or a chat, of which the contents of the messages are read.

        Returns:
            A row a token: ``token``, then a column a concept.
        """
        import pandas as pd

        from affectlens.model.reading import Site, read

        tokens = self._tokens(text)
        site = Site(self.layer)
        ids = [*tokens.lead, *tokens.ids.tolist()]
        ((_, values),) = read(self.subject, [ids], [site], lead=len(tokens.lead))
        rows = values[site].float().cpu().numpy()[len(tokens.lead) :][tokens.kept]
        shares = self._directions.readout(self.layer, rows) / self.activations.mean_norm(self.layer)
        frame = pd.DataFrame(shares, columns=list(self._directions.concepts))
        frame.insert(0, "token", [self.subject.tokenizer.decode([token]) for token in tokens.ids[tokens.kept].tolist()])
        return frame

    def steer(
        self,
        prompt: str | Messages,
        strengths: Mapping[str, float],
        *,
        tokens: int = 60,
        samples: int = 1,
        temperature: float = 0.8,
        seed: int = 0,
    ) -> Steered:
        """Answer a prompt plainly, pushed along concepts, and pushed as far along a random direction.

        All three use the same random draws, so what differs between them is the push's doing. The push acts on every
        token of the prompt and of the answer.

        Args:
            prompt: plain text, which is continued, or a chat, which is answered.
            strengths: concept -> size of the push, as a share of the mean residual norm; 0.05 to 0.2 is usual.
            tokens: most tokens of an answer.
            samples: answers of each sort.
            temperature: 0 takes the likeliest token.
            seed: of the draws and of the random direction.

        Raises:
            UserError: a concept that the study does not have.
        """
        import numpy as np
        import torch

        from affectlens.model.sampling import sample
        from affectlens.model.steering import Edit, Span, add

        directions = self.directions()
        unknown = [name for name in strengths if name not in directions]
        if unknown:
            raise UserError(f"the study has no direction of `{unknown[0]}`; it has {', '.join(directions)}")
        push = sum((strength * directions[name] for name, strength in strengths.items()), np.zeros(self.subject.width))
        size = float(np.linalg.norm(push))
        generator = np.random.default_rng(seed)
        other = generator.normal(size=push.shape)
        other *= size / max(float(np.linalg.norm(other)), 1e-12)
        text = self._tokens(prompt)
        ids = [*text.lead, *text.ids.tolist()]
        chances = np.broadcast_to(generator.random((1, samples, tokens)), (3, samples, tokens))
        rows = torch.tensor(np.stack([0 * push, push, other]), dtype=torch.float32, device=self.subject.device)
        delta = partial(
            add, direction=rows, strength=torch.ones(3, device=rows.device),
            unit=self.activations.mean_norm(self.layer),
        )  # fmt: skip
        edit = Edit(self.layer, delta, span=Span.text(3, self.subject.lead))
        completions = sample(self.subject, [ids], chances, [edit], resume_at=self.layer, temperature=temperature)
        decode = self.subject.tokenizer.decode
        plain, steered, random = ([decode(each.tokens) for each in row] for row in completions)
        return Steered(plain, steered, random, size)

    def _tokens(self, text: str | Messages) -> Text:
        """A tokenised text or chat, with what stands before its first token."""
        import numpy as np

        from affectlens.model.tokens import Chat, Text, tokenise

        if isinstance(text, str):
            subject = self.subject
            lead = () if subject.bos is None else (subject.bos,)
            ids = np.array(subject.encode(text), dtype=np.int64)
            if not len(ids):
                raise UserError("the text is empty; give at least one word")
            return Text(lead, ids, np.arange(len(ids)))
        return tokenise(self.subject.tokenizer, Chat(tuple(dict(message) for message in text)), ["answer"])
