"""What is kept of explanations, as tables."""

from __future__ import annotations

from affectlens.results import Average, Table, bounded, flag, integer, number, text

EXPLANATIONS = Table(
    "explanations",
    "One feature with its explanation.",
    (
        integer("feature", "of the SAE"),
        text("concept", "that it detects best on the topics that choose"),
        text("text", "the explanation; empty where none was written"),
        text("author", "who wrote it: a model, or the person that the given file names"),
        text("judge", "who scored it"),
        text("words", "its most frequent marked words where it is written from: the floor `token list`"),
        integer("examples", "passages that it is written from"),
        integer("items", "passages that it is scored on"),
        number("p_emotion_word", "detection no better than by the emotion word alone, corrected over features", "p"),
        number("p_token_list", "detection no better than by the token list, corrected over features", "p"),
        text("verdict", "what the scores say"),
    ),
    key=("feature",),
)
SCORES = Table(
    "scores",
    "How one description of a feature did in one test.",
    (
        integer("feature", "of the SAE"),
        text("test", "detection: is it active in this passage; fuzzing: are these its tokens; output: its words"),
        text("description", "own, or a floor: emotion word, token list, other feature, random twin, constant answer"),
        *bounded(
            "auroc",
            "of the judge's answers; a question without an answer counts as a half",
            "AUROC",
            "its interval over texts",
            ends="",
        ),
        number("balanced_accuracy", "mean of the shares of right answers among true and false", "share"),
        integer("items", "questions"),
        integer("failures", "questions without an answer"),
    ),
    key=("feature", "test", "description"),
    averages=(Average("{test}_auroc_{description}", "auroc"),),
)
STRATA = Table(
    "strata",
    "Detection by a feature's own explanation, against silent passages of one kind.",
    (
        integer("feature", "of the SAE"),
        text("stratum", "random; same topic, other concept; a neighbour is active; a marked word occurs"),
        number("auroc", "against all active passages", "AUROC"),
        integer("items", "silent passages"),
    ),
    key=("feature", "stratum"),
    averages=(Average("detection_auroc_against_{stratum}", "auroc"),),
)
PLANTED = Table(
    "planted",
    "The judge on a planted feature, of which is known when it is active.",
    (
        text("kind", "word, concept or random"),
        text("name", "which"),
        text("test", "detection or fuzzing"),
        number("auroc", "of the judge's answers", "AUROC"),
        number("balanced_accuracy", "mean of the shares of right answers among true and false", "share"),
        integer("items", "questions"),
        integer("failures", "questions without an answer"),
        flag("able", "whether the judge's mean over planted words and concepts reaches 0.7 in this test"),
    ),
    key=("kind", "name", "test"),
    averages=(Average("planted_{test}_{kind}", "auroc"),),
)
ALL = (EXPLANATIONS, SCORES, STRATA, PLANTED)
