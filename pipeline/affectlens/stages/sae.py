"""The sparse autoencoder of the study: trained on the cached token rows, or brought along; examined either way.

Parts are SAEs. The first is the study's; further ones (``sae.also``) see the same rows in the same order.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, field_validator

from affectlens import results
from affectlens.config import MERGE_ONLY, Config, nearest
from affectlens.files import write_json
from affectlens.model import subject as subjects
from affectlens.sae import source
from affectlens.sae.architectures import REGISTRY
from affectlens.sae.formats import content, describe, recognise
from affectlens.sae.formats.sae_lens import FORMAT as SAE_LENS
from affectlens.sae.formats.sae_lens import from_settings
from affectlens.sae.recipe import Recipe, SaeLimits
from affectlens.sae.source import LoadConfig
from affectlens.settings import Resources
from affectlens.stage import (
    LIVE,
    RECORD,
    Folder,
    Identity,
    Metrics,
    Part,
    Progress,
    Stage,
    StudySettings,
    paces,
    register,
)
from affectlens.stages.activations import ActivationsStage
from affectlens.stages.corpus import CorpusStage

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int

    from affectlens.activations import TokenRows
    from affectlens.sae.model import Dictionary, Sae

HELD_OUT_EVERY = 10
"""Of neutral texts (and of training stories, where there are no validation topics), one in so many is held out."""
WIDER = 3
"""Default width as a multiple of the model's."""
OTHERS = "others"
TRAINING = "training.json"
CURVE = results.Table(
    "training",
    "One point of the training curve of the study's SAE; none where it was loaded.",
    (
        results.integer("tokens", "token rows seen", "tokens"),
        results.number("loss", "everything that was differentiated"),
        results.number("explained_variance", "of the batch", "share"),
        results.number("l0", "active features a token"),
        results.integer("dead", "features that have not fired for long"),
    ),
    key=("tokens",),
    charts=(results.Line("training_loss", "tokens", "loss"),),
)
FIGURES = ("l0", "explained_variance", "dead_share", "dense_share", "ce_recovered")


class AlsoConfig(Config):
    """Further SAEs over the same stream of rows: every combination of these, and the study's own recipe."""

    layers: tuple[int, ...] = ()
    """Layers besides `model.layer`; `activations.token_layers` must have them."""
    widths: tuple[int, ...] = ()
    """Numbers of features besides `sae.width`."""
    ks: tuple[int, ...] = ()
    """Sparsities besides `sae.k`."""
    seeds: int = Field(default=1, ge=1)
    """Trainings of each that differ in their first weights alone; from two on, their agreement is reported."""


class SaeConfig(Recipe):
    """Train an SAE by this recipe, or load one; then the recipe is not used."""

    load: Literal["embedded"] | LoadConfig | None = None
    """`{path: folder}`, `{release: ..., id: ...}`, `embedded` (of the embedded model's layer 15), or nothing: train."""
    also: AlsoConfig = AlsoConfig()
    """Further SAEs to train, for comparison; results are in `others/`."""
    limits: SaeLimits = Field(default=SaeLimits(), json_schema_extra=MERGE_ONLY)
    """Beyond which figures the SAE is called weak or bad."""
    health_rows: int = Field(default=20_000, ge=100)
    """At most so many held-out token rows for the figures."""
    health_texts: int = Field(default=8, ge=0)
    """Held-out texts on which the model is run with the SAE spliced in. 0: no cross-entropy."""

    def on_machine(self, type_name: Callable[[str], str]) -> SaeConfig:
        # One that is loaded is not trained, so that its result is the same everywhere.
        return self if self.load else self.model_copy(update={"precision": type_name(self.precision)})

    @field_validator("architecture")
    @classmethod
    def _registered(cls, name: str) -> str:
        if name not in REGISTRY:
            raise ValueError(f"no architecture `{name}`; {nearest(name, list(REGISTRY))}")
        return name

    @property
    def source(self) -> LoadConfig | None:
        """Where a loaded SAE is; None when it is trained."""
        return LoadConfig(path=source.EMBEDDED) if self.load == "embedded" else self.load


@register
class SaeStage(Stage[SaeConfig, "Sae"]):
    """Train or load SAEs; report how good they are on held-out text."""

    name = "sae"
    version = 2
    config_class = SaeConfig
    needs = ("corpus", "activations")
    seeded = True
    keeps_parts = True
    checkpoint = "checkpoint"
    resources = Resources(parts_per_job=1)  # a part is a whole training
    unit = "tokens"
    pace = paces(loaded=14.0, other=1e-4)
    tables = (CURVE,)
    headline = (("explained_variance", "variance of held-out tokens that the SAE explains"),)

    @classmethod
    def check_chosen(cls, study: StudySettings) -> None:
        if not study.activations.token_rows:
            raise ValueError(
                "`activations.token_rows: false`: SAEs are trained and examined on token rows; set it to true, or run "
                "only stages that need none (`--stage directions`)"
            )

    @classmethod
    def check(cls, study: StudySettings) -> None:
        config: SaeConfig = study.sae
        known = subjects.shape(study.model)
        if config.source is not None:
            check_source(config.source, study.model, known)
            return
        for layer in config.also.layers:
            if layer not in {study.model.layer, *study.activations.token_layers}:
                raise ValueError(
                    f"`sae.also.layers: {layer}`: no token rows are cached there; add it to `token_layers`"
                )
        for grid in combinations(config, study.model.layer, known.width if known else None):
            if grid.width is not None and grid.k > grid.width:
                raise ValueError(f"`sae.k: {grid.k}`: more than the {grid.width} features of the SAE; lower it")

    @classmethod
    def identities(cls, study: StudySettings) -> dict[str, Identity]:
        load = study.sae.source
        if load is None:
            return {}
        if load.path is None:  # what a registry's release holds stays as it is; how it is read may change
            return {"format": f"{SAE_LENS.name} {SAE_LENS.version}"}
        folder = load.path.expanduser()
        read: dict[str, Identity] = {"sae": Folder(folder, tuple(content(folder)))}
        form = recognise(folder)
        return read if load.path == source.EMBEDDED else read | {"format": f"{form.name} {form.version}"}

    def parts(self) -> Sequence[Part]:
        if self.config.load is not None:
            return [Part("loaded", size=1, payload={"layer": self.setting.model.layer})]
        size = self.config.steps * self.config.train_batch_size_tokens
        return [
            Part(grid.name, size=size, payload=grid._asdict())
            for grid in combinations(self.config, self.setting.model.layer, self.outlook.width)
        ]

    def effort(self, part: Part) -> float:
        """Tokens, as many as an SAE of 4,608 features is trained on in that time."""
        return part.size if self.config.load is not None else part.size * (part.payload["width"] or 4608) / 4608

    def run_part(self, part: Part, out: Path, progress: Progress) -> None:
        from affectlens.sae.model import HEALTH, WEIGHTS, Dictionary, open_folder
        from affectlens.sae.training import CHECKPOINT

        notes: list[str] = []
        if self.config.source is None:
            self._train(part, out, progress)
        else:
            notes = self._load(self.config.source, out / WEIGHTS)
        found = self._examine(Dictionary(open_folder(out / WEIGHTS)), part.payload["layer"])
        if self.config.source is not None:  # its examination is what takes time
            progress(part.size)
        write_json(out / HEALTH, found | {"notes": notes})
        shutil.rmtree((out / CHECKPOINT).parent, ignore_errors=True)

    def rows(self, layer: int) -> TokenRows:
        """The cached token rows of one layer."""
        if layer not in self._rows:
            self._rows[layer] = self.need(ActivationsStage).tokens(layer)
        return self._rows[layer]

    @cached_property
    def _rows(self) -> dict[int, TokenRows]:
        return {}

    @cached_property
    def held_out(self) -> list[int]:
        """Documents no SAE is trained on: validation topics (else the ablated ones), a tenth of the neutral texts."""
        corpus = self.need(CorpusStage)
        validation = corpus.indices("validation") or corpus.indices("test")
        others = corpus.indices("neutral") if validation else corpus.indices("train", "neutral")
        return validation + others[::HELD_OUT_EVERY]

    def training_rows(self, layer: int) -> Int[np.ndarray, "n"]:
        """Rows of training topics and neutral texts. Test topics never enter, not even unlabelled."""
        return self.rows_of(set(self.need(CorpusStage).indices("train", "neutral")) - set(self.held_out), layer)

    def rows_of(self, documents: Sequence[int] | set[int], layer: int) -> Int[np.ndarray, "n"]:
        """Which rows these documents have, without outliers."""
        import numpy as np

        from affectlens.sae.rows import typical

        rows = self.rows(layer)
        return typical(rows, np.flatnonzero(np.isin(rows.document, sorted(documents))))

    def _train(self, part: Part, out: Path, progress: Progress) -> None:
        import numpy as np
        import torch

        from affectlens.sae import training
        from affectlens.sae.building import build, save_folded
        from affectlens.sae.model import WEIGHTS
        from affectlens.sae.rows import Statistics, Stream

        layer, width = part.payload["layer"], part.payload["width"]
        recipe = self.config.model_copy(update={"width": width, "k": part.payload["k"]})
        rows, chosen = self.rows(layer), self.training_rows(layer)
        statistics = Statistics.of(rows, chosen)
        sae = build(
            recipe,
            d_in=self.need(ActivationsStage).d_model,
            width=width,
            centre=torch.from_numpy(statistics.centre * np.float32(statistics.scale)),
            seed=self.seed_of(part.name),
            metadata=self._metadata(layer),
        )
        device = self.setting.device
        half = subjects.resolve_dtype(recipe.precision, device) is torch.bfloat16
        stream = Stream.of_store(
            self.need(ActivationsStage), layer, chosen, size=recipe.train_batch_size_tokens,
            seed=self.seed_of("stream"), device=device,
        )  # fmt: skip
        curve = training.Trainer(recipe, sae, stream, statistics, device, half).run(out, progress)
        save_folded(sae, statistics.scale, out / WEIGHTS, dtype=recipe.storage)
        write_json(out / TRAINING, {"rows": len(chosen), "curve": curve})

    def _metadata(self, layer: int) -> dict[str, Any]:
        return {
            "model_name": source.published_name(self.setting.model.name),
            "hook_name": f"blocks.{layer}.hook_resid_post",
            "prepend_bos": True,
            "training_text": "training topics and neutral texts of an AffectLens study",
        }

    def _load(self, load: LoadConfig, target: Path) -> list[str]:
        from affectlens.errors import UserError
        from affectlens.sae import loading
        from affectlens.sae.building import write_sorted

        store, model = self.need(ActivationsStage), self.setting.model
        module = loading.load(load, mean_norm=store.mean_norm(model.layer))
        origin = describe(load.path.expanduser()) if load.path is not None else from_settings(module.cfg.to_dict())
        try:
            notes = source.compare(origin, model, subjects.Shape(model.layer + 1, store.d_model))
        except ValueError as error:
            raise UserError(f"{load.key}: {error}") from None
        write_sorted(*module.save_model(target))
        return notes

    def _examine(self, sae: Dictionary, layer: int) -> dict[str, Any]:
        from affectlens.sae import metrics as health

        rows, chosen = self.rows(layer), self.rows_of(self.held_out, layer)
        chosen = chosen[:: max(1, len(chosen) // self.config.health_rows)][: self.config.health_rows]
        found = health.measure(sae, rows, chosen)
        random = sae.random(self.seed_of("random"), k=max(1, round(found["l0"])))
        found |= {"width": sae.d_sae, "random": health.measure(random, rows, chosen)}
        if self.config.health_texts:
            mean = rows.read(chosen).mean(axis=0)
            replacements = {
                "spliced": sae.reconstruct,
                "random": random.reconstruct,
                "mean": lambda residuals: mean + 0 * residuals,
            }
            texts = self._texts(rows)
            entropies = health.cross_entropies(self.subject, layer, texts, replacements)
            found["cross_entropy"] = entropies
            for figures, name in ((found, "spliced"), (found["random"], "random")):
                share = health.recovered(entropies, name)
                figures |= {} if share is None else {"ce_recovered": share}
        return found

    def _texts(self, rows: TokenRows) -> list[list[int]]:
        """Token ids of evenly spaced held-out documents."""
        every = max(1, len(self.held_out) // self.config.health_texts)
        documents = self.held_out[::every][: self.config.health_texts]
        return [rows.token[rows.document == index].tolist() for index in documents]

    @cached_property
    def subject(self) -> subjects.Subject:
        return subjects.Subject.load(self.setting.model, device=self.setting.device, models=self.setting.models)

    def finish(self, parts: Mapping[str, Path], out: Path) -> Metrics:
        from affectlens.sae import metrics as health
        from affectlens.sae.model import HEALTH

        skip = shutil.ignore_patterns(RECORD, LIVE)
        for index, (name, folder) in enumerate(parts.items()):
            target = out if index == 0 else out / OTHERS / name
            # Parts stay, since they cost hours; a second name of the same file costs nothing.
            shutil.copytree(folder, target, dirs_exist_ok=True, ignore=skip, copy_function=_link)
        first = json.loads((out / HEALTH).read_text(encoding="utf-8"))
        first |= self._agreement(parts)
        listed = health.faults(first, self.config.limits)
        first |= {"verdict": health.verdict(listed), "faults": [asdict(fault) for fault in listed]}
        write_json(out / HEALTH, first)
        path = out / TRAINING
        curve = json.loads(path.read_text(encoding="utf-8"))["curve"] if path.is_file() else []
        results.write(out, CURVE, curve)
        metrics = {"features": float(first["width"])}
        for prefix, figures in (("", first), ("random_", first["random"])):
            metrics |= {prefix + key: figures[key] for key in FIGURES if key in figures}
        return metrics | {f"seeds_{key}": value for key, value in first.get("agreement", {}).items()}

    def _agreement(self, parts: Mapping[str, Path]) -> dict[str, Any]:
        """How far the study's SAE and its re-trainings under other seeds hold the same features."""
        from affectlens.sae import metrics as health
        from affectlens.sae.model import WEIGHTS, Dictionary, open_folder

        listed = self.parts()
        keys = ("layer", "width", "k")
        alike = [p.name for p in listed if all(p.payload.get(k) == listed[0].payload.get(k) for k in keys)]
        if len(alike) < 2:
            return {}
        return {"agreement": health.agreement([Dictionary(open_folder(parts[name] / WEIGHTS)) for name in alike])}

    @classmethod
    def open(cls, folder: Path) -> Sae:
        from affectlens.sae.model import Sae

        return Sae(folder)


def _link(source: str, target: str) -> str:
    """A second name of a file, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


class Grid(NamedTuple):
    """One SAE to train."""

    layer: int
    width: int | None
    k: int
    seed: int

    @property
    def name(self) -> str:
        """Of its part."""
        return f"l{self.layer}-w{self.width}-k{self.k}-s{self.seed}"


def combinations(config: SaeConfig, layer: int, d_model: int | None) -> list[Grid]:
    """Every SAE to train; the study's own first. The width is None where neither config nor model gives it."""
    width = config.width or (WIDER * d_model if d_model else None)
    axes = (
        range(config.also.seeds),
        dict.fromkeys([layer, *config.also.layers]),
        dict.fromkeys([width, *config.also.widths]),
        dict.fromkeys([config.k, *config.also.ks]),
    )
    return [Grid(layer, width, k, seed) for seed, layer, width, k in itertools.product(*axes)]


def check_source(load: LoadConfig, model: subjects.ModelConfig, shape: subjects.Shape | None) -> None:
    """Compare what can be known of an SAE without opening it with the study.

    Raises:
        ValueError: one sentence that begins with the key.
    """
    try:
        if load.path is not None:
            origin = describe(load.path.expanduser())
        else:
            assert load.release is not None
            assert load.id is not None
            origin = source.describe_release(load.release, load.id)
        source.compare(origin, model, shape)
    except ValueError as error:
        raise ValueError(f"{load.key}: {error}") from None
