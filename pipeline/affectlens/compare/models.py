"""Two models that have read the same texts: how their activations, directions, geometry, features and outputs differ.

Each model has a study of its own, over the same texts and concepts (a base model and its tuned version, say). Whatever
is compared belongs to identical tokens, and only to tokens of the texts: marks of a chat template are no rows of the
cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.errors import ConfigError, UserError
from affectlens.probing import differences
from affectlens.results import format
from affectlens.stats import Estimate, correlation

if TYPE_CHECKING:
    from affectlens.use.opened import Opened

ROWS = 20_000
"""Token rows on which the SAE is tried, evenly spaced."""
PERMUTATIONS = 2000


def between(base: Opened, tuned: Opened, *, outputs: bool = False, seed: int = 0) -> dict[str, Any]:
    """How the second study's model differs from the first's, at the first study's layer.

    Args:
        base, tuned: two studies with finished activations over the same texts.
        outputs: whether both models are loaded for the black-box baseline: the change of each story's log-probability.
        seed: of splits and draws.

    Returns:
        ``concepts`` (rows of :func:`affectlens.probing.differences.differences`), ``geometry``, ``ratings``, ``sae``
        (where the first study has one and both keep token rows) and ``outputs``.

    Raises:
        UserError: the texts, their tokens, the layers or the widths are not the same in both.
    """
    layer = base.layer
    rows = same_texts(base, tuned, layer)
    corpus, rng = base.result("corpus"), np.random.default_rng(seed)
    concepts, labels = corpus.emotions, corpus.labels(rows)
    topics = np.array([corpus.documents[row].topic for row in rows])
    first, second = (each.activations.pooled(layer)[rows].astype(np.float64) for each in (base, tuned))
    kept = differences.complete_topics(labels, topics)
    if len(np.unique(topics[kept])) < 4:
        raise UserError("compare --models: fewer than four topics have stories of every concept; study such topics")
    found: dict[str, Any] = {"layer": layer, "topics": len(np.unique(topics[kept])), "stories": len(kept)}
    found["concepts"] = list(differences.differences(first, second, labels, topics, concepts, rng))
    pieces = [differences.by_topic(each[kept], labels[kept], topics[kept]) for each in (first, second)]
    found["geometry"] = differences.geometry(pieces[0], pieces[1], rng)
    found["ratings"] = _ratings(concepts, [each.mean(axis=0) for each in pieces], rng)
    if "sae" in base.folders and all(layer in each.activations.token_layers for each in (base, tuned)):
        found["sae"] = _features(base, tuned, layer)
    if outputs:
        change = np.array(_losses(base, rows.tolist())) - np.array(_losses(tuned, rows.tolist()))
        said = differences.of_concepts(change, labels, topics)
        shifted = [row["own_total"].value for row in found["concepts"]]
        r = correlation(np.array([each.value for each in said]), np.array(shifted), permutations=PERMUTATIONS, rng=rng)
        found["outputs"] = {"concepts": dict(zip(concepts, said, strict=True)), "r_with_change": r.estimate, "p": r.p}
    return found


def same_texts(base: Opened, tuned: Opened, layer: int) -> np.ndarray:
    """Indices of the stories, if both models have read the very same tokens at this layer.

    Raises:
        UserError: what differs, and what to do.
    """
    corpora = [each.result("corpus") for each in (base, tuned)]
    texts = [[(text.text, text.emotion, text.topic) for text in corpus.documents] for corpus in corpora]
    if texts[0] != texts[1] or corpora[0].emotions != corpora[1].emotions:
        raise UserError(
            "compare --models: the two studies are not of the same texts and concepts; give both the same `corpus`"
        )
    stores = [each.activations for each in (base, tuned)]
    for name in ("documents/index", "rows/token"):
        if not np.array_equal(stores[0].column(name), stores[1].column(name)):
            raise UserError(
                "compare --models: the two models cut the texts into different tokens, so no activation of the one "
                "belongs to one of the other; compare models with the same tokenizer"
            )
    if any(layer not in store.layers for store in stores) or stores[0].d_model != stores[1].d_model:
        raise UserError(
            f"compare --models: layer {layer} of the first study is not cached in the second, or is of another width; "
            "give both the same `model.layer`, and models of the same architecture"
        )
    return np.array(corpora[0].indices("train", "validation", "test"))


def _ratings(concepts: Sequence[str], vectors: Sequence[np.ndarray], rng: np.random.Generator) -> dict[str, Any]:
    """How well each model's directions predict ratings of concepts that were left out: r, with p by permutation."""
    from affectlens.corpus.ratings import ratings_path, read_ratings
    from affectlens.probing.axes import AXES

    ratings, found = read_ratings(ratings_path("embedded")), {}
    rated = [index for index, concept in enumerate(concepts) if concept in ratings]
    for axis in AXES if len(rated) >= 8 else ():
        values = np.array([ratings[concepts[index]][axis] for index in rated])
        for name, own in zip(("base", "tuned"), vectors, strict=True):
            said = differences.predicted_ratings(own[rated], values)
            r = correlation(said, values, permutations=PERMUTATIONS, rng=rng)
            found[f"{axis}, {name}"] = {"r": r.estimate, "p": r.p}
    return found


def _features(base: Opened, tuned: Opened, layer: int) -> dict[str, Any]:
    """The base study's SAE on both models, and how strongly each of its features is there in the tuned one."""
    stores = [each.activations.tokens(layer) for each in (base, tuned)]
    chosen = np.unique(np.linspace(0, len(stores[0]) - 1, min(ROWS, len(stores[0]))).astype(np.int64))
    rows = [store.read(chosen) for store in stores]
    sae = base.sae
    usual = differences.usual_rows(rows[0]) & differences.usual_rows(rows[1])
    scaling = differences.latent_scaling(sae.encode(rows[0][usual]), sae.decoder, *(each[usual] for each in rows))
    known = scaling[np.isfinite(scaling)]
    return {
        "base": differences.transfer(sae.encode, sae.decode, rows[0]),
        "tuned": differences.transfer(sae.encode, sae.decode, rows[1]),
        "features_scaled": len(known),
        "scaling_median": float(np.median(known)) if len(known) else math.nan,
        "lost": int((known < 0.5).sum()),
        "doubled": int((known > 2).sum()),
        "scaling": scaling,
    }


def _losses(study: Opened, rows: Sequence[int]) -> list[float]:
    """Nats a token of every story, after nothing but the begin token."""
    from affectlens.model.sampling import losses

    subject = study.subject
    texts = [subject.encode(study.result("corpus").documents[row].text) for row in rows]
    lead = subject.led([])
    # Without a begin token the first token of each text stands before what is scored.
    if lead:
        return losses(subject, lead, texts, 2048)
    return [losses(subject, text[:1], [text[1:]], 2048)[0] for text in texts]


def lines(found: Mapping[str, Any]) -> list[str]:
    """What was found, for a terminal: a header, a row a concept, and a sentence for each of the rest."""
    said = [
        f"Layer {found['layer']}, {found['stories']} stories of {found['topics']} topics; intervals over topics. "
        "Terms sum to the change of the reading; own: own stories less the others.",
        "concept | change on all stories: activation + rotation + interaction | own: total | cosine, of its ceiling | "
        "p of the shift",
    ]
    for row in found["concepts"]:
        terms = " + ".join(format.number(row[f"all_{name}"].value) for name in differences.TERMS[:3])
        said.append(
            f"{row['concept']} | {format.measured(row['all_total'])}: {terms} | {format.measured(row['own_total'])} | "
            f"{format.number(row['cosine'])}, {format.measured(row['corrected_cosine'])} | "
            f"{format.p_value(row['p_shift'])}"
        )
    shape = found["geometry"]
    said.append(
        f"The geometry of the concepts agrees with r {format.number(shape.plain)}; beside its reliability in each "
        f"model ({format.number(shape.base)}, {format.number(shape.tuned)}) that is {format.measured(shape.corrected)}."
    )
    for name, each in found["ratings"].items():
        said.append(
            f"Ratings of concepts left out ({name}): r {format.measured(each['r'])}, p {format.p_value(each['p'])}."
        )
    if "sae" in found:
        sae = found["sae"]
        for name in ("base", "tuned"):
            said.append(
                f"The base model's SAE on the {name} model leaves {format.number(sae[name].unexplained)} of the "
                f"variance, with {format.number(sae[name].active, 1)} features a token."
            )
        said.append(
            f"Of {sae['features_scaled']} features {sae['lost']} are there at less than half their strength and "
            f"{sae['doubled']} at more than twice; the median scale is {format.number(sae['scaling_median'])}."
        )
    if "outputs" in found:
        r = found["outputs"]["r_with_change"]
        said.append(
            "From outputs alone (change of each story's log-probability) the change of the readings is known with r "
            f"{format.measured(r)}, p {format.p_value(found['outputs']['p'])}."
        )
    return said


def show(studies: Sequence[str], changes: Sequence[str], to_json: str | None, *, outputs: bool = False) -> None:
    """What ``affectlens compare --models`` prints and writes.

    Args:
        studies: the base model's study, and the tuned one's.
        changes: ``key=value`` for both.
        to_json: a path; ``-`` prints JSON alone.
        outputs: as in :func:`between`.
    """
    import json
    from pathlib import Path

    from affectlens.use.opened import Opened, finished

    if len(studies) != 2:
        raise ConfigError("compare --models: give two studies, the base model's and the tuned one's")
    first, second = (Opened(*finished(each, *changes)) for each in studies)
    found = between(first, second, outputs=outputs)
    text = json.dumps(plain(found), indent=1, ensure_ascii=False) + "\n"
    if to_json not in (None, "-"):
        Path(str(to_json)).write_text(text, encoding="utf-8")
    print(text if to_json == "-" else "\n".join(lines(found)))


def plain(value: Any) -> Any:
    """The same for JSON: estimates as value, low and high; null for what is not defined."""
    if isinstance(value, Estimate):
        return {name: plain(getattr(value, name)) for name in ("value", "low", "high")}
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(each) for each in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
