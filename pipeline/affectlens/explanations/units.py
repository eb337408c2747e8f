"""Features of a study as units: their activations at every token, and those of their random twins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from affectlens.explanations.passages import Unit
from affectlens.run import manifest
from affectlens.stage import derived_seed

if TYPE_CHECKING:
    from affectlens.explorer.contents import Contents


def features(found: Contents, numbers: Sequence[int]) -> list[Unit]:
    """SAE features, with the largest activation of their nearest decoder rows beside their own."""
    concepts = list(found.study.concepts)
    best = np.nan_to_num(found.detected.selection, nan=-1.0).argmax(axis=1)
    made = []
    for number in numbers:
        own = found.codes[:, [number]].toarray()[:, 0]
        near = found.codes[:, found.near.nearest[number]].max(axis=1).toarray().reshape(-1)
        made.append(Unit(f"feature {number}", concepts[int(best[number])], own, near))
    return made


def twins(found: Contents, numbers: Sequence[int]) -> dict[int, Unit]:
    """By feature, the feature of the study's first random SAE that is active in as many texts.

    Empty where the study has no random SAE. The cached residuals are encoded again; no text goes through the model.
    """
    match = found.study.result("match")
    if not match.random_saes or not len(numbers):
        return {}
    record = manifest.read(found.study.folder("match")) or {}
    # As the stage derives it: the random SAE is the one whose codes chose the twins.
    random = found.study.sae.random(derived_seed(int(record["seed"]), "match", match.random_saes[0]))
    rows, first = found.study.activations.tokens(found.study.layer), found.texts.first
    chosen = [int(found.detected.twin[number]) for number in numbers]
    values = np.concatenate(
        [random.encode(rows.of(each)[first:])[:, chosen] for each in range(len(found.texts.documents))]
    )
    concepts = list(found.study.concepts)
    best = np.nan_to_num(found.detected.twin_selection, nan=-1.0).argmax(axis=1)
    return {
        number: Unit(f"twin of feature {number}", concepts[int(best[number])], np.ascontiguousarray(values[:, place]))
        for place, number in enumerate(numbers)
    }
