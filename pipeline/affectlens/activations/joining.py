"""Joining shards: an index, and a virtual HDF5 file in which they read as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py

from affectlens.activations.format import FORMAT, FORMAT_VERSION, INDEX, SHARD, group
from affectlens.errors import DamagedResult, UserError
from affectlens.files import open_hdf5, write_json

PER_SHARD = ("documents/first_row",)
"""Datasets that mean something within their shard alone; the joined file leaves them out."""


def write_index(folder: Path, parts: Iterable[str], shards: str = "parts") -> dict[str, Any]:
    """Write ``index.json`` and the virtual file of some parts.

    Args:
        folder: the result in the making, or a folder in it.
        parts: names of the parts, in order.
        shards: where the parts lie, as seen from the folder.

    Returns:
        The index.

    Raises:
        DamagedResult: a shard is gone or cut short.
        UserError: shards hold different number types, layers or settings.
    """
    described = [_describe(folder, f"{shards}/{name}/{SHARD}") for name in parts]
    _require_alike(described)
    first, listed = described[0], [each["shard"] for each in described]
    norms = {
        layer: {site: sum(each["norm_sum"][layer][site] for each in described) for site in sites}
        for layer, sites in first["norm_sum"].items()
    }
    index = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **first["attributes"],
        "dtype": first["dtype"],
        "d_model": first["d_model"],
        "token_sites": first["token_sites"],
        "pooled_sites": first["pooled_sites"],
        "rows": sum(shard["rows"] for shard in listed),
        "documents": sum(shard["documents"] for shard in listed),
        "norm_sum": norms,
        "shards": listed,
    }
    write_json(folder / INDEX, index)
    _write_virtual(folder, described)
    return index


def _describe(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        with h5py.File(path, "r") as file:
            return _contents(file, name, path.stat().st_size)
    except OSError as error:
        raise DamagedResult(
            f"{path}: the shard cannot be read ({_reason(error)}); remove its folder and run again"
        ) from None


def _require_alike(described: Sequence[Mapping[str, Any]]) -> None:
    """Shards read as one only if all of them mean the same: with two number types, half of the rows would be garbage.

    Raises:
        UserError: names the shard, what differs and what to do.
    """
    first = described[0]
    for each in described[1:]:
        for what in ("dtype", *first["attributes"], "token_sites", "pooled_sites"):
            ours, theirs = (found["attributes"].get(what, found.get(what)) for found in (first, each))
            if ours == theirs:
                continue
            remedy = (
                "they come from machines that compute in different types: set `model.dtype` and `activations.storage` "
                f"to one type, such as {ours}, and run again"
                if what in ("dtype", "computed_in")
                else "remove its folder and run again"
            )
            raise UserError(
                f"{each['shard']['file']}: its {what} is {theirs}, that of {first['shard']['file']} is {ours}; {remedy}"
            )


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is gone"
    return "it is cut short" if "truncated" in str(error) else str(error.strerror or error)


def _contents(file: h5py.File, name: str, size: int) -> dict[str, Any]:
    datasets: dict[str, h5py.Dataset] = {}
    file.visititems(lambda path, item: datasets.update({path: item}) if isinstance(item, h5py.Dataset) else None)
    sites = sorted({(int(path.split("/")[1]), path.split("/")[2]) for path in datasets if path.startswith("layers/")})
    stored = [(layer, site) for layer, site in sites if f"{group(layer, site)}/rows" in datasets]
    pooled = [(layer, site) for layer, site in sites if any(_is_pooled(path, layer, site) for path in datasets)]
    tokens = {path: data for path, data in datasets.items() if path.endswith("/rows")}
    norms: dict[str, dict[str, float]] = {}
    for layer, site in sites:
        norms.setdefault(str(layer), {})[site] = float(datasets[f"{group(layer, site)}/norms"][...].sum())
    types = sorted({str(data.attrs["dtype"]) for data in tokens.values()}) or ["float32"]
    if len(types) > 1:
        raise DamagedResult(f"{name}: rows of {' and '.join(types)} in one shard; remove its folder and run again")
    attributes = {key: _plain(value) for key, value in file.attrs.items() if not key.startswith("format")}
    return {
        "shard": {
            "file": name,
            "bytes": size,
            "rows": int(datasets["rows/token"].shape[0]),
            "documents": int(datasets["documents/index"].shape[0]),
            "dtype": types[0],
            "offsets": {path: data.id.get_offset() for path, data in tokens.items()},
        },
        "attributes": attributes,
        "token_sites": [list(site) for site in stored],
        "pooled_sites": [list(site) for site in pooled],
        "dtype": types[0],
        "d_model": attributes["d_model"],
        "norm_sum": norms,
        "shapes": {path: data.shape for path, data in sorted(datasets.items()) if path not in PER_SHARD},
    }


def _is_pooled(path: str, layer: int, site: str) -> bool:
    return path.startswith(f"{group(layer, site)}/") and not path.endswith(("/rows", "/norms"))


def _plain(value: Any) -> Any:
    """An HDF5 attribute as JSON has it."""
    if isinstance(value, str):
        return value
    return [_plain(item) for item in value] if getattr(value, "shape", ()) else value.item()


def _write_virtual(folder: Path, described: Sequence[Mapping[str, Any]]) -> None:
    first = described[0]
    with (
        open_hdf5(folder / SHARD, "w", libver=("v110", "v110")) as whole,
        h5py.File(folder / first["shard"]["file"], "r") as example,
    ):
        whole.attrs.update({"format": FORMAT, "format_version": FORMAT_VERSION, **first["attributes"]})
        for name in first["shapes"]:
            data = example[name]
            assert isinstance(data, h5py.Dataset)
            shards = [(each["shard"]["file"], each["shapes"][name]) for each in described]
            _join(whole, name, data.id.get_type(), shards).attrs.update(dict(data.attrs))


def _join(whole: h5py.File, name: str, kind: h5py.h5t.TypeID, shards: Sequence[tuple[str, Any]]) -> h5py.Dataset:
    """A virtual dataset of the same dataset in several files, one after the other along the first axis."""
    total, rest = sum(shape[0] for _, shape in shards), shards[0][1][1:]
    # h5py's own call writes the time of day into the file; equal runs have to give equal bytes.
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    target, start = h5py.h5s.create_simple((total, *rest)), 0
    for file, shape in shards:
        if shape[0]:
            target.select_hyperslab((start, *(0 for _ in rest)), shape)
            properties.set_virtual(target, f"./{file}".encode(), name.encode(), h5py.h5s.create_simple(shape))
        start += shape[0]
    target.select_all()
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    return h5py.Dataset(h5py.h5d.create(whole.id, name.encode(), kind, target, properties, links))
