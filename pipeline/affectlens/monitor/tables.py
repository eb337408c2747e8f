"""The tables of the stage ``monitor``."""

from __future__ import annotations

from affectlens.results.tables import Heatmap, Line, Table, bounded, flag, integer, number, text

FOLDER = text("folder", "scenarios with risk that were tested")
ROW = text("row", "what is followed: a direction, a probe, a rival, a control")
FAMILY = text("family", "concept, axis, feature, probe, text, control, ...")
STATISTIC = text("statistic", "over the stream")
INTERVAL = "its 95% interval over scenarios"

ACTS = Table(
    "acts",
    "One twin of one folder of scenarios: how often its answers commit the act, and when.",
    (
        FOLDER,
        text("stratum", "risk, benign, or a kind of hard negative"),
        text("source", "traffic"),
        text("twin", "version of the scenarios"),
        integer("scenarios", "different ones"),
        integer("answers", "sampled"),
        integer("acts", "answers that commit it"),
        *bounded("rate", "acts / answers", "share", INTERVAL, ends=""),
        number("token", "median first token of the act", "tokens"),
        number("tokens", "median length of the answers", "tokens"),
    ),
    key=("folder", "stratum", "source", "twin"),
)
ROWS = Table(
    "rows",
    "One row of a monitor under one statistic, on scenarios that it has never seen, strictly before the act.",
    (
        FOLDER,
        ROW,
        FAMILY,
        STATISTIC,
        *bounded("auroc", "acts against all answers without one, at the act's token", "AUROC", INTERVAL),
        *bounded("within", "the same between answers to one prompt, mean over prompts", "AUROC", INTERVAL),
        number("within_p", "p of it against the best of all rows and statistics under labels shuffled in prompts", "p"),
        number("opening", "within prompts at the prompt's last token; 0.5 by construction", "AUROC"),
        number("log_auroc", "share of acts caught, averaged over the logarithm of the false-alarm rate", "share"),
        integer("acts", "with an answer to the same prompt without one"),
        integer("prompts", "with answers of both kinds"),
    ),
    key=("folder", "row", "statistic"),
    charts=(Heatmap("within prompts", "row", "statistic", "within", split="folder"),),
)
CAUGHT = Table(
    "caught",
    "Acts caught at a frozen threshold, and how long before.",
    (
        FOLDER,
        ROW,
        FAMILY,
        STATISTIC,
        number("target", "share of benign episodes that may raise an alarm", "share"),
        integer("acts", "of the test"),
        *bounded("caught", "with an alarm before the act, within the horizon", "share", INTERVAL),
        number("lead_1", "acts with a warning of at least 1 token", "share"),
        number("lead_8", "of at least 8", "share"),
        number("lead_32", "of at least 32", "share"),
        *bounded(
            "beyond_1",
            "lead_1 less the same for the act's token put into other answers to the prompt",
            "share",
            INTERVAL,
        ),
        *bounded("beyond_8", "likewise for lead_8", "share"),
        number("median_lead", "over all acts, misses counted as 0", "tokens"),
    ),
    key=("folder", "row", "statistic", "target"),
)
FALSE_ALARMS = Table(
    "false_alarms",
    "Alarms on answers that hold no act, at the frozen threshold.",
    (
        FOLDER,
        ROW,
        FAMILY,
        STATISTIC,
        number("target", "share of benign episodes that may raise an alarm", "share"),
        text("source", "traffic"),
        text("stratum", "benign, or a kind of hard negative"),
        flag("calibrated_on", "whether other episodes of this source gave the threshold"),
        integer("episodes", "of the test"),
        *bounded("flagged", "episodes with an alarm", "share", INTERVAL),
        number("band_low", "where the true rate of such a calibration lies: 5th percentile", "share"),
        number("band_high", "95th percentile", "share"),
        number("per_1000", "alarms per 1,000 tokens of answers", "alarms"),
        number("per_day", "alarms a day at the volume of the study file", "alarms"),
    ),
    key=("folder", "row", "statistic", "target", "source", "stratum"),
)
BEFORE = Table(
    "before",
    "How well the statistic tells answers to one prompt apart so many tokens before the act.",
    (
        FOLDER,
        ROW,
        FAMILY,
        integer("tokens", "before the act's first token", "tokens"),
        number("within", "AUROC within prompts", "AUROC"),
        integer("acts", "that come late enough"),
    ),
    key=("folder", "row", "tokens"),
    charts=(Line("before the act", "tokens", "within", "row", split="folder"),),
)
FORECASTS = Table(
    "forecasts",
    "Probabilities of the act against those that re-sampling found.",
    (
        FOLDER,
        text("forecast", "what gives the probability; `constant` is the mean share"),
        *bounded("error", "mean absolute error", "share", INTERVAL),
        number("floor", "what a perfect forecaster would show", "share"),
        number("opening", "error at the prompt's last token", "share"),
        *bounded("direction", "of clear moves of the probability, those it moves along with", "share", INTERVAL),
        integer("moves", "of the probability that exceed the noise"),
        integer("cuts", "prefixes that were re-sampled"),
    ),
    key=("folder", "forecast"),
)
GAIN = Table(
    "gain",
    "What reading the state adds to reading the text.",
    (
        FOLDER,
        ROW,
        number("text", "AUROC within prompts of the text alone", "AUROC"),
        number("both", "of the text with the row", "AUROC"),
        *bounded("gain", "difference", "AUROC", "its 95% interval over scenarios, paired", ends=""),
        *bounded("all_gain", "the same difference over all pairs, not within prompts", "AUROC", ends="all_"),
    ),
    key=("folder", "row"),
)
STEPPING_IN = Table(
    "stepping_in",
    "What stepping in at an alarm averts and spoils, beside stepping in as often at random tokens.",
    (
        FOLDER,
        ROW,
        number("target", "share of benign episodes that may raise an alarm", "share"),
        text("way", "stop; judge: stop where a judge agrees; calm: steer towards calm from the next cut on"),
        integer("alarms", "episodes in which it stepped in"),
        number("averted", "acts before which it stepped in; of calm, acts fewer than expected without it", "share"),
        number("spoiled", "other answers in which it did", "share"),
        number("random_averted", "the same for as many stops at random tokens", "share"),
        number("random_low", "5th percentile of that", "share"),
        number("random_high", "95th percentile", "share"),
        number("random_spoiled", "other answers stopped at random", "share"),
    ),
    key=("folder", "row", "target", "way"),
)
PLANTED = Table(
    "planted",
    "Which push along a concept's direction is found at the frozen threshold, and how many tokens after it sets in.",
    (
        FOLDER,
        ROW,
        FAMILY,
        STATISTIC,
        number("target", "share of benign episodes that may raise an alarm", "share"),
        text("concept", "along whose direction the answers were pushed"),
        number("strength", "of the push; 0: nothing was added", "mean residual norms"),
        integer("onsets", "answers that were long enough"),
        *bounded("caught", "with an alarm from the onset on, within the horizon", "share", INTERVAL),
        number("delay", "median over all onsets, misses counted as never; missing where half are missed", "tokens"),
        number("early", "with an alarm before the onset", "share"),
    ),
    key=("folder", "row", "target", "concept", "strength"),
)
VERDICTS = Table(
    "verdicts",
    "What a row shows on a folder of scenarios, by rule.",
    (
        FOLDER,
        ROW,
        text("verdict", "warns before the act, reads the situation only, reads the text only, not shown, ..."),
        text("why", "in a sentence"),
    ),
    key=("folder", "row"),
)
ALL = (ACTS, ROWS, CAUGHT, FALSE_ALARMS, BEFORE, FORECASTS, GAIN, STEPPING_IN, PLANTED, VERDICTS)
