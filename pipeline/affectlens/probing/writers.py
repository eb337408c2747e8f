"""Other writers of a study: their stories, and how well what one writer's stories build reads another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.corpus.documents import Corpus
from affectlens.results import Average, Table, bounded, integer, number, text

if TYPE_CHECKING:
    from affectlens.activations import ActivationStore

CHOSEN = "chosen by the building writers"
"""How the row of a way that was chosen without the writer it reads begins."""
WITHIN = "AUROC within topics, mean over topics and concepts"
TOPICS = "its interval over topics"
CROSSED = "its interval over writers x topics"
BOTH = "its interval, combined of both"

METHODS = Table(
    "methods",
    "One way to read concepts: on one's own topics, on other writers' stories, and the other way round.",
    (
        text("method", "what reads"),
        text("metric", "what its metrics begin with"),
        *bounded("own", f"built on the study's stories, read on the topic left out: {WITHIN}", "AUROC", TOPICS),
        *bounded("other", f"built on the study's stories, read on the other writers': {WITHIN}", "AUROC", CROSSED),
        number(
            "home", "each other writer's own stories, read on the topic left out: how well theirs can be read", "AUROC"
        ),
        *bounded("loss", "own less other, of the same concepts", "AUROC", BOTH),
        *bounded("reverse", f"built on each other writer's stories, read on the study's: {WITHIN}", "AUROC", TOPICS),
        number("pairs", "built on one writer, read on another: mean over all writers read", "AUROC"),
        number("further_low", "where that figure of a further writer is expected: lower end", "AUROC"),
        number("further_high", "upper end", "AUROC"),
        *bounded("several", f"built on all writers but one, read on that one: {WITHIN}", "AUROC", CROSSED),
        number("several_further_low", "where that figure of a further writer is expected: lower end", "AUROC"),
        number("several_further_high", "upper end", "AUROC"),
        number("hit_own", "share of left-out stories whose own concept has the highest score", "share"),
        *bounded("hit_other", "the same on other writers' stories", "share", CROSSED),
    ),
    key=("method",),
)
CONCEPTS = Table(
    "concepts",
    "One concept read in one way.",
    (
        text("concept", "the emotion"),
        text("method", "what reads"),
        text("metric", "of the method"),
        number("own", "AUROC within left-out topics of the study's stories, mean over topics", "AUROC"),
        number("other", "AUROC within topics of the other writers, mean over topics", "AUROC"),
    ),
    key=("concept", "method"),
    averages=(Average("{metric}_own", "own"), Average("{metric}_other", "other")),
)
TRANSFER = Table(
    "transfer",
    "One way to read concepts, built on some writers' stories and read on one writer's.",
    (
        text("method", "what reads"),
        text("built", "the writers whose stories build; where it is the one that is read, without the topic read"),
        text("read", "the writer whose stories are read"),
        integer("concepts", "that both have"),
        integer("topics", "that are read"),
        integer("texts", "that are read"),
        *bounded("auroc", WITHIN, "AUROC", TOPICS, ends=""),
        number("home", "what the writer who is read builds reads on that writer's own left-out topics", "AUROC"),
        *bounded(
            "loss", "less than what the same writer builds reads on that writer's own left-out topics", "AUROC", BOTH
        ),
        *bounded("hit", "share of texts whose own concept has the highest score", "share", TOPICS),
        number("hit_chance", "what chance gives", "share"),
    ),
    key=("method", "built", "read"),
)
WAYS = Table(
    "ways",
    "One way to build directions that might read another writer better.",
    (
        text("way", "layer, pooling, what is taken out, and how directions are built"),
        text("built", "on one writer's stories, or on those of all writers but the one that is read"),
        *bounded("auroc", f"{WITHIN} of the writers read", "AUROC", CROSSED, ends=""),
        *bounded(
            "difference",
            "from difference of means built on one writer, paired within concepts and topics",
            "AUROC",
            CROSSED,
        ),
        number("further_low", "where the figure of a further writer is expected: lower end", "AUROC"),
        number("further_high", "upper end", "AUROC"),
    ),
    key=("way", "built"),
)


class Writers:
    """The other writers of a study.

    Attributes:
        folder: the result folder, with a folder for each writer in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Sorted; none where the study names no other writers."""
        return tuple(sorted(path.parent.name for path in self.folder.glob("*/documents.jsonl")))

    def corpus(self, name: str) -> Corpus:
        """A writer's stories of the studied emotions."""
        return Corpus(self.folder / name)

    def store(self, name: str) -> ActivationStore:
        """What the model computed on them, as :class:`affectlens.activations.ActivationStore` reads any cache."""
        from affectlens.activations import ActivationStore

        return ActivationStore(self.folder / name)


def metrics(methods: Sequence[Mapping[str, Any]], ways: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Flat metrics: every figure of every method, and of the way that was chosen."""
    values: dict[str, float] = {}
    for row in methods:
        bounds = {"": "", "_low": "_low", "_high": "_high"}
        for figure in ("own", "other", "loss", "reverse", "several"):
            values |= {f"{row['metric']}_{figure}{end}": row[f"{figure}{end}"] for end in bounds}
        values[f"{row['metric']}_hit_other"] = row["hit_other"]
    for row in ways:
        if row["way"].startswith(CHOSEN):
            values |= {"auroc_chosen": row["auroc"], "auroc_chosen_low": row["low"], "auroc_chosen_high": row["high"]}
    return {name: value for name, value in values.items() if value == value}
