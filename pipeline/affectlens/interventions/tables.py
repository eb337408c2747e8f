"""The tables of causal effects: what a row is, its columns and units, which metric is the mean of which column."""

from __future__ import annotations

from affectlens.results import Average, Column, Heatmap, Line, Table, bounded, flag, number, text

CONCEPT = text("concept", "studied concept")
VECTOR = text("vector", "family of the vector: direction, feature (best SAE feature), features (set of the best)")


def _judged(unit: str) -> tuple[Column, ...]:
    """What the judge says of one claim."""
    return (
        *bounded(
            "effect",
            "mean over contexts, positive when in the expected direction",
            unit,
            "the 95% interval over groups of contexts",
            ends="",
        ),
        number("p", "against the control family that is hardest to exceed"),
        number("p_adjusted", "after Benjamini-Hochberg over the concepts"),
        number("p_floor", "least p that the controls allow"),
        text("hardest_family", "the control family that gives p"),
        number("control_mean", "mean effect of the control vectors", unit),
        number("control_max", "largest effect of a control vector", unit),
        flag("above_controls", "whether the effect is larger than that of every control vector"),
    )


EFFECTS = Table(
    name="effects",
    description="One row per concept, vector, operation and strength.",
    columns=(
        CONCEPT,
        VECTOR,
        text("operation", "inject or ablate"),
        number("strength", "in units of the mean residual norm; 1 for ablation"),
        *_judged("nats"),
    ),
    key=("concept", "vector", "operation", "strength"),
)
MATRIX = Table(
    name="matrix",
    description="One row per vector injected at the reference strength and concept whose words are scored.",
    columns=(
        VECTOR,
        text("injected", "concept whose vector is injected"),
        text("measured", "concept whose words are scored against the other concepts' words"),
        number("effect", "mean over frames", "nats"),
    ),
    key=("vector", "injected", "measured"),
    charts=(Heatmap("matrix", row="injected", column="measured", value="effect", split="vector"),),
)
DOSE = Table(
    name="dose",
    description="One row per concept, vector and strength of injection.",
    columns=(
        CONCEPT,
        VECTOR,
        number("strength", "in units of the mean residual norm"),
        number("effect", "mean over frames, on the concept's own words", "nats"),
        number("divergence", "KL of the next token from the model as it is", "nats"),
        number("perplexity_ratio", "perplexity on neutral text as a multiple of what it is"),
    ),
    key=("concept", "vector", "strength"),
    charts=(Line("dose", x="strength", y="effect", series="concept", split="vector"),),
)
READOUT = Table(
    name="readout",
    description="One row per concept and vector: how far the concept's own reading downstream rises under injection.",
    columns=(CONCEPT, VECTOR, *_judged("mean residual norms")),
    key=("concept", "vector"),
    averages=(Average("share_readout_above_controls_{vector}", "above_controls"),),
)
SAMPLES = Table(
    name="samples",
    description="One row per concept, vector and score of text that is sampled under injection.",
    columns=(
        text("kind", "sample, or knockout where the words of all studied concepts are banned"),
        CONCEPT,
        VECTOR,
        text("score", "probe of held-out topics on the untouched model, or TF-IDF vocabulary"),
        number("rise", "over text sampled without intervention, against the other concepts"),
        *_judged("")[1:],
        number("perplexity_ratio", "of the text under the untouched model, as a multiple of plain text's"),
        number("repetition", "share of three-token runs that repeat", "share"),
        number("plain_repetition", "the same without intervention", "share"),
    ),
    key=("kind", "concept", "vector", "score"),
    averages=(Average("{kind}_text_{score}_above_controls_{vector}", "above_controls"),),
)
VERDICTS = Table(
    name="verdicts",
    description="One row per concept and vector: what was shown of it at the reference strength.",
    columns=(
        CONCEPT,
        VECTOR,
        number("strength", "of injection, in units of the mean residual norm"),
        *_judged("nats"),
        flag("above_controls_at_equal_divergence", "the same where all vectors move the next token equally far (KL)"),
        flag("first", "whether no other concept's vector moves the concept's words as far"),
        number("wrong_vectors", "share of the other concepts' vectors that move its words at least as far", "share"),
        number("beyond_valence", "effect less that on the words of concepts of like valence", "nats"),
        number("beyond_valence_low", "lower end of its 95% interval over frames", "nats"),
        number("perplexity_ratio", "perplexity on neutral text as a multiple of what it is"),
        flag("sufficient", "shown against every family of controls, wrong emotions among them, in fluent text"),
        flag("specific", "and few wrong vectors as strong, and beyond concepts of like valence"),
        *bounded(
            "ablation_effect",
            "fall of the concept's words in held-out stories when the vector is taken out",
            "nats",
            "the 95% interval over topics",
            ends="ablation_",
        ),
        number("ablation_p_adjusted", "after Benjamini-Hochberg over the concepts"),
        flag("evoked", "whether the held-out stories make the concept's words likelier"),
        flag("necessary", "whether ablation is shown to lower them; empty where it could not be tested"),
        text("words", "the verdict in a sentence"),
    ),
    key=("concept", "vector"),
    averages=(
        Average("effect_{vector}", "effect"),
        Average("share_above_controls_{vector}", "above_controls"),
        Average("share_above_controls_at_equal_divergence_{vector}", "above_controls_at_equal_divergence"),
        Average("share_first_{vector}", "first"),
        Average("share_sufficient_{vector}", "sufficient"),
        Average("share_specific_{vector}", "specific"),
        Average("share_necessary_{vector}", "necessary"),
        Average("perplexity_ratio_{vector}", "perplexity_ratio"),
    ),
)
CONTROLS = Table(
    name="controls",
    description="One row per vector, operation and family of controls.",
    columns=(
        VECTOR,
        text("operation", "inject or ablate"),
        text("family", "of control vectors"),
        number("members", "control vectors of the family"),
        number("p_floor", "least p that the family allows, its null taken over all concepts"),
    ),
    key=("vector", "operation", "family"),
)
TABLES = (EFFECTS, MATRIX, DOSE, READOUT, SAMPLES, VERDICTS, CONTROLS)
