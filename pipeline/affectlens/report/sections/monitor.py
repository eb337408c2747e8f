"""The early-warning monitor: what tells an answer with the act from one without, before the act, and at which price."""

from __future__ import annotations

from collections.abc import Sequence

from affectlens.report import draw
from affectlens.report.draw import Chart, Marks, marks
from affectlens.report.evidence import Evidence, Row, Rows
from affectlens.report.registry import Said, figure, finding, table
from affectlens.results.format import finite

WARNS = "warns before the act"
UNTESTED = "could not be tested"


def _followed(evidence: Evidence, name: str) -> Rows:
    """Rows of a table under the statistic whose false alarms were counted, of what alarms were counted of."""
    alarms = evidence.rows("monitor/false_alarms")
    shown, statistic = {row["row"] for row in alarms}, next((row["statistic"] for row in alarms), "rolling")
    rows = evidence.rows(name)
    return Rows.like(
        rows, [row for row in rows if row["row"] in shown and row.get("statistic", statistic) == statistic]
    )


def _at_most(rows: Sequence[Row]) -> Rows:
    """Those at the largest target."""
    target = max((row["target"] for row in rows), default=0)
    return Rows.like(rows, [row for row in rows if row["target"] == target])


@figure("monitor", "monitor/rows", "monitor/false_alarms")
def monitor_within(evidence: Evidence) -> dict[str, Chart]:
    """Dot plot: AUROC before the act between answers to one prompt, and over all prompts, with intervals."""
    charts = {}
    rows = _followed(evidence, "monitor/rows")
    for folder in dict.fromkeys(row["folder"] for row in rows):
        own = draw.ranked([row for row in rows if row["folder"] == folder], "within")
        sides: dict[str, list[Row]] = {
            side: [{**row, "low": row[f"{side}_low"], "high": row[f"{side}_high"]} for row in own]
            for side in ("within", "auroc")
        }
        one = marks("Same prompt", sides["within"], "within", "feature", size=11, at="row")
        other = marks("All prompts", sides["auroc"], "auroc", "direction", "circle-open", at="row")
        charts[folder] = draw.dots([other, one], title="AUROC strictly before the act", zero=0.5, row=22)
    return charts


@figure("monitor", "monitor/before")
def monitor_before(evidence: Evidence) -> dict[str, Chart]:
    """Line chart: AUROC between answers to one prompt by tokens before the act."""
    charts = {}
    rows = evidence.rows("monitor/before")
    named = {"forecaster": "feature", "text": "control", "best_concept": "direction", "prompt_only": "control"}
    for folder in dict.fromkeys(row["folder"] for row in rows):
        drawn: list[Marks] = []
        for name, colour in named.items():
            own = [row for row in rows if row["folder"] == folder and row["row"] == name and finite(row["within"])]
            if own:
                drawn.append(
                    marks(name, [{**row, "before": -row["tokens"]} for row in own], "within", colour, at="before")
                )
        if drawn:
            charts[folder] = draw.lines("line", drawn, "Tokens before the act", "AUROC within prompts")
    return charts


table("monitor", "monitor/verdicts", "What each row shows, by rule",
      {"folder": "Scenarios", "row": "Row", "verdict": "Verdict", "why": "Why"})  # fmt: skip
table("monitor", "monitor/caught", "Acts caught at a frozen threshold",
      {"folder": "Scenarios", "row": "Row", "target": "Target", "acts": "Acts", "caught": "Caught",
       "caught_low": "95% interval", "lead_1": "1 token before", "lead_8": "8 before", "lead_32": "32 before",
       "beyond_8": "8, beyond chance", "beyond_8_low": ("Of that", "95% interval over scenarios"),
       "median_lead": "Median lead"},
      rows=lambda evidence: _followed(evidence, "monitor/caught"))  # fmt: skip
table("monitor", "monitor/false_alarms", "False alarms where nothing happens",
      {"folder": "Scenarios", "row": "Row", "target": "Target", "source": "Traffic", "stratum": "Kind",
       "episodes": "Answers", "flagged": "Flagged", "flagged_low": "95% interval",
       "band_low": ("Expected", "5th to 95th percentile of the true rate over calibrations"),
       "per_1000": "Per 1,000 tokens", "per_day": "A day"},
      rows=lambda evidence: _at_most(evidence.rows("monitor/false_alarms")))  # fmt: skip
table("monitor", "monitor/gain", "Does the state add to the text?",
      {"folder": "Scenarios", "row": "Row", "text": "Text alone", "both": "With the row", "gain": "Gain",
       "low": "95% interval", "all_gain": "Over all prompts",
       "all_low": ("Of that", "95% interval over scenarios")})  # fmt: skip
table("monitor", "monitor/forecasts", "Forecasts against re-sampled truth",
      {"folder": "Scenarios", "forecast": "Forecast", "error": "Error", "error_low": "95% interval",
       "floor": "Least possible", "opening": "At the prompt's end", "direction": "Direction",
       "direction_low": ("Of that", "95% interval over scenarios"), "moves": "Moves", "cuts": "Prefixes"})  # fmt: skip
table("monitor", "monitor/stepping_in", "Stepping in at an alarm, and at random",
      {"folder": "Scenarios", "row": "Row", "target": "Target", "way": "Way", "alarms": "Alarms",
       "averted": "Acts averted", "spoiled": "Others spoiled", "random_averted": "Averted at random",
       "random_low": ("Of that", "5th to 95th percentile"), "random_spoiled": "Spoiled at random"},
      rows=lambda evidence: _at_most(evidence.rows("monitor/stepping_in")))  # fmt: skip
table("monitor", "monitor/planted", "Which planted onset is found, and how soon",
      {"folder": "Scenarios", "row": "Row", "target": "Target", "concept": "Pushed along", "strength": "Strength",
       "onsets": "Onsets", "caught": "Found", "caught_low": "95% interval", "delay": ("Delay", "Median in tokens"),
       "early": ("Before", "Answers with an alarm before the onset")},
      rows=lambda evidence: _at_most(evidence.rows("monitor/planted")))  # fmt: skip
table("monitor", "monitor/acts", "Answers and acts",
      {"folder": "Scenarios", "stratum": "Kind", "source": "Traffic", "twin": "Version", "scenarios": "Scenarios",
       "answers": "Answers", "acts": "Acts", "rate": "Rate", "low": "95% interval", "token": "First token",
       "tokens": "Length"})  # fmt: skip


@finding("monitor")
def warning(evidence: Evidence) -> Said | None:
    """Whether the state warns before the act."""
    rows = [row for row in evidence.rows("monitor/verdicts") if row["row"] in ("forecaster", "best_concept")]
    if not rows or all(row["verdict"] == UNTESTED for row in rows):
        return None
    warns = [row for row in rows if row["verdict"] == WARNS]
    standing = "shown" if len(warns) == len(rows) else "partly shown" if warns else "not shown"
    alarms = [row for row in _at_most(evidence.rows("monitor/false_alarms")) if row["stratum"] == "benign"]
    return standing, {"rows": rows, "alarms": [row for row in alarms if row["row"] == "forecaster"]}
