"""The tables of circuits."""

from __future__ import annotations

from affectlens.results import Average, Heatmap, Line, Table, bounded, flag, integer, number, text

ALL = "all concepts"
"""The row of the pooled circuit."""
CAVEATS = (
    "Zero is no value that a head has in any text, so removal also breaks what has nothing to do with the emotion.",
    "The head score is a direct effect on one layer's MLP input; effects through later layers are not in it.",
    "Removing a neuron lowers the sum of its own contributions by definition; that is no test.",
    "The budget is a quarter of all heads of a small model and a fraction of a percent of its neurons, so overlaps of "
    "the two kinds cannot be compared without chance beside them.",
    "Selection and report use the topics that this study keeps apart; the paper's code selects and reports on one set.",
)
"""Of the profile ``as_published``, printed beside its figures."""

SIZES = Table(
    "sizes",
    "Circuits of one size on the topics that choose the size, in one division of the topics.",
    (
        integer("rotation", "division of the topics"),
        text("ranking", "of the heads: signed effect, or its size"),
        number("share", "of all heads", "share"),
        integer("heads", "in the circuit"),
        number("ratio", "contrast when only these heads know the text, over the whole model's", "ratio"),
        flag("chosen", "whether it is this division's circuit"),
        integer("contexts", "behind it"),
    ),
    key=("rotation", "ranking", "share"),
)
"""Of the stage `circuit_sizes`."""
CURVES = Table(
    "curves",
    "Circuits of one size by one ranking of the heads, in contexts that chose neither heads nor size.",
    (
        text("ranking", "signed effect, size of effect, activation, or random with as many heads in each layer"),
        number("share", "of all heads", "share"),
        integer("heads", "in the circuit"),
        number("ratio", "contrast when only these heads know the text, over the whole model's", "ratio"),
        number("low", "lower end: over topics, of random circuits the least of them", "ratio"),
        number("high", "upper end: over topics, of random circuits the largest of them", "ratio"),
        number("slope", "of the circuit's contrast on the whole model's, over contexts", "ratio"),
        number("correlation", "of the two over contexts", "r"),
        number("left", "contrast left when these heads are taken out, over the whole model's", "ratio"),
        number("left_low", "lower end, as of the ratio", "ratio"),
        number("left_high", "upper end", "ratio"),
    ),
    key=("ranking", "share"),
    charts=(Line("faithfulness", "share", "ratio", "ranking"),),
)
AREAS = Table(
    "areas",
    "The curve of one ranking as single figures.",
    (
        text("ranking", "of the heads"),
        number("cpr", "area under the ratio over the share of heads", "ratio"),
        number("cpr_log", "the same on a logarithmic axis of the share", "ratio"),
        number("cmd", "area of |1 - ratio|: 0 is the whole model", "ratio"),
        number("cmd_log", "the same on a logarithmic axis", "ratio"),
    ),
    key=("ranking",),
)
VERDICTS = Table(
    "verdicts",
    "One concept's circuit, or the pooled one.",
    (
        text("concept", f"the emotion, or `{ALL}`"),
        *bounded(
            "contrast", "of the own words, whole model less the model without heads", "nats", "its interval over topics"
        ),
        number("heads", "in the circuit, mean over rotations", "heads"),
        *bounded("ratio", "of the contrast that the circuit alone gives", "ratio", "its interval over topics", ends=""),
        number("slope", "over contexts", "ratio"),
        number("correlation", "over contexts", "r"),
        *bounded("left", "of the contrast when the circuit is taken out", "ratio", "its interval over topics"),
        number("random_ratio", "the largest ratio of a random circuit", "ratio"),
        number("random_left", "the least that is left without a random circuit", "ratio"),
        number("wrong_ratio", "ratio of other concepts' circuits, mean", "ratio"),
        number("wrong_left", "left without other concepts' circuits, mean", "ratio"),
        number("any_ratio", "ratio of the pooled circuit", "ratio"),
        number("any_left", "left without the pooled circuit", "ratio"),
        number("stability", "Jaccard overlap of the circuits of two bootstrap samples of the contexts", "Jaccard"),
        number("halves", "the same of disjoint halves of the selection topics", "Jaccard"),
        number("stability_chance", "what two random sets of the size give", "Jaccard"),
        number("own_loss", "contrast lost without what the concept's circuit has of its own", "nats"),
        number("other_loss", "the same of the other concepts' circuits", "nats"),
        integer("rank", "of the own circuit by that loss, 1 the most hurtful"),
        number(
            "p",
            "of own against others, less what each costs third concepts: sign flips; of all concepts, labels permuted",
            "p",
        ),
        number("p_adjusted", "after Benjamini-Hochberg over concepts", "p"),
        text("verdict", "by rule"),
    ),
    key=("concept",),
)
SPECIFICITY = Table(
    "specificity",
    "What taking out one concept's circuit costs another concept's words.",
    (
        text("measured", "the concept whose words are scored, in its own stories"),
        text("removed", "the concept whose circuit is taken out"),
        number("loss", "of the contrast", "nats"),
    ),
    key=("measured", "removed"),
    charts=(Heatmap("specificity", "measured", "removed", "loss"),),
)
MEMBERS = Table(
    "members",
    "One head of the pooled circuit.",
    (
        integer("layer", "of the head"),
        integer("head", "within the layer"),
        integer("rotations", "divisions of the topics that chose it"),
        number("effect", "of its ablation in the selection contexts, mean over those rotations", "nats"),
        number("without", "ratio lost when the circuit has all its heads but this one", "ratio"),
        number("null", "ratio that a head adds to a random circuit: 95th percentile", "ratio"),
        flag("needed", "whether it adds more to the circuit than that"),
    ),
    key=("layer", "head"),
)
CHECKS = Table(
    "checks",
    "One test of the pooled circuit, with its control.",
    (
        text("check", "what is tested"),
        text("measure", "what the value is"),
        number("value", "of the circuit"),
        number("control", "of random circuits, mean, or what chance gives"),
        number("control_low", "the least of them"),
        number("control_high", "the largest of them"),
        integer("contexts", "behind it"),
    ),
    key=("check", "measure"),
)
NEURONS = Table(
    "neurons",
    "One neuron that was taken out of the head circuit's model.",
    (
        integer("layer", "of the neuron"),
        integer("neuron", "within the layer"),
        flag("selected", "whether its attribution is among the largest; the others are drawn at random"),
        number("attribution", "by integrated gradients inside the head circuit, mean over contexts", "nats"),
        number("exact", "contrast lost without it, mean over the contexts that were checked", "nats"),
        number("p", "sign flips of the attribution, those of a concept's contexts together", "p"),
        number("p_adjusted", "after Benjamini-Hochberg over all neurons", "p"),
        integer("rotations", "divisions of the topics in which it was checked"),
    ),
    key=("layer", "neuron"),
)
NEURON_CURVE = Table(
    "neuron_curve",
    "Circuits of neurons inside the head circuit's model.",
    (
        number("share", "of all neurons", "share"),
        number("ratio", "contrast when only these neurons know the text, over the circuit's model", "ratio"),
        number("slope", "over contexts", "ratio"),
        number("random", "ratio of random neurons with as many in each layer, mean", "ratio"),
        number("random_low", "the least of them", "ratio"),
        number("random_high", "the largest of them", "ratio"),
    ),
    key=("share",),
)
EDGES = Table(
    "edges",
    "How much of one head's effect passes through another above it.",
    (
        text("source", "the lower head"),
        text("target", "the upper head"),
        *bounded("weight", "mean over contexts", "nats", "its interval over contexts", ends=""),
    ),
    key=("source", "target"),
)
PUBLISHED = Table(
    "published",
    "One emotion by the choices of arXiv 2510.11328, with what they leave out.",
    (
        text("concept", "the emotion"),
        integer("heads", "in its circuit"),
        number("heads_share", "of all heads", "share"),
        integer("neurons", "in its circuit"),
        number("neurons_share", "of all neurons", "share"),
        text("first_head", "the head with the largest score"),
        number("mass", "of the positive head scores in the ten largest", "share"),
        number("heads_overlap", "mean Jaccard overlap with the other emotions' heads", "Jaccard"),
        number("heads_chance", "of random sets, as many in each layer", "Jaccard"),
        number("neurons_overlap", "the same of neurons", "Jaccard"),
        number("neurons_chance", "of random sets, as many in each layer", "Jaccard"),
        number("ratio", "contrast when all other heads are zero, over the whole model's", "ratio"),
        number("left", "contrast left when these heads are zero", "ratio"),
        number("random_ratio", "largest ratio of random heads, as many in each layer", "ratio"),
        number("random_left", "least that is left without random heads", "ratio"),
        integer("contexts", "reported stories of the emotion in which heads are zero"),
    ),
    key=("concept",),
    averages=(
        Average("published_heads_overlap", "heads_overlap"),
        Average("published_neurons_overlap", "neurons_overlap"),
    ),
)
TABLES = (
    CURVES, AREAS, VERDICTS, SPECIFICITY, MEMBERS, CHECKS, NEURONS, NEURON_CURVE, EDGES, PUBLISHED,
)  # fmt: skip
