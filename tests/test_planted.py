"""Planted truths: what was put into activations comes out of the stages, and what was not does not."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from affectlens.corpus.documents import Corpus, Document
from affectlens.model.subject import ModelConfig, load_tokenizer
from affectlens.probing import detection, matching
from affectlens.probing import sparse_probes as probes
from affectlens.stage import Setting
from affectlens.stages.compare import CompareStage
from affectlens.stages.directions import DirectionsStage
from affectlens.stages.match import MatchStage

WIDTH, LAYER, FIRST = 32, 2, 2
CONCEPTS = ("afraid", "calm", "proud", "sad")
SPLIT = {"afraid": (0,), "calm": (1,), "proud": (2,), "sad": (3, 4, 5)}
"""Features that carry each concept; of several, each carries a part of the stories."""
TOPICS = {**{f"train{n}": "train" for n in range(6)}, "val0": "validation", "val1": "validation"}
TOPICS |= {f"test{n}": "test" for n in range(3)}
WORDS = [
    "stone",
    "river",
    "table",
    "window",
    "paper",
    "garden",
    "silver",
    "letter",
    "market",
    "bridge",
    "winter",
    "candle",
]
FAST = {
    "match": {"permutations": 199, "random_saes": 1, "probe_sizes": (1, 2, 3, 5), "contexts": 1},
    "compare": {
        "null_directions": 99,
        "null_subspaces": 19,
        "pairs": "none",
        "pair_templates": "none",
        "random_directions": 2,
    },
    "directions": {"permutations": 99, "stability_draws": 20},
}


class Dictionary:
    """Orthonormal features: encoding undoes what planting did."""

    per_token = False

    def __init__(self, seed: int = 0) -> None:
        self.decoder = np.linalg.qr(np.random.default_rng(seed).normal(size=(WIDTH, WIDTH)))[0]
        self.encoder, self.d_sae, self.health = self.decoder.T, WIDTH, {"l0": 5}
        self.centre = np.full(WIDTH, 3.0)

    def encode(self, residuals: np.ndarray) -> np.ndarray:
        return np.maximum((residuals - self.centre) @ self.encoder, 0).astype(np.float32)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return codes @ self.decoder + self.centre

    def random(self, seed: int) -> Dictionary:
        return Dictionary(seed + 1)


@dataclass
class Plant:
    """A study whose activations are sums of known features.

    Attributes:
        signal: by how much a concept's features rise over its stories.
        topic_bound: a concept that fills the first training topic and is in no other.
        word_bound: a concept whose feature answers to one word only, which its stories share.
    """

    signal: float = 0.0
    topic_bound: str = ""
    word_bound: str = ""
    seed: int = 0
    stories: int = 3
    documents: list[Document] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)

    def build(self, folder: Path, model: Path) -> dict:
        generator, self.sae = np.random.default_rng(self.seed), Dictionary()
        tokenizer = load_tokenizer(ModelConfig(name=str(model)), folder)
        for topic, split in TOPICS.items():
            for concept in CONCEPTS:
                for story in range(self.stories):
                    self._story(generator, tokenizer, topic, split, concept, story)
        for _ in range(8):
            self._add(generator, tokenizer, Document(len(self.rows), "prose", "", "", "", "neutral", ""), {})
        with (folder / "documents.jsonl").open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(asdict(document)) + "\n" for document in self.documents)
        return {"corpus": Corpus(folder), "activations": self._store(), "sae": self.sae}

    def _story(self, generator, tokenizer, topic: str, split, concept: str, story: int) -> None:
        if split == "train" and self.topic_bound:
            mine = topic == "train0"
            if mine != (concept == self.topic_bound):
                return
        features = SPLIT[concept]
        planted = {features[story % len(features)]: self.signal}
        if self.topic_bound and split == "train" and topic == "train0":
            planted = {7: 4.0}  # of the topic, not of the concept
        elif self.topic_bound == concept:
            planted = {}
        document = Document(len(self.rows), "story", concept, topic, "", split, "")
        self._add(generator, tokenizer, document, planted, word=concept == self.word_bound)

    def _add(self, generator, tokenizer, document: Document, planted: dict, word: bool = False) -> None:
        words = list(generator.choice(WORDS, 24))
        if word:
            words[12], planted = "zebra", {}
        text = " ".join(words)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        codes = generator.gamma(1.0, 0.5, size=(len(encoded["input_ids"]), WIDTH))
        for feature, value in planted.items():
            codes[:, feature] += value
        if word:
            start = text.index("zebra")
            hit = [end > start and begin < start + 5 for begin, end in encoded["offset_mapping"]]
            codes[hit, SPLIT[document.emotion][0]] += 60.0
        self.documents.append(Document(**{**asdict(document), "text": text}))
        self.rows.append(self.sae.decode(codes).astype(np.float32))
        self.tokens.append(encoded["input_ids"])

    def _store(self) -> SimpleNamespace:
        ends = np.cumsum([len(rows) for rows in self.rows])
        columns = {"documents/index": np.arange(len(self.rows)), "documents/tokens": np.diff(ends, prepend=0)}
        rows = SimpleNamespace(
            of=lambda document: self.rows[document],
            span=lambda document: (int(ends[document] - len(self.rows[document])), int(ends[document])),
            token=np.concatenate(self.tokens),
        )
        pooled = np.stack([each[FIRST:].mean(axis=0) for each in self.rows])
        return SimpleNamespace(
            layers=(LAYER,), d_model=WIDTH, index={"first_token": FIRST},
            mean_norm=lambda layer: 20.0, pooled=lambda layer: pooled,
            tokens=lambda layer: rows, column=lambda name: columns[name],
        )  # fmt: skip


def run(stage_class, results: dict, model: Path, folder: Path):
    """One stage without the runner; its artifact joins the results."""
    setting = Setting(0, ModelConfig(name=str(model), layer=LAYER, dtype="float32"), "cpu", 1, folder / "models")
    stage = stage_class(stage_class.config_class(**FAST[stage_class.name]), setting, results)
    out, parts = folder / stage.name, {}
    for part in stage.parts():
        parts[part.name] = out / "parts" / part.name
        parts[part.name].mkdir(parents=True)
        stage.run_part(part, parts[part.name], lambda units: None)
    stage.metrics = stage.finish(parts, out)
    results[stage.name] = stage_class.open(out)
    return stage.metrics


@pytest.fixture
def planted(tmp_path, model_folder):
    """``planted(signal=...)`` -> opened artifacts of the three stages on such a plant."""

    def get(**plant) -> dict:
        model = model_folder("llama")
        results = Plant(**plant).build(tmp_path, model)
        results["metrics"] = {}
        for stage in (DirectionsStage, MatchStage, CompareStage):
            results["metrics"][stage.name] = run(stage, results, model, tmp_path)
        return results

    return get


def test_planted_features_cosines_and_splits_are_recovered(planted):
    results = planted(signal=3.0)
    match, compare = results["match"], results["compare"]
    for row in match.table:
        assert row["feature"] in SPLIT[row["concept"]]
        assert row["split_over"] == len(SPLIT[row["concept"]]), row["concept"]
        assert row["p_adjusted"] <= 0.05 or row["concept"] == "sad", "a third of a concept is too little to be sure of"
    assert min(row["auroc_test"] for row in match.table if row["concept"] != "sad") > 0.99
    assert results["metrics"]["directions"]["auroc_test"] > 0.99
    means = np.zeros((4, WIDTH))
    for index, concept in enumerate(CONCEPTS):
        means[index, list(SPLIT[concept])] = 3.0 / len(SPLIT[concept])
    truth = means - means.mean(axis=0)
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)
    for index, row in enumerate(compare.table):
        assert row["cosine"] == pytest.approx(truth[index, row["feature"]], abs=0.1)
        assert row["cosine_encoder"] == pytest.approx(row["cosine"], abs=1e-6)
    assert all(row["auroc_topic_alone"] == 0.5 and row["confounded"] == [] for row in compare.confounds)
    explained = {(row["dictionary"], row["rows"]): row["explained"] for row in compare.pursuit}
    assert explained["SAE decoder", 10] > explained["random", 10]
    methods = {row["method"]: row for row in compare.detection}
    assert abs(methods["TF-IDF"]["mean"] - 0.5) < 0.15, "texts were drawn without regard to the concept"
    assert methods["difference of means"]["mean"] > 0.99 > methods["2 SAE features"]["per_concept"]["sad"]


def test_without_signal_nothing_is_found(planted):
    results = planted(signal=0.0, seed=1)
    assert results["metrics"]["match"]["concepts_significant"] == 0
    for row in results["compare"].detection:
        assert abs(row["mean"] - 0.5) < 0.2, row["method"]
    assert results["directions"].sweep[0]["p_test"] > 0.05


def test_an_emotion_tied_to_a_topic_in_training_is_reported(planted):
    results = planted(topic_bound="afraid")
    rows = {row["concept"]: row for row in results["compare"].confounds}
    assert "topic" in rows["afraid"]["confounded"]
    assert rows["afraid"]["auroc_topic_alone"] > 0.9
    assert abs(rows["afraid"]["difference of means"] - 0.5) < 0.25, "what told the topic tells nothing elsewhere"
    assert "topic" not in rows["calm"]["confounded"]


@pytest.mark.parametrize("signal", [0.0, 3.0])
def test_an_emotion_tied_to_one_word_is_reported(planted, signal):
    """Where the others have a signal, its absence tells this one: the direction is more than the word."""
    results = planted(word_bound="calm", signal=signal)
    rows = {row["concept"]: row for row in results["compare"].confounds}
    calm = rows["calm"]
    assert calm["best_word"] == "zebra"
    assert calm["best SAE feature"] > 0.95
    assert "words (best SAE feature)" in calm["confounded"]
    assert ("words (difference of means)" in calm["confounded"]) == (signal == 0)
    assert signal == 0 or all(row["confounded"] == [] for concept, row in rows.items() if concept != "calm")


def crossed(generator: np.random.Generator, signal: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes of 40 features over 4 concepts x 6 topics x 4 stories, rare and skewed as SAE features are."""
    concept, topic = (each.ravel() for each in np.meshgrid(np.repeat(np.arange(4), 4), np.arange(6)))
    codes = np.maximum(generator.normal(size=(96, 40)) + generator.normal(size=(6, 40))[topic] - 0.5, 0)
    codes[np.arange(96), concept] += signal
    return codes, concept[:, None] == np.arange(4), topic


def test_null_data_hardly_ever_give_a_significant_concept():
    false = sum(bool((significance(seed)[1] <= 0.05).any()) for seed in range(100))
    assert false <= 9, "more than 5% with probability 0.04"
    for seed in range(5):
        features, adjusted = significance(seed, signal=6.0)
        assert features == [0, 1, 2, 3]
        assert (adjusted <= 0.05).all()


def significance(seed: int, signal: float = 0.0) -> tuple[list[int], np.ndarray]:
    """The features chosen, and their corrected p."""
    generator = np.random.default_rng(seed)
    choice = matching.choose(*crossed(generator, signal), permutations=199, rng=generator)
    return choice.feature.tolist(), choice.adjusted


def test_probes_need_as_many_features_as_a_concept_was_split_over():
    generator = np.random.default_rng(0)
    concept, topics = np.repeat(np.arange(4), 60), np.tile(np.arange(6), 40)
    labels, sets = concept[:, None] == np.arange(4), []
    for _ in range(2):
        codes = generator.gamma(1.0, 0.1, size=(240, 30))
        codes[np.arange(60), generator.integers(0, 1, 60)] += 3
        codes[60 + np.arange(60), 1 + generator.integers(0, 2, 60)] += 3
        codes[120 + np.arange(60), 3 + generator.integers(0, 5, 60)] += 3
        sets.append(codes)
    sizes = (1, 2, 3, 5, 8)
    fitted = probes.fit(sets[0], labels, topics, sizes)
    areas = np.stack([detection.own_areas(scores, labels) for scores in fitted.scores(sets[1])])
    assert probes.split_over(areas, sizes)[:3].tolist() == [1, 2, 5]
    assert (probes.split_over(np.full((5, 4), 0.5), sizes) == 0).all()
