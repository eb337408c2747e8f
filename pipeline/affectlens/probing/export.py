"""Directions in the formats of other tools: numpy's ``.npz``, and control-vector GGUF (repeng, llama.cpp).

A control-vector file holds one concept: tensors ``direction.<layer>``, float32, added to the residual stream after
that block. Its readers keep no room for block 0, so that layer is left out. Vectors keep the length that the recipe
gives them; ``affectlens.direction.<layer>.norm`` and ``.residual_norm`` hold that length and the mean norm of the
residual stream, so that the study's strength ``s`` at one layer is their scale ``s * residual_norm / norm`` with the
layer range from that layer to that layer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float

from affectlens.corpus.documents import file_stem
from affectlens.errors import UserError
from affectlens.model.config import ModelConfig, locate

ARCHITECTURE = "controlvector"
Layers = Mapping[int, Float[np.ndarray, "concepts d_model"]]


def write_npz(path: Path, concepts: tuple[str, ...], layers: Layers) -> None:
    """One array ``layer_<n>`` [concepts, d_model] a layer, and the names as ``concepts``."""
    arrays = {f"layer_{layer}": np.asarray(values, np.float32) for layer, values in sorted(layers.items())}
    np.savez(path, concepts=np.array(concepts), **arrays)  # type: ignore[arg-type]


def write_gguf(
    folder: Path, concepts: tuple[str, ...], layers: Layers, norms: Mapping[int, float], model: str
) -> list[Path]:
    """One control-vector file a concept.

    Args:
        folder: gets ``<concept>.gguf``; what is no letter, digit, ``-`` or ``_`` of a name becomes ``_``.
        concepts: names of the rows.
        layers: from layer to vectors.
        norms: mean norm of the residual stream at each layer, the unit of steering strength.
        model: architecture the vectors are for, as llama.cpp names it (``model_hint``).

    Returns:
        The files; none when only layer 0 is given.
    """
    from gguf import GGUFWriter

    usable = {layer: values for layer, values in sorted(layers.items()) if layer > 0}
    if not usable:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index, concept in enumerate(concepts):
        path = folder / f"{file_stem(concept)}.gguf"
        writer = GGUFWriter(path, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model)
        writer.add_string("affectlens.concept", concept)
        for layer, values in usable.items():
            # A strength s of the study at one layer is the scale s * residual_norm / norm of llama.cpp and repeng.
            writer.add_float32(f"affectlens.direction.{layer}.norm", float(np.linalg.norm(values[index])))
            writer.add_float32(f"affectlens.direction.{layer}.residual_norm", float(norms[layer]))
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(usable))
        for layer, values in usable.items():
            writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(values[index], dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        files.append(path)
    return files


def family(model: ModelConfig) -> str:
    """The architecture that a control vector names as its model: what the model's own configuration calls it."""
    if model.name == "embedded":
        return "llama"
    folder = locate(model)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
    return str(values.get("model_type", model.name))


def read(path: Path, concepts: tuple[str, ...], layer: int, width: int) -> Float[np.ndarray, "concepts d_model"]:
    """The vectors of these concepts at one layer, from what this module or another tool wrote.

    Args:
        path: an ``.npz`` file as :func:`write_npz` writes it, or a folder of control-vector GGUF files named after
            their concepts.
        concepts: rows wanted, in this order.
        layer: whose residual stream they are for.
        width: d_model.

    Raises:
        UserError: a concept or the layer is missing, the width is another, or a vector is not finite or zero.
    """
    found = _from_folder(path, concepts, layer) if path.is_dir() else _from_npz(path, concepts, layer)
    if found.shape[-1:] != (width,):
        raise UserError(f"{path}: its vectors have {found.shape[-1]} numbers, the model's residual stream has {width}")
    norms = np.linalg.norm(found, axis=1)
    for concept, norm in zip(concepts, norms, strict=True):
        if not 0 < norm < np.inf:
            raise UserError(
                f"{path}: the direction of {concept!r} at layer {layer} is zero or not finite; export it again"
            )
    return found


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Whatever a library raises over a file of somebody else's, as one sentence: each has classes of its own."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"{path}: not a readable {kind} file ({error or type(error).__name__}); export it again"
        ) from None


def _from_npz(path: Path, concepts: tuple[str, ...], layer: int) -> np.ndarray:
    with _reading(path, ".npz"), np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    names = [str(name) for name in arrays.get("concepts", [])]
    missing = [concept for concept in concepts if concept not in names]
    if missing:
        raise UserError(f"{path}: has no direction of {missing[0]!r}; add it to `concepts`, or leave it out here")
    if f"layer_{layer}" not in arrays:
        raise UserError(f"{path}: has no array `layer_{layer}`; export that layer, or study one that is there")
    rows = arrays[f"layer_{layer}"]
    if rows.ndim != 2 or len(rows) != len(names) or rows.dtype.kind != "f":
        raise UserError(f"{path}: `layer_{layer}` is no matrix of numbers with a row for each of `concepts`")
    return rows[[names.index(concept) for concept in concepts]].astype(np.float64)


def _from_folder(folder: Path, concepts: tuple[str, ...], layer: int) -> np.ndarray:
    from gguf import GGUFReader

    rows = []
    for concept in concepts:
        path = folder / f"{file_stem(concept)}.gguf"
        if not path.is_file():
            raise UserError(f"{folder}: has no {path.name}; add the control vector, or leave the concept out")
        with _reading(path, "control-vector"):
            tensors = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
        if f"direction.{layer}" not in tensors:
            raise UserError(f"{path}: has no `direction.{layer}`; export that layer, or study one that is there")
        rows.append(np.array(tensors[f"direction.{layer}"], dtype=np.float64).reshape(-1))
        if rows[-1].shape != rows[0].shape:
            raise UserError(f"{path}: its vector is of another width than that of {concepts[0]!r}")
    return np.stack(rows)
