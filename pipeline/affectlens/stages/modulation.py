"""The model modulated by circuits while it speaks, against steering, prompting and controls, heard blind.

Off unless `modulation.run` is set. One part an emotion, and one that asks whether who chooses can hear emotions at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from affectlens import results
from affectlens.circuits import rates
from affectlens.config import Config, nearest
from affectlens.corpus.documents import concepts, file_stem
from affectlens.corpus.scenarios import OUTCOMES, SCENARIOS, Event, Outcome, read_events
from affectlens.corpus.texts import EMBEDDED
from affectlens.errors import UserError
from affectlens.experiments.grade.vote import Asked, ModelJudgeConfig
from affectlens.model.config import shape
from affectlens.settings import Resources
from affectlens.stage import NOTHING, Identity, Metrics, Part, Progress, Stage, StudySettings, register
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.circuits import PUBLISHED, CircuitsStage
from affectlens.stages.corpus import CorpusStage
from affectlens.stages.directions import DirectionsStage

if TYPE_CHECKING:
    import numpy as np

    from affectlens.circuits.choice import Chooser
    from affectlens.circuits.units import Unit, Units
    from affectlens.experiments.grade.judge import Judge
    from affectlens.model.subject import Subject

CHOOSER = "chooser"
WRITERS, SEARCHED = "writers", "circuits"
"""Circuits in default of searched ones, the heads that write most along the emotion's direction; and those that the
study's own search found."""
ENDING = 40
"""Words of a story's end, about as long as an answer, on which it is measured whether emotions are heard."""


class ModulationConfig(Config):
    """The model modulated by circuits while it speaks, beside steering, prompting and controls."""

    run: bool = False
    """Whether anything is sampled. About a minute for each emotion and eight events on two cores."""
    units: str = WRITERS
    """`circuits`: those that this study's stage `circuits` finds. `writers`: the heads whose difference writes most
    along the emotion's direction, which needs no search. Or a file of units of another study (`units.safetensors` in
    its result of `circuits`; circuits of the published choices are taken from `published_units.json` beside it)."""
    share: float = Field(default=0.1, gt=0, le=1)
    """With `writers`, so many of the heads up to the study's layer."""
    emotions: tuple[str, ...] | Literal["all"] = "all"
    """Those that are brought into answers; what is heard is chosen among all emotions of the study."""
    scenarios: str = "embedded"
    """`embedded`, or a JSONL file with the keys id, theme, scenario, positive, neutral, negative."""
    per_theme: int = Field(default=1, ge=1)
    """Situations of each theme that are answered to, the first ones."""
    outcomes: tuple[Outcome, ...] = Field(default=OUTCOMES, min_length=1)
    """Which outcomes of them."""
    tuning_events: int = Field(default=4, ge=1)
    """Further situations, the last ones of the themes, on which all arms are made equally large."""
    divergence: tuple[float, ...] = Field(default=(0.5,), min_length=1)
    """Mean KL of the next token from the plain model's, in nats, to which every arm is brought."""
    random_circuits: int = Field(default=2, ge=1)
    """Random circuits with as many units of each layer and kind."""
    tokens: int = Field(default=40, ge=4)
    """Most tokens of an answer."""
    temperature: float = Field(default=0.8, ge=0)
    """Of sampling; 0 takes the likeliest token."""
    judge: ModelJudgeConfig | None = None
    """Who hears the answers: a local model or a server. Left out, the model itself, untouched, by log-probabilities."""
    chooser_texts: int = Field(default=48, ge=2)
    """Ends of stories on which it is measured whether emotions are heard; about as many of each emotion."""
    repetition: float = Field(default=0.35, gt=0, le=1)
    """A text of whose runs of three tokens a larger share stood in it before is broken."""
    perplexity: float = Field(default=8.0, gt=1)
    """A text is broken if it is this many times more or less surprising to the untouched model than plain answers."""

    @model_validator(mode="after")
    def _consistent(self) -> ModulationConfig:
        if min(self.divergence) <= 0 or len(set(self.divergence)) < len(self.divergence):
            raise ValueError("`divergence`: give different numbers above 0")
        if len(set(self.outcomes)) < len(self.outcomes):
            raise ValueError("`outcomes`: one stands twice; name each once")
        return self

    @property
    def path(self) -> Path:
        """Of the scenarios."""
        return SCENARIOS if self.scenarios == "embedded" else Path(self.scenarios).expanduser()

    def events(self) -> tuple[list[Event], list[Event]]:
        """What is answered to, and what the arms are made equally large on.

        Raises:
            ValueError: too few situations for both.
        """
        said = read_events(self.path, per_theme=self.per_theme, outcomes=self.outcomes)
        taken = {event.scenario for event in said}
        others = [event for event in read_events(self.path, outcomes=("neutral",)) if event.scenario not in taken]
        last = list({event.theme: event for event in others}.values())[: self.tuning_events]
        if not last:
            raise ValueError(
                f"`modulation.per_theme: {self.per_theme}` takes every situation, and none is left to make the arms "
                "equally large on; take fewer"
            )
        return said, last


class Picked:
    """A judge of the experiments as one who chooses: 1 for what it said, 0 for the others."""

    calibrated = True

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def scores(self, texts: Sequence[str], options: Sequence[Sequence[str]], names: Sequence[str]) -> np.ndarray:
        import numpy as np

        asked = [
            Asked(f"Somebody said the text between the lines.\n---\n{text}\n---\nHow did they feel?", tuple(shown))
            for text, shown in zip(texts, options, strict=True)
        ]
        distinct = list(dict.fromkeys(asked))
        votes = dict(zip(distinct, self._judge.votes(distinct), strict=True))
        rows = [[float(votes[each].label == name) for name in names] for each in asked]
        found = np.array(rows, dtype=float).reshape(len(texts), len(names))
        found[[votes[each].label is None for each in asked]] = np.nan
        return found


@dataclass(frozen=True)
class Modulation:
    """The result of the stage: its tables, texts and rates."""

    folder: Path


@register
class ModulationStage(Stage[ModulationConfig, Modulation]):
    """Sample answers under circuits, directions, prompts and controls of equal size, and hear them blind."""

    name = "modulation"
    version = 4
    config_class = ModulationConfig
    needs = ("corpus", "activations", "directions", "circuits")
    reads_model = True
    seeded = True
    keeps_parts = True
    resources = Resources(parts_per_job=4)
    unit = "answers"
    switch = "modulation.run"
    headline = (
        ("rate_circuit_masked", "answers under a circuit heard as its emotion, own words masked"),
        ("above_random_masked", "by how much that is more than under random circuits of equal KL"),
    )
    tables = rates.TABLES

    @classmethod
    def check(cls, study: StudySettings) -> None:
        config: ModulationConfig = study.modulation
        if not config.run:
            return
        known = concepts(study.corpus)
        if not config.emotions:
            raise ValueError("`modulation.emotions: []`: names none; give emotions of the study, or `all`")
        for emotion in config.emotions if config.emotions != "all" else ():
            if emotion not in known:
                raise ValueError(f"`modulation.emotions: {emotion}`: not studied; {nearest(emotion, known)}")
        if not config.path.is_file():
            raise ValueError(
                f"`modulation.scenarios: {config.scenarios}`: no such file; give a JSONL file, or `embedded`"
            )
        config.events()
        if config.units == SEARCHED and not study.circuits.run:
            raise ValueError("`modulation.units: circuits`: no circuits are looked for; set `circuits.run: true`")
        if config.units not in (WRITERS, SEARCHED):
            from affectlens.circuits.units import read_units

            try:
                units = read_units(Path(config.units).expanduser())
            except UserError as error:
                raise ValueError(f"`modulation.units`: {error}") from None
            lacking = set(known if config.emotions == "all" else config.emotions) - set(units.circuits)
            if lacking:
                raise ValueError(
                    f"`modulation.units: {config.units}`: has no circuit of `{min(lacking)}`; name other "
                    "`modulation.emotions`"
                )
            if len(units.circuits) < 2:
                raise ValueError(
                    f"`modulation.units: {config.units}`: holds one circuit; another emotion's is needed as a control"
                )
            whole = shape(study.model)
            if whole is not None and units.residual.shape[1:] != (whole.layers, whole.width):
                depth, width = units.residual.shape[1:]
                raise ValueError(
                    f"`modulation.units: {config.units}`: is of a model of {depth} layers and width {width}, not of "
                    f"{whole.layers} and {whole.width}; give the units of this model"
                )
        if config.judge is not None:
            if config.judge.address:
                _ = config.judge.key
            else:
                shape(config.judge.local)

    @classmethod
    def identities(cls, study: StudySettings) -> Mapping[str, Identity]:
        config: ModulationConfig = study.modulation
        if not config.run:
            return {}
        found: dict[str, Identity] = {"scenarios": config.path, "lexicon.json": EMBEDDED / "lexicon.json"}
        if config.units not in (WRITERS, SEARCHED):
            found["units"] = Path(config.units).expanduser()
            if (beside := found["units"].with_name(PUBLISHED)).is_file():
                found["published units"] = beside
        if config.judge is not None:
            judge = config.judge
            found["judge"] = f"server: {judge.model}" if judge.address else judge.local
        return found

    @property
    def emotions(self) -> tuple[str, ...]:
        """Those that are brought into answers."""
        return self.outlook.emotions if self.config.emotions == "all" else self.config.emotions

    def parts(self) -> Sequence[Part]:
        if not self.config.run:
            return [Part(NOTHING)]
        said, _ = self.config.events()
        arms = 2 + len(self.config.divergence) * 2 * (4 + self.config.random_circuits)
        speaking = [
            Part(f"speak-{file_stem(emotion)}", size=arms * len(said), payload={"emotion": emotion})
            for emotion in self.emotions
        ]
        return [Part(CHOOSER, size=self.config.chooser_texts), *speaking]

    @cached_property
    def subject(self) -> Subject:
        """The model, whole."""
        from affectlens.model.subject import Subject

        return Subject.load(self.setting.model, device=self.setting.device, models=self.setting.models)

    @cached_property
    def units(self) -> Units:
        """Differences and circuits: of the file, or measured on the stories that build directions."""
        from dataclasses import replace

        from affectlens.circuits.modulation import writers_of
        from affectlens.circuits.units import UNITS, measure, read_units
        from affectlens.model.tokens import tokenise

        if self.config.units == SEARCHED:
            return read_units(self.need(CircuitsStage).folder / UNITS)
        if self.config.units != WRITERS:
            return read_units(Path(self.config.units).expanduser())
        corpus, built, layer = self.need(CorpusStage), self.need(DirectionsStage), self.setting.model.layer
        documents = [corpus.documents[index] for index in corpus.indices("train", "validation")]
        texts = [tokenise(self.subject.tokenizer, document) for document in documents]
        units = measure(
            self.subject,
            [[*text.lead, *text.ids.tolist()] for text in texts],
            [corpus.emotions.index(document.emotion) for document in documents],
            corpus.emotions,
            first=self.need(ActivationsStage).index["first_token"] + self.subject.lead,
        )
        along = dict(zip(built.concepts, built.unit(layer), strict=True))
        return replace(units, circuits=writers_of(units, self.subject, along, layer, self.config.share))

    @cached_property
    def published(self) -> Mapping[str, tuple[Unit, ...]]:
        """Circuits by the published choices, of the emotions that have one: beside the searched ones."""
        from affectlens.circuits.units import read_members

        if self.config.units == WRITERS:
            return {}
        given = Path(self.config.units).expanduser().with_name(PUBLISHED)
        return read_members(self.need(CircuitsStage).published if self.config.units == SEARCHED else given)

    @cached_property
    def chooser(self) -> Chooser:
        """Who hears the answers."""
        from affectlens.circuits.choice import OwnChoice

        judge = self.config.judge
        if judge is None:
            return OwnChoice(self.subject)
        from affectlens.experiments.grade.local import LocalJudge
        from affectlens.experiments.grade.remote import RemoteJudge

        return Picked(
            RemoteJudge(judge) if judge.address else LocalJudge(judge, self.setting.models, self.setting.device)
        )

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        from affectlens.circuits.units import UNITS, write_units

        if part.name == NOTHING:
            progress(part.size)
            return
        if part.name == CHOOSER:
            write_units(out / UNITS, self.units)
        rows, texts = self._ends() if part.name == CHOOSER else self._answers(part.payload["emotion"], part.name)
        self._hear(rows, texts, part.name, out)
        progress(part.size)

    def _ends(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Ends of stories whose emotion is known."""
        corpus = self.need(CorpusStage)
        stories = [document for document in corpus.documents if document.emotion]
        generator, chosen = self.generator(CHOOSER), []
        for emotion in corpus.emotions:
            mine = [document for document in stories if document.emotion == emotion]
            count = max(1, self.config.chooser_texts // len(corpus.emotions))
            chosen += [mine[index] for index in generator.permutation(len(mine))[:count]]
        texts = [" ".join(document.text.split()[-ENDING:]) for document in chosen]
        return [{"concept": document.emotion} for document in chosen], texts

    def _answers(self, emotion: str, name: str) -> tuple[list[dict[str, Any]], list[str]]:
        """Every arm's answers to every event."""
        import numpy as np

        from affectlens.circuits import modulation
        from affectlens.circuits.choice import Masking, Window
        from affectlens.interventions.frames import read_lexicon
        from affectlens.model.sampling import sample

        config, subject, units, layer = self.config, self.subject, self.units, self.setting.model.layer
        events, tuned_on = config.events()
        # The same draws for every emotion, so that scenarios are what differs between pairs, not luck.
        chances = self.generator("draws").random((len(events), config.tokens))
        asked = [modulation.prompt_of(subject, event) for event in tuned_on]
        draws = self.generator("tuning").random((len(asked), 1, config.tokens))
        plain = [answer.tokens for (answer,) in sample(subject, asked, draws, temperature=config.temperature)]
        tuning = modulation.Tuning(subject, asked, plain)
        named = [
            modulation.prompt_of(subject, event, emotion)
            for event, answer in zip(tuned_on, plain, strict=True)
            if answer
        ]
        generator, built = self.generator(name), self.need(DirectionsStage)
        others = sorted(set(units.circuits) - {emotion})
        wrong = others[int(generator.integers(len(others)))]
        along = built.unit(layer)[built.concepts.index(emotion)].astype(np.float32)
        raw = modulation.raw_arms(
            units, emotion, wrong, {(layer, "residual"): along * float(units.norms[layer])}, config.random_circuits,
            generator, self.published.get(emotion, ()),
        )  # fmt: skip
        arms = [(0.0, modulation.Arm("plain")), (0.0, modulation.Arm("prompting", divergence=tuning.prompted(named)))]
        for target in config.divergence:
            arms += [(target, arm) for arm in modulation.equally_large(tuning, raw, target, units.norms)]
        said = modulation.speak(
            subject, [arm for _, arm in arms], events, emotion, chances, temperature=config.temperature
        )
        masking = Masking(self.outlook.emotions, read_lexicon())
        window = Window(repetition=config.repetition, perplexity=config.perplexity)
        usual = float(np.nanmean([answer.nats for answer in said[0]]))
        rows, texts = [], []
        for (target, arm), answers in zip(arms, said, strict=True):
            for event, answer in zip(events, answers, strict=True):
                rows.append(
                    {
                        "concept": emotion, "arm": arm.name, "match": arm.match, "target": target, "number": arm.number,
                        "scenario": event.scenario, "theme": event.theme, "outcome": event.outcome, "text": answer.text,
                        "fault": window.fault(answer.text, answer.tokens, answer.nats, usual),
                        "names": masking.names(answer.text, emotion), "nats": answer.nats,
                        "divergence": arm.divergence, "norm": arm.norm,
                    }
                )  # fmt: skip
                texts.append(answer.text)
        return rows, texts

    def _hear(self, rows: list[dict[str, Any]], texts: list[str], name: str, out: Path) -> None:
        """Ask blind, open and masked, in orders of their own, and write what was said."""
        from safetensors.numpy import save_file

        from affectlens.circuits.choice import Masking, shuffled
        from affectlens.interventions.frames import read_lexicon

        names, generator = self.outlook.emotions, self.generator(f"options-{name}")
        masking = Masking(names, read_lexicon())
        # One order for equal texts, so that a text is heard alike wherever it was said.
        drawn = dict(zip(dict.fromkeys(texts), shuffled(names, len(set(texts)), generator), strict=True))
        options = [drawn[text] for text in texts]
        scores = {
            "open": self.chooser.scores(texts, options, names),
            "masked": self.chooser.scores([masking.mask(text) for text in texts], options, names),
        }
        save_file(scores, out / "scores.safetensors")
        (out / "rows.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        import numpy as np
        from safetensors.numpy import load_file

        from affectlens.circuits.choice import picks
        from affectlens.circuits.units import UNITS

        names, calibrated = self.outlook.emotions, self.config.judge is not None

        def heard(folders: Sequence[Path], score: str) -> list[str | None]:
            scores = np.concatenate([load_file(folder / "scores.safetensors")[score] for folder in folders])
            return [None if pick is None else names[pick] for pick in picks(scores, calibrated=calibrated)]

        def read(folder: Path) -> list[dict[str, Any]]:
            return [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]

        tables: dict[Any, list[dict[str, Any]]] = {table: [] for table in self.tables}
        if self.config.run:
            speaking = [folder for name, folder in parts.items() if name not in (NOTHING, CHOOSER)]
            texts = [row for folder in speaking for row in read(folder)]
            open_, masked = heard(speaking, "open"), heard(speaking, "masked")
            for row, one, other in zip(texts, open_, masked, strict=True):
                row |= {"heard": one or "", "heard_masked": other or ""}
            tables[rates.TEXTS] = texts
            tables[rates.RATES] = rates.rate_rows(texts)
            tables[rates.DIFFERENCES] = rates.difference_rows(texts)
            known = [parts[CHOOSER]]
            shutil.copyfile(parts[CHOOSER] / UNITS, out / UNITS)
            labels = [row["concept"] for row in read(known[0])]
            found = {score: heard(known, score) for score in rates.SCORES}
            tables[rates.CHOOSER] = rates.chooser_rows(labels, found, names)
        for table, rows in tables.items():
            results.write(out, table, rows)
        return rates.metrics(tables[rates.RATES], tables[rates.DIFFERENCES], tables[rates.CHOOSER])

    @classmethod
    def open(cls, folder: Path) -> Modulation:
        return Modulation(folder)
