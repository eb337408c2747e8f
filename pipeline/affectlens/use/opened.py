"""What is computed of a study, opened: results as arrays and tables, and the model that they are about."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens import results
from affectlens.errors import MissingResult, UserError
from affectlens.run import manifest
from affectlens.study import STAGES, Study

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from jaxtyping import Float

    from affectlens.activations import ActivationStore
    from affectlens.model.decoding import Decoder
    from affectlens.model.reading import Readable
    from affectlens.model.subject import Subject
    from affectlens.probing.directions import Directions
    from affectlens.sae.model import Sae
    from affectlens.stage import Setting


def finished(source: str | Path, *overrides: str) -> tuple[Study | None, dict[str, Path]]:
    """A study and the folders of its finished results, by stage; nothing is computed.

    Args:
        source: a study file, the name of a shipped one (``quickstart``), or the folder of a result, which is followed
            back to the texts; then there is no study.
        overrides: ``key=value``, as on the command line; for a study file alone.

    Raises:
        ConfigError: the study file is wrong.
        MissingResult: the folder holds no result, or one that it was made of is gone.
    """
    path = Path(source).expanduser()
    if (path / manifest.NAME).is_file():
        return None, _back_to_the_texts(path.resolve())
    if path.is_dir():
        raise MissingResult(
            f"{path}: holds no result; give a folder such as cache/report/<fingerprint>, or a study file"
        )
    study = Study.load(path, overrides)
    folders = {stage.name: study.folder(stage) for stage in study.stages}
    return study, {name: folder for name, folder in folders.items() if (folder / manifest.NAME).is_file()}


class Opened:
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

    def config_of(self, stage: str) -> dict[str, Any]:
        """The configuration that a finished stage was computed with.

        Raises:
            MissingResult: the stage is not finished.
        """
        return (manifest.read(self.folder(stage)) or {})["config"]

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
        found = self.built
        return dict(zip(found.concepts, found.unit(self.layer if layer is None else layer), strict=True))

    def axes(self, layer: int | None = None) -> dict[str, Float[np.ndarray, "d_model"]]:
        """Valence and arousal as unit vectors: how the concepts' directions follow the ratings.

        Least squares over the rated concepts, each axis beside the other; empty where fewer than four are rated.

        Args:
            layer: as in :meth:`directions`.
        """
        from affectlens.corpus.ratings import ratings_path, read_ratings
        from affectlens.probing import axes
        from affectlens.probing.control_vectors import unit_rows

        ratings = read_ratings(ratings_path(self.study.config.geometry.ratings if self.study else "embedded"))
        rated = axes.rated(self.built.concepts, ratings)
        slopes = axes.slopes(self.built.unit(self.layer if layer is None else layer), rated)
        return {} if slopes is None else dict(zip(axes.AXES, unit_rows(slopes), strict=True))

    @property
    def model_name(self) -> str:
        """As the study names it; empty where a result folder was opened."""
        return str(self.study.config.model.name) if self.study else ""

    def mean_norm(self, layer: int) -> float:
        """Mean norm of the residual stream at a layer: the unit of steering strength."""
        return self.built.strength_unit(self.activations, layer)

    def neutral_rows(self, most: int) -> Float[np.ndarray, "tokens d_model"]:
        """Residuals at the study's layer of tokens of neutral texts, evenly spaced.

        From the cache, outliers left out; where the cache keeps no token rows, the model reads the texts again.

        Args:
            most: tokens, about.
        """
        import numpy as np

        from affectlens.model.reading import Site, read
        from affectlens.model.tokens import tokenise
        from affectlens.sae.rows import typical_values

        corpus = self.result("corpus")
        if self.layer in self.activations.token_layers:
            rows = self.activations.tokens(self.layer)
            chosen = rows.rows_of(corpus.indices("neutral"))
            return typical_values(rows.read(chosen[:: max(1, len(chosen) // most)]))
        texts, count, site = [], 0, Site(self.layer)
        for index in corpus.indices("neutral"):
            texts.append(tokenise(self.tokenizer, corpus.documents[index]))
            count += len(texts[-1])
            if count >= most:
                break
        passes = read(self.reader, [[*text.lead, *text.ids.tolist()] for text in texts], [site])
        found = [values[site][len(texts[row].lead) :][texts[row].kept].float().cpu().numpy() for row, values in passes]
        return np.concatenate(found)

    @cached_property
    def built(self) -> Directions:
        """The directions as the study built them, with their layers, centres and lengths."""
        return self.result("directions")

    @cached_property
    def subject(self) -> Subject:
        """The loaded model, whole: what is steered.

        Raises:
            UserError: a result folder was opened, which does not say where the model lies.
        """
        from affectlens.model.subject import Subject

        return Subject.load(self._setting.model, device=self._setting.device, models=self._setting.models)

    @cached_property
    def decoder(self) -> Decoder:
        """The model, whole, to answer many at once.

        Raises:
            UserError: as :attr:`subject`.
        """
        from affectlens.model.decoding import Decoder

        return Decoder.load(self._setting.model, device=self.device, models=self._setting.models)

    @property
    def device(self) -> str:
        """Where the model computes."""
        return self._setting.device

    @property
    def lead(self) -> int:
        """How many positions stand before the first token of a text."""
        return 0 if self.tokenizer.bos_token_id is None else 1

    @cached_property
    def reader(self) -> Readable:
        """The model up to the study's layer: what texts are read with, in half the time.

        Raises:
            UserError: as :attr:`subject`.
        """
        from affectlens.model.reading import open_reader

        setting = self._setting
        return open_reader(setting.model, self.layer + 1, device=setting.device, models=setting.models)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own.

        Raises:
            UserError: as :attr:`subject`.
        """
        from affectlens.model.loading import load_tokenizer

        if "subject" in self.__dict__:
            return self.subject.tokenizer
        return load_tokenizer(self._setting.model, self._setting.models)

    @cached_property
    def _setting(self) -> Setting:
        from affectlens.model.config import device_names

        if self.study is None:
            raise UserError("the model is not known from a result folder; open the study file instead")
        return self.study.setting(device_names(self.study.config.compute.device)[0])


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
