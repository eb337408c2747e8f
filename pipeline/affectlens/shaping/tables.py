"""The tables of the stage ``shape``."""

from __future__ import annotations

from affectlens.results.tables import Heatmap, Table, bounded, flag, integer, number, text

ARM = text("arm", "what was done to the model, whatever its seed")
SEEDS = integer("seeds", "trainings, or random directions of a twin")
OVER = "its 95% interval over families and seeds"
SD = "base sd"

VERDICTS = Table(
    "verdicts",
    "One arm: what became of it, by the rules of the section `shape.rules`.",
    (
        ARM,
        text("kind", "what is done"),
        flag("control", "whether it stands there for others to be held against: filler or random twin"),
        SEEDS,
        text("verdict", "in words; the first rule that holds"),
        text("why", "in a sentence"),
        *bounded("state", "fall of the state below the base model in bad situations, on its axis", SD, OVER),
        *bounded("moved", "the same on the axis re-extracted from the changed model", SD, OVER),
        *bounded("text", "fall of distress in the words of answers to bad situations", SD, OVER),
        *bounded("dissociation", "fall of the state less that of the text", SD, OVER),
        *bounded("gap", "of the state between bad and good situations, over that of the base model", "ratio", OVER),
        number("state_p", "of the fall of the state, Holm over arms and both falls", "p"),
        number("text_p", "of the fall of the text, likewise", "p"),
        flag("state_shown", "whether the state fell, beyond chance, controls and the smallest size"),
        flag("text_shown", "whether the text did"),
        number("cosine", "of the re-extracted axis with the base model's, lowest of the seeds", "cosine"),
    ),
    key=("arm",),
)
POINTS = Table(
    "points",
    "One arm and seed: fall of state and of text, for the figure.",
    (
        ARM,
        text("name", "with its seed"),
        text("kind", "what is done"),
        flag("control", "filler or random twin"),
        integer("seed", "of the training, or of the random direction"),
        *bounded("state", "fall of the state", SD, "its 95% interval over families"),
        *bounded("text", "fall of the text", SD, "its 95% interval over families"),
    ),
    key=("name",),
)
CONTROLS = Table(
    "controls",
    "One arm against another that is its control, on the same situations.",
    (
        ARM,
        text("control", "the filler, or the twin along random directions"),
        text("what", "state or text"),
        *bounded("fall", "of the arm below the control", SD, OVER, ends=""),
        number("p", "one-sided, that it is none; not corrected", "p"),
    ),
    key=("arm", "control", "what"),
)
STATES = Table(
    "states",
    "One reading of the state of one arm: an axis, a layer, a place.",
    (
        ARM,
        text("axis", "distress less calm, each of both, valence"),
        text(
            "basis", "base: the base model's axis; changed: re-extracted from the changed model, with the base's centre"
        ),
        integer("layer", "after this block"),
        text("reading", "prompt, same_words, first, later"),
        *bounded("fall", "below the base model in bad situations", SD, OVER, ends=""),
        *bounded("gap", "between bad and good situations, over that of the base model", "ratio", OVER),
    ),
    key=("arm", "axis", "basis", "layer", "reading"),
    charts=(Heatmap("falls", "arm", "reading", "fall", split="layer"),),
)
AXES = Table(
    "axes",
    "One axis re-extracted from one changed model.",
    (
        ARM,
        text("name", "with its seed"),
        text("axis", "which"),
        integer("layer", "after this block"),
        number("cosine", "with the base model's", "cosine"),
    ),
    key=("name", "axis", "layer"),
)
TEXTS = Table(
    "texts",
    "One figure of the words that an arm writes, in bad or good situations.",
    (
        ARM,
        text("outcome", "of the situations: bad or good"),
        text("measure", "lexicon, classifier, names an emotion, words, repetition"),
        number("base", "in the base model"),
        *bounded("difference", "of the arm from the base model", "", OVER, ends=""),
    ),
    key=("arm", "outcome", "measure"),
)
ABILITIES = Table(
    "abilities",
    "One ability of one arm, against the base model.",
    (
        ARM,
        text("measure", "nll on neutral text, tasks, instructions, repetition"),
        integer("items", "texts, tasks, instructions, or families"),
        number("base", "of the base model; nats, or share"),
        *bounded("worse", "by how much the arm is worse; nats, or share", "", "its 95% interval", ends=""),
        number("margin", "what is tolerated"),
    ),
    key=("arm", "measure"),
)
DYNAMICS = Table(
    "dynamics",
    "How one arm finds back: out of a distressed beginning, and after a burst.",
    (
        ARM,
        text(
            "measure",
            "still_state, still_words: share of answers still distressed; back, back_random: tokens after a burst; "
            "pushed: by how many base sd a burst moved the state; alarmed_bad, alarmed_good: share of answers in which "
            "the calibrated alarm sounds",
        ),
        *bounded("value", "of the arm", "", OVER),
        *bounded("difference", "from the base model", "", OVER),
        integer("situations", "asked"),
        number("watched", "tokens watched after a burst; what is not back counts as so many"),
    ),
    key=("arm", "measure"),
)
REPORTS = Table(
    "reports",
    "What one arm says of itself, read from the logits: expected digit from 1 (calm) to 9 (desperate).",
    (
        ARM,
        number("bad", "expected digit in bad situations"),
        number("good", "in good ones"),
        *bounded("fall", "of the digit in bad situations below the base model", "", OVER),
        *bounded("agreement", "correlation with the state within families", "r", OVER),
        *bounded("difference", "of the agreement from the base model's", "r", OVER),
    ),
    key=("arm",),
)
CHOICES = Table(
    "choices",
    "Forced choices of an existing experiment: log-odds of its act.",
    (
        ARM,
        text("experiment", "whose scenarios"),
        text("condition", "main, or the control"),
        number("odds", "mean log-odds of the act", "nats"),
        *bounded("difference", "from the base model", "nats", "its 95% interval over scenarios and seeds", ends=""),
        integer("scenarios", "asked"),
    ),
    key=("arm", "experiment", "condition"),
)
ANSWERS = Table(
    "answers",
    "What arms wrote, the first seed's first sample.",
    (
        ARM,
        text("measure", "answer, recovery or instruction"),
        text("situation", "its id"),
        text("outcome", "bad or good"),
        text("text", "the answer"),
        number("lexicon", "distress in its words, per hundred"),
    ),
)
ALL = (VERDICTS, POINTS, CONTROLS, STATES, AXES, TEXTS, ABILITIES, DYNAMICS, REPORTS, CHOICES, ANSWERS)
