"""Writes the explorer: one HTML file that opens from disk, with shards beside it where a study is large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affectlens.explorer import circuits, contents, tables
from affectlens.explorer.packing import bytes_of_largest, packed, shares
from affectlens.files import write_bytes
from affectlens.model.config import shown_name
from affectlens.report import palette
from affectlens.report.frame import saving_script
from affectlens.report.policy import checksums
from affectlens.run import manifest
from affectlens.use.readings import Readings

if TYPE_CHECKING:
    import pandas as pd

    from affectlens.use.opened import Opened

HERE = Path(__file__).parent
SCRIPTS = ("circuits.js", "page.js")
"""Of the page, as one."""
INLINE = 12_000_000
"""Characters of blocks that the page itself holds; more go into a folder beside it."""
LISTED = 25
"""Features listed for a concept."""
SAMPLES = 6
"""Sampled texts shown for a concept."""
ROWS = 8
"""Rows of readings in a block."""
TWENTIETHS = 20
"""Readings are kept as twentieths of a standard deviation, up to 6.35."""
EXPLAINED = ("explanations", "scores", "strata", "planted")
"""Tables of a run of explanations."""
TABLES = ("match/concepts", "directions/concepts", "directions/layers", "causal/verdicts")
"""Tables of the study that are shown as they are."""


@dataclass(frozen=True, eq=False)
class Explorer:
    """The explorer of a study.

    Attributes:
        base: the block that is needed first.
        blocks: the others, by name: ``features-<n>``, ``readings-<n>``, and ``circuits`` where the study has some.
        title: names the model and the layer.
    """

    base: str
    blocks: Mapping[str, str]
    title: str

    @property
    def size(self) -> int:
        """Characters of all blocks."""
        return len(self.base) + sum(map(len, self.blocks.values()))

    @cached_property
    def sharded(self) -> bool:
        """Whether the blocks lie beside the page."""
        return self.size > INLINE

    def write(self, path: Path) -> list[Path]:
        """Write the page, and ``<name>-data/`` where blocks lie beside it; gives the files written, the page first."""
        written, folder = [path], path.with_name(f"{path.stem}-data")
        if self.sharded:
            folder.mkdir(exist_ok=True)
            for name, block in self.blocks.items():
                written.append(folder / f"{name}.js")
                write_bytes(written[-1], f'receive("{name}","{block}");\n'.encode())
        write_bytes(path, self.html(folder.name).encode())
        return written

    def html(self, folder: str = "") -> str:
        """The page.

        Args:
            folder: name of the folder with the blocks, where they lie beside the page.
        """
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        script = saving_script() + "".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
        environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
        return environment.get_template("page.html.j2").render(
            title=self.title,
            style=palette.stylesheet("paper") + (HERE / "page.css").read_text(encoding="utf-8"),
            script=script,
            # Only this script runs; where blocks lie beside the page, scripts of its own folder do as well.
            sources=checksums(script) + " 'self' file:" * self.sharded,
            base=self.base,
            blocks={} if self.sharded else self.blocks,
            folder=folder if self.sharded else "",
        )


def build(
    found: contents.Contents, *, text: bool = True, explained: Sequence[Mapping[str, pd.DataFrame]] = ()
) -> Explorer:
    """The explorer of what was gathered of a study.

    Args:
        found: by :func:`~affectlens.explorer.contents.gather`; ``causal`` and sampled texts are shown where the study
            has them.
        text: whether the texts themselves are in it; without, tokens are shown as dots.
        explained: tables of each run of `affectlens explain`: ``explanations``, ``scores``, ``strata``, ``planted``.
    """
    study, texts, codes, detected = found.study, found.texts, found.codes, found.detected
    near, words, largest, decoder = found.near, found.words, found.largest, found.decoder
    corpus, match, readings = study.result("corpus"), study.result("match"), Readings.of(study)
    values = contents.read_tokens(study, readings, len(texts.documents))
    active = np.diff(codes.indptr)
    used, spelled = np.unique(words.tokens, return_inverse=True)
    spelled = spelled.reshape(words.tokens.shape)
    base = {
        "model": shown_name(study.model_name),
        "layer": study.layer,
        "concepts": list(corpus.emotions),
        "rows": readings.names,
        "features": len(decoder),
        "block": contents.BLOCK,
        "rowsInBlock": ROWS,
        "documents": texts.documents,
        "vocabulary": texts.vocabulary if text else [],
        "first": texts.first,
        "words": [study.tokenizer.decode([int(token)]) for token in used],
        "wordsEachWay": contents.WORDS,
        "chance": {"cosine": near.chance_cosine, "logit": words.chance},
        "neutralTokens": readings.neutral_tokens,
        "tables": {each: tables.shown(study, each) for each in TABLES},
        "confusions": tables.plain(contents.confusions(study)),
        "samples": contents.samples(study, SAMPLES) if text else {},
        "twins": bool(match.random_saes),
        "circuits": circuits.summary(study),
        "explained": [_explained(run) for run in explained],
        "stages": {name: _record(study, name).get("fingerprint", "")[:16] for name in contents.NEEDED},
    }
    with np.errstate(invalid="ignore"):
        best = np.nanargmax(np.nan_to_num(detected.selection, nan=-1.0), axis=1)
    at = np.arange(len(best))
    arrays = {
        "pieces": texts.pieces if text else np.zeros(0, np.uint32),
        "lengths": texts.lengths,
        "active": active.astype(np.uint32),
        "largest": largest,
        "best": best.astype(np.uint16),
        "bestSelection": shares(detected.selection[at, best]),
        "bestHeldOut": shares(detected.held_out[at, best]),
        "raised": spelled[:, : contents.WORDS].astype(np.uint32),
        "ranked": contents.ranked(detected, LISTED).astype(np.uint32),
        "chosen": np.asarray(match.best, dtype=np.uint32),
    }
    blocks = _feature_blocks(codes, largest, detected, near, spelled, words)
    whole = np.nan_to_num(values * TWENTIETHS).round().clip(-127, 127).astype(np.int8)
    for number, mine in enumerate(contents.blocks(values.shape[1], ROWS)):
        blocks[f"readings-{number}"] = packed({}, {"values": np.ascontiguousarray(whole[:, mine].T)})
    if base["circuits"]:
        blocks[circuits.BLOCK] = packed(*circuits.block(study))
    return Explorer(packed(base, arrays), blocks, f"{base['model']}, layer {base['layer']}")


def _feature_blocks(
    codes: Any,
    largest: np.ndarray,
    detected: contents.Detection,
    near: contents.Neighbours,
    spelled: np.ndarray,
    words: contents.Written,
) -> dict[str, str]:
    """What is shown of each feature; ``spelled`` holds its words as numbers in the list of words."""
    blocks = {}
    for number, mine in enumerate(contents.blocks(codes.shape[1], contents.BLOCK)):
        some = codes[:, mine]
        each = np.repeat(largest[mine], np.diff(some.indptr))
        blocks[f"features-{number}"] = packed(
            {},
            {
                "starts": some.indptr.astype(np.uint32),
                "steps": _steps(some).astype(np.uint32),
                "values": bytes_of_largest(some.data, each),
                "selection": shares(detected.selection[mine]),
                "heldOut": shares(detected.held_out[mine]),
                "low": shares(detected.low[mine]),
                "high": shares(detected.high[mine]),
                "twin": detected.twin[mine].astype(np.uint32),
                "twinSelection": shares(detected.twin_selection[mine]),
                "words": spelled[mine].astype(np.uint32),
                "logits": words.logits[mine].astype(np.float32),
                "nearest": near.nearest[mine].astype(np.uint32),
                "cosine": near.cosine[mine].astype(np.float32),
                "together": near.together[mine].astype(np.uint32),
                "jaccard": near.jaccard[mine].astype(np.float32),
                "lift": near.lift[mine].astype(np.float32),
            },
        )
    return blocks


def _steps(codes: Any) -> np.ndarray:
    """Tokens of each column as the first one and the steps from one to the next, which compress well."""
    steps = np.diff(codes.indices, prepend=0)
    starts = codes.indptr[:-1][np.diff(codes.indptr) > 0]
    steps[starts] = codes.indices[starts]
    return steps


def _record(study: Opened, stage: str) -> Mapping[str, Any]:
    return manifest.read(study.folder(stage)) or {}


def _explained(run: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """A run of explanations: by feature its words, what they score, and how able the judge was."""
    rows = {name: tables.plain(run[name].to_dict("records")) for name in EXPLAINED}
    features = {row["feature"]: {**row, "scores": [], "strata": []} for row in rows["explanations"]}
    for name in ("scores", "strata"):
        for row in rows[name]:
            features[row.pop("feature")][name].append(row)
    return {"features": list(features.values()), "planted": rows["planted"]}
