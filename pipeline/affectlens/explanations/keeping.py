"""Where explanations lie, as a result beside those of the stages: ``cache/explain/<fingerprint>/``."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from affectlens import results, stats
from affectlens.explanations import tables
from affectlens.explanations.explaining import CONSTANT, EMOTION, OTHER, OWN, TOKENS, TWIN, Explained, verdict
from affectlens.files import write_json
from affectlens.run import manifest

if TYPE_CHECKING:
    import pandas as pd

    from affectlens.use.opened import Opened

FOLDER = "explain"
"""Beside the folders of the stages."""
VERSION = 1
"""Raised when the same answers give other figures, or other questions are asked."""
ANSWERS = "answers.jsonl"
"""Every answer of every judge, by a digest of judge and question."""
ITEMS = "items.json"
FLOORS = (EMOTION, TOKENS, OTHER, TWIN, CONSTANT)


def home(study: Opened) -> Path:
    """The folder of all explanations of a cache."""
    return study.folder("match").parent.parent / FOLDER


def fingerprint(study: Opened, config: Mapping[str, Any]) -> str:
    """Of the features that are explained, and of all that decides how."""
    record = manifest.read(study.folder("match")) or {}
    whole = {"version": VERSION, "needs": {"match": record.get("fingerprint")}, "config": config}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def write(study: Opened, config: Mapping[str, Any], ran: Explained, began: manifest.Began) -> Path:
    """Keep what came of it; the folder appears when it is complete.

    Args:
        study: whose features were explained.
        config: what decides the result: judge, writer, features, items, seed.
        ran: what came of it.
        began: when.

    Returns:
        The folder.
    """
    digest = fingerprint(study, config)
    folder = home(study) / digest[:16]
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for table, rows in _rows(ran, str(config["judge"]["name"])).items():
        results.write(partial, table, rows)
    write_json(partial / manifest.METRICS, metrics(ran))
    write_json(partial / ITEMS, _items(ran))
    match = manifest.read(study.folder("match")) or {}
    files = manifest.seal_files(partial)
    record = {
        "stage": FOLDER, "version": VERSION, "fingerprint": digest, "config": dict(config),
        "needs": {"match": match["fingerprint"]}, "parts": {}, "files": files,
        "sizes": {name: (partial / name).stat().st_size for name in files},
        "run": manifest.circumstances(began, "cpu", 1), "versions": manifest.versions(),
    }  # fmt: skip
    manifest.write(partial, record)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return folder


def _items(ran: Explained) -> dict[str, Any]:
    """Which passages each explanation was written from and scored on, by digests of their words."""
    key = ran.plan.windows.key
    return {
        str(each.feature): {
            "written_from": [key(window) for window in each.own.examples],
            "scored_on": [[key(item.window), item.stratum] for item in each.own.items],
        }
        for each in ran.plan.subjects
    }


def _rows(ran: Explained, judge: str) -> dict[results.Table, list[dict[str, Any]]]:
    explained = [
        {
            "feature": each.feature,
            "concept": each.own.unit.concept,
            "text": ran.texts.get(each.feature, ""),
            "author": ran.authors.get(each.feature, ""),
            "judge": judge,
            "words": " ".join(each.listed),
            "examples": len(each.own.examples),
            "items": len(each.own.items),
            "p_emotion_word": ran.p.get((each.feature, EMOTION)),
            "p_token_list": ran.p.get((each.feature, TOKENS)),
            "verdict": verdict(ran, each),
        }
        for each in ran.plan.subjects
    ]
    scores = [
        {
            "feature": feature, "test": test, "description": description, "auroc": each.auroc, "low": each.low,
            "high": each.high, "balanced_accuracy": each.balanced, "items": each.items, "failures": each.failures,
        }
        for (feature, test, description), each in ran.scores.items()
    ]  # fmt: skip
    strata = [
        {"feature": feature, "stratum": stratum, "auroc": area, "items": items}
        for (feature, stratum), (area, items) in ran.strata.items()
    ]
    planted = [
        {
            "kind": each.kind, "name": each.name, "test": each.test, "auroc": own.auroc,
            "balanced_accuracy": own.balanced, "items": own.items, "failures": own.failures,
            "able": ran.qualified.able[each.test],
        }
        for each, own in ran.qualified.scores
    ]  # fmt: skip
    return {
        tables.EXPLANATIONS: explained,
        tables.SCORES: scores,
        tables.STRATA: strata,
        tables.PLANTED: planted,
    }


def metrics(ran: Explained) -> dict[str, float]:
    """Means over features with intervals over features; differences to every floor."""
    found: dict[str, float] = {f"planted_{test}_auroc": mean for test, mean in ran.qualified.mean.items()}
    features = sorted({feature for feature, _, _ in ran.scores})
    for test in ("detection", "fuzzing", "output"):
        for description in (OWN, *FLOORS):
            mine = {f: ran.scores[f, test, description].auroc for f in features if (f, test, description) in ran.scores}
            mine = {f: area for f, area in mine.items() if not math.isnan(area)}
            if not mine:
                continue
            name = f"{test}_{description.replace(' ', '_')}"
            found |= _interval(name, list(mine.values()))
            if description != OWN:
                gaps = [ran.scores[f, test, OWN].auroc - area for f, area in mine.items()]
                found |= _interval(f"{test}_own_minus_{description.replace(' ', '_')}", gaps)
    asked = [*ran.scores.values(), *(each for _, each in ran.qualified.scores)]
    found["failures"] = sum(each.failures for each in asked) / max(1, sum(each.items for each in asked))
    found["features"] = float(len(ran.plan.subjects))
    found["features_scored"] = float(len(features))
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _interval(name: str, values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return {name: fmean(values)}
    import numpy as np

    whole = stats.bootstrap_mean(np.array(values), rng=0)
    return {name: whole.value, f"{name}_low": whole.low, f"{name}_high": whole.high}


def of(study: Opened) -> Iterator[tuple[Path, dict[str, pd.DataFrame]]]:
    """The kept explanations of a study's features, by folder: their tables; those of other studies are passed over."""
    mine = (manifest.read(study.folder("match")) or {}).get("fingerprint")
    for path in sorted(home(study).glob(f"*/{manifest.NAME}")):
        record = manifest.read(path.parent)
        if record and record["needs"].get("match") == mine:
            yield path.parent, results.read_all(path.parent)
