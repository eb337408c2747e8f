"""A study's vectors and features in the formats of other tools, each with the scale that a strength stands for.

A strength of 0.1 pushes by a tenth of the mean residual norm. Every format is written so that one number of its own
tool means a given strength, and says which.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens import __version__
from affectlens.corpus.documents import file_stem
from affectlens.errors import UserError
from affectlens.files import write_json, write_safetensors
from affectlens.model.reading import FAMILIES
from affectlens.probing import export
from affectlens.use.opened import Opened
from affectlens.use.steering import Vectors

if TYPE_CHECKING:
    from jaxtyping import Float

SITE = "residual stream after the block (transformer-lens: blocks.<layer>.hook_out)"
PERCENT = 100
"""Neuronpedia's strength is written as hundredths of the mean residual norm: 10, its default, is a strength of 0.1."""


@dataclass(frozen=True)
class Exported:
    """What is exported.

    Attributes:
        names: of the vectors.
        vectors: at norm 1.
        layer: of whose residual stream they are.
        unit: mean residual norm there.
        strength: that the tool's own scale 1 (or the scale in the file) stands for, in mean residual norms.
        model: as the study names it.
        family: its architecture, as transformers calls it.
    """

    names: tuple[str, ...]
    vectors: Float[np.ndarray, "names d_model"]
    layer: int
    unit: float
    strength: float
    model: str
    family: str

    @classmethod
    def of(cls, study: Opened, names: Sequence[str], layer: int | None, strength: float) -> Exported:
        """Vectors of a study; all its concepts where none are named.

        Raises:
            UserError: it has no such vector at this layer, or only a result folder was opened.
        """
        if study.study is None:
            raise UserError("the model is not known from a result folder; open the study file instead")
        at, vectors = study.layer if layer is None else layer, Vectors(study)
        chosen = tuple(names) or tuple(study.directions())
        rows = np.stack([vectors.unit(name, at) for name in chosen]).astype(np.float32)
        family = export.family(study.study.model)
        return cls(chosen, rows, at, study.mean_norm(at), strength, study.model_name, family)

    def metadata(self, **more: object) -> dict[str, str]:
        """What a user has to know, as strings."""
        known = {
            "layer": self.layer, "site": SITE, "mean_residual_norm": f"{self.unit:.8g}", "model": self.model,
            "made_by": f"affectlens {__version__}",
        }  # fmt: skip
        return {key: str(value) for key, value in (known | more).items()}

    def path(self, folder: Path, name: str, suffix: str) -> Path:
        """Of one vector's file."""
        return folder / f"{file_stem(name)}.{suffix}"


def safetensors(what: Exported, folder: Path) -> list[Path]:
    """One file: a unit vector a name. Add ``strength * mean_residual_norm`` times it after the block ``layer``."""
    path = folder / "vectors.safetensors"
    unit = "norm 1; a strength s adds s * mean_residual_norm times the vector to the residual stream"
    write_safetensors(path, dict(zip(what.names, what.vectors, strict=True)), what.metadata(unit=unit))
    return [path]


def gguf(what: Exported, folder: Path) -> list[Path]:
    """One control-vector file a name (repeng, llama.cpp), of this layer alone; scale 1 is the strength.

    Raises:
        UserError: for layer 0, which such files have no room for.
    """
    if what.layer == 0:
        raise UserError("control-vector files have no room for layer 0; give another --layer")
    scaled = {what.layer: what.vectors * np.float32(what.strength * what.unit)}
    return export.write_gguf(folder, what.names, scaled, {what.layer: what.unit}, what.family)


def vllm_lens(what: Exported, folder: Path) -> list[Path]:
    """Two files a name: tensor ``activations`` [1, d_model], and the other fields of vllm-lens's ``SteeringVector``."""
    written = []
    for name, vector in zip(what.names, what.vectors, strict=True):
        tensors, fields = what.path(folder, name, "safetensors"), what.path(folder, name, "json")
        write_safetensors(tensors, {"activations": vector[None]}, what.metadata(strength=what.strength))
        scale = what.strength * what.unit
        write_json(fields, {"activations": tensors.name, "layer_indices": [what.layer], "scale": scale,
                            "norm_match": False, "position_indices": None})  # fmt: skip
        written += [tensors, fields]
    return written


def lm_eval(what: Exported, folder: Path) -> list[Path]:
    """One file a name for lm-eval's model ``steered`` (``steer_path=``): what is added at every position, padding too.

    Raises:
        UserError: an architecture whose blocks' names are not known.
    """
    import torch

    if what.family not in FAMILIES:
        raise UserError(f"where the blocks of `{what.family}` models lie is not known; export another format")
    hookpoint, written = f"{FAMILIES[what.family].blocks}.{what.layer}", []
    for name, vector in zip(what.names, what.vectors, strict=True):
        written.append(what.path(folder, name, "pt"))
        step = {"steering_vector": torch.from_numpy(vector.copy()), "steering_coefficient": what.strength * what.unit,
                "action": "add", "bias": None, "head_index": None}  # fmt: skip
        torch.save({hookpoint: step}, written[-1])
    return written


def neuronpedia(what: Exported, folder: Path) -> list[Path]:
    """One JSON a name: the arguments of ``NPVector.new``; its strength is in hundredths of the mean residual norm.

    What is added after a block is what the next block reads, so the site is the ``hook_resid_pre`` of the layer above.
    """
    written = []
    for name, vector in zip(what.names, what.vectors, strict=True):
        written.append(what.path(folder, name, "json"))
        write_json(written[-1], {
            "label": name, "model_id": what.model.rpartition("/")[2], "layer_num": what.layer + 1,
            "hook_type": "hook_resid_pre", "vector": (vector * (what.unit / PERCENT)).tolist(),
            "default_steer_strength": what.strength * PERCENT,
        })  # fmt: skip
    return written


def neuronpedia_features(study: Opened, folder: Path) -> list[Path]:
    """One JSON of the features that were matched to concepts: decoder row, words, and their strongest passages.

    Empty where stage ``match`` is not finished.
    """
    if "match" not in study.folders:
        return []
    found: dict[int, dict[str, Any]] = {}
    for concept, row in zip(study.concepts, study.result("match").table, strict=True):
        number = int(row["feature"])
        feature = found.setdefault(number, {
            "modelId": study.model_name.rpartition("/")[2], "layer": f"{study.layer}-affectlens", "index": str(number),
            "vector": study.sae.decoder[number].tolist(), "pos_str": row["words"], "concepts": [],
            "activations": [{"tokens": each["tokens"], "values": each["values"]} for each in row["contexts"]],
        })  # fmt: skip
        feature["concepts"].append(concept)
    path = folder / "features.json"
    path.write_text(json.dumps(list(found.values()), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return [path]


FORMATS: dict[str, Callable[[Exported, Path], list[Path]]] = {
    "safetensors": safetensors,
    "gguf": gguf,
    "vllm-lens": vllm_lens,
    "lm-eval": lm_eval,
    "neuronpedia": neuronpedia,
}
HOW: dict[str, str] = {
    "safetensors": "add {scale:.4g} times a vector to the residual stream after block {layer}: strength {strength:g}",
    "gguf": "llama.cpp: --control-vector FILE --control-vector-layer-range {layer} {layer}; scale 1 is strength "
    "{strength:g}. repeng: ControlVector.import_gguf(FILE), coefficient 1",
    "vllm-lens": "SteeringVector(activations=..., **the other fields of the JSON): strength {strength:g}",
    "lm-eval": "lm_eval --model steered --model_args pretrained=MODEL,steer_path=FILE: strength {strength:g}; it "
    "pushes padding and the begin token, too",
    "neuronpedia": "NPVector.new(**the JSON): strength 10 there is 0.1 here",
}
"""How each is used."""


def export_all(study: Opened, form: str, folder: Path, what: Exported) -> list[Path]:
    """Write the files of a format into a folder, and return them."""
    folder.mkdir(parents=True, exist_ok=True)
    written = FORMATS[form](what, folder)
    return written + (neuronpedia_features(study, folder) if form == "neuronpedia" else [])
