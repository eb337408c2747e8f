"""All features in the layouts of Neuronpedia's import and of SAEDashboard's batches.

Field names, groups of passages (a top group, then equal-width intervals of activation from 0 to the largest) and the
code of the top group are theirs. What a study does not have (correlated neurons, gradients) is left at their defaults.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from affectlens import __version__
from affectlens.errors import UserError
from affectlens.explorer.contents import Contents, blocks
from affectlens.files import write_bytes, write_json
from affectlens.model.config import shown_name

BATCH = 128
"""Features a file; what Neuronpedia takes at once."""
TOP = 12
"""Passages of the top group."""
INTERVALS, OF_EACH = 5, 2
"""Intervals of activation, and passages of each."""
TOP_GROUP = (-1.0, 99.0, -1.0)
"""``bin_min``, ``bin_max`` and ``bin_contains`` of the top group."""
AROUND = 24
"""Tokens before and after the strongest of a passage."""
BARS = 40
"""Of a histogram of activations."""
TYPE = "affectlens_held-out"
"""What Neuronpedia calls the way in which explanations came about."""
SET = "affectlens"
"""Name of the source set; a source is ``<layer>-<set>``."""


@dataclass(frozen=True)
class Passage:
    """A stretch of a text around its strongest token.

    Attributes:
        group: least and largest activation of its group, and the share of active texts that the group holds.
        tokens: pieces of text.
        values: activation at each; 0 before the first encoded token.
        peak: place of the strongest.
        document: index of the text.
    """

    group: tuple[float, float, float]
    tokens: list[str]
    values: list[float]
    peak: int
    document: int


def passages(found: Contents, feature: int) -> list[Passage]:
    """The passages of a feature, one a text and group: the strongest, then some of every interval."""
    span = slice(found.codes.indptr[feature], found.codes.indptr[feature + 1])
    tokens, values = found.codes.indices[span], found.codes.data[span]
    if not len(tokens):
        return []
    document = np.searchsorted(found.starts, tokens, side="right") - 1
    order = np.lexsort((tokens, -values, document))
    peaks = order[np.unique(document[order], return_index=True)[1]]
    peaks = peaks[np.argsort(-values[peaks], kind="stable")]
    largest, chosen = float(found.largest[feature]), [(TOP_GROUP, each) for each in peaks[:TOP]]
    edges = np.linspace(0, largest, INTERVALS + 1)
    for low, high in pairwise(edges):
        mine = peaks[(values[peaks] > low) & (values[peaks] <= high)]
        spread = mine[np.unique(np.linspace(0, len(mine) - 1, OF_EACH).round().astype(int))] if len(mine) else []
        chosen += [((float(low), float(high), len(mine) / len(peaks)), each) for each in spread]
    whole = np.concatenate([[0], np.cumsum(found.texts.lengths.astype(np.int64))])
    made = []
    for group, each in chosen:
        text = int(document[each])
        position = int(tokens[each] - found.starts[text]) + found.texts.first
        start, end = max(0, position - AROUND), min(int(found.texts.lengths[text]), position + AROUND + 1)
        mine, row = document == text, np.zeros(end - start)
        places = tokens[mine] - found.starts[text] + found.texts.first - start
        inside = (places >= 0) & (places < end - start)
        row[places[inside]] = values[mine][inside]
        pieces = found.texts.pieces[whole[text] + start : whole[text] + end]
        made.append(
            Passage(
                group,
                [found.texts.vocabulary[int(piece)] for piece in pieces],
                [float(f"{value:.6g}") for value in row],
                position - start,
                text,
            )
        )
    return made


def _statistics(found: Contents, feature: int) -> dict[str, Any]:
    """The fields of a feature that both layouts share."""
    span = slice(found.codes.indptr[feature], found.codes.indptr[feature + 1])
    heights, edges = np.histogram(found.codes.data[span], bins=BARS, range=(0, float(found.largest[feature]) or 1.0))
    half = found.words.tokens.shape[1] // 2
    spelled = [found.study.tokenizer.decode([int(token)]) for token in found.words.tokens[feature]]
    logits = [round(float(value), 4) for value in found.words.logits[feature]]
    return {
        "neuron_alignment_indices": [], "neuron_alignment_values": [], "neuron_alignment_l1": [],
        "correlated_neurons_indices": [], "correlated_neurons_pearson": [], "correlated_neurons_l1": [],
        "correlated_features_indices": [], "correlated_features_pearson": [], "correlated_features_l1": [],
        "neg_str": spelled[half:], "neg_values": logits[half:], "pos_str": spelled[:half], "pos_values": logits[:half],
        "frac_nonzero": (span.stop - span.start) / found.codes.shape[0],
        "freq_hist_data_bar_heights": heights.tolist(),
        "freq_hist_data_bar_values": [round(float(edge), 4) for edge in (edges[:-1] + edges[1:]) / 2],
        "logits_hist_data_bar_heights": [], "logits_hist_data_bar_values": [], "decoder_weights_dist": [],
    }  # fmt: skip


def _lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()
    write_bytes(path, gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


def _identifier(*parts: Any) -> str:
    """25 letters and digits that these parts always give."""
    return "c" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def require_creator(creator: str) -> None:
    """Refuse records of nobody.

    Raises:
        UserError: no creator is named.
    """
    if not creator:
        raise UserError("Neuronpedia's records name who made them; give --creator with your id there")


def neuronpedia(found: Contents, folder: Path, creator: str, explained: Sequence[Mapping[str, Any]] = ()) -> Path:
    """``<folder>/<model>/<layer>-affectlens/``: release, model, source set, source, batches of features and passages.

    Args:
        found: of the study.
        folder: that gets the files.
        creator: the user's id there; every record carries it.
        explained: rows of the tables ``explanations``; those without words are left out.

    Returns:
        The folder of the source.

    Raises:
        UserError: no creator is named.
    """
    require_creator(creator)
    study = found.study
    model = re.sub(r"[^\w.-]+", "-", shown_name(study.model_name).rpartition("/")[2]).lower()
    source = f"{study.layer}-{SET}"
    out = folder / model / source
    for part in ("features", "activations"):
        (out / part).mkdir(parents=True, exist_ok=True)
    owner, where = {"creatorId": creator}, {"modelId": model, "layer": source}
    described = (
        f"SAE features of {shown_name(study.model_name)} after block {study.layer}, on stories of emotion concepts"
    )
    _lines(
        out / "release.jsonl", [{"name": SET, "description": described, "creatorName": creator, **owner, "urls": []}]
    )
    _lines(out / "model.jsonl", [{"id": model, "instruct": "instruct" in model, **owner, "displayName": model,
                                  "dimension": found.decoder.shape[1], "inferenceEnabled": False}])  # fmt: skip
    shown = {"visibility": "PRIVATE", "hasDashboards": True}
    _lines(out / "sourceset.jsonl", [{"modelId": model, "name": SET, "creatorName": creator, **owner, **shown,
                                      "description": described, "type": "SAE", "releaseName": SET}])  # fmt: skip
    _lines(out / "source.jsonl", [{"id": source, "modelId": model, "setName": SET, **owner, **shown,
                                   "inferenceEnabled": False, "dataset": f"affectlens {__version__}: its texts",
                                   "num_prompts": len(found.texts.documents)}])  # fmt: skip
    for number, mine in enumerate(blocks(len(found.decoder), BATCH)):
        features, activations = [], []
        for index in range(mine.start, mine.stop):
            features.append({
                **where, "index": str(index), "sourceSetName": SET, **owner,
                "maxActApprox": float(found.largest[index]),
                "hasVector": True, "vector": [round(float(each), 6) for each in found.decoder[index]],
                "vectorLabel": None, "vectorDefaultSteerStrength": float(found.largest[index]),
                "hookName": f"blocks.{study.layer}.hook_resid_post",
                "topkCosSimIndices": found.near.nearest[index].tolist(),
                "topkCosSimValues": [round(float(each), 4) for each in found.near.cosine[index]],
                **_statistics(found, index),
            })  # fmt: skip
            for place, each in enumerate(passages(found, index)):
                low, high, share = each.group
                activations.append({
                    "id": _identifier(model, source, index, place), "tokens": each.tokens, "index": str(index), **where,
                    "maxValue": each.values[each.peak], "maxValueTokenIndex": each.peak, "minValue": min(each.values),
                    "values": each.values, **owner, "dataSource": SET, "dataIndex": str(each.document), "dfaValues": [],
                    "dfaTargetIndex": None, "dfaMaxValue": None, "lossValues": [], "logitContributions": None,
                    "binMin": low, "binMax": high, "binContains": share, "qualifyingTokenIndex": each.peak,
                })  # fmt: skip
        _lines(out / "features" / f"batch-{number}.jsonl.gz", features)
        _lines(out / "activations" / f"batch-{number}.jsonl.gz", activations)
    told = [
        {
            "id": _identifier(model, source, "explanation", place), **where, "index": str(row["feature"]),
            "description": row["text"], "authorId": creator, "typeName": TYPE, "explanationModelName": row["author"],
            "notes": f"{row['verdict']}; judge {row['judge']}",
        }
        for place, row in enumerate(explained)
        if row["text"]
    ]  # fmt: skip
    if told:
        (out / "explanations").mkdir(exist_ok=True)
        _lines(out / "explanations" / "batch-0.jsonl.gz", told)
    return out


def saedashboard(found: Contents, folder: Path, creator: str = "", explained: Sequence[Mapping[str, Any]] = ()) -> Path:
    """``<folder>/batch-<n>.json``: features with their passages, as SAEDashboard's Neuronpedia runner writes them.

    Args:
        found: of the study.
        folder: that gets the files.
        creator, explained: not in this layout.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, batch in enumerate(_batches(found)):
        write_json(folder / f"batch-{number}.json", batch)
    return folder


def _batches(found: Contents) -> Iterator[dict[str, Any]]:
    study = found.study
    for mine in blocks(len(found.decoder), BATCH):
        features = [
            {
                "feature_index": index,
                **_statistics(found, index),
                "activations": [
                    {
                        "bin_min": each.group[0],
                        "bin_max": each.group[1],
                        "bin_contains": each.group[2],
                        "tokens": each.tokens,
                        "values": each.values,
                        "qualifying_token_index": each.peak,
                        "dfa_values": [],
                        "dfa_maxValue": 0.0,
                        "dfa_targetIndex": 0,
                    }
                    for each in passages(found, index)
                ],
            }
            for index in range(mine.start, mine.stop)
        ]
        yield {
            "model_id": shown_name(study.model_name), "layer": study.layer, "sae_set": SET, "sae_id_suffix": "",
            "features": features,
        }  # fmt: skip


FORMATS: dict[str, Callable[[Contents, Path, str, Sequence[Mapping[str, Any]]], Path]] = {
    "neuronpedia": neuronpedia,
    "saedashboard": saedashboard,
}
