"""Other writers: what holds of the reading beyond the writer whose stories built."""

from __future__ import annotations

from affectlens.report import draw
from affectlens.report.draw import Chart, marks
from affectlens.report.evidence import BASELINE, Evidence
from affectlens.report.registry import Said, figure, finding, table
from affectlens.results.format import finite


@figure("writers", "writers/methods")
def writers_auroc(evidence: Evidence) -> Chart:
    """Dot plot: mean AUROC of each method on left-out topics and on other writers' stories, with intervals."""
    rows = draw.ranked(evidence.rows("writers/methods"), "other")
    sides = {
        side: [{**row, "low": row[f"{side}_low"], "high": row[f"{side}_high"]} for row in rows]
        for side in ("own", "other")
    }
    own = marks("Own topics", sides["own"], "own", "direction", "circle-open", at="method")
    other = marks("Other writers", sides["other"], "other", "feature", size=11, at="method")
    return draw.dots([own, other], title="AUROC within topics", zero=0.5)


table("writers", "writers/methods", "On other writers' stories",
      {"method": "Method", "own": "Own topics", "other": "Other writers",
       "other_low": ("95% interval", "t over writers x topics"), "home": "Their own", "loss": "Loss",
       "loss_low": ("Of the loss", "Combined of both intervals"), "hit_other": "First of all concepts",
       "reverse": "Reverse", "several": "Built on several",
       "several_further_low": ("Further writer", "Where a writer of no text here would lie")})  # fmt: skip
table("writers", "writers/ways", "What raises the figure on other writers",
      {"way": "Built how", "built": "On", "auroc": "AUROC", "low": "95% interval", "difference": "Difference",
       "difference_low": ("Of the difference", "Paired; t over writers x topics")})  # fmt: skip


@finding("writers")
def beyond_the_writer(evidence: Evidence) -> Said | None:
    """How much of the reading holds on other writers' stories."""
    rows = evidence.rows("writers/methods")
    row = next((row for row in rows if row["method"] == BASELINE), None)
    if row is None:
        return None
    read = (finite(row["other_low"]) or 0) > 0.5
    return "shown" if read else "not shown", {
        "row": row,
        "chosen": evidence.metric("writers", "auroc_chosen"),
        "lost": (finite(row["loss_low"]) or 0) > 0,
    }
