"""The causal stage finds the mechanism that was planted, to numerical accuracy, and none where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from affectlens.config import validate
from affectlens.corpus.documents import Document, Split
from affectlens.corpus.quality import emotion_list
from affectlens.errors import ConfigError, UserError
from affectlens.interventions import tables
from affectlens.interventions.causal import Causal
from affectlens.interventions.conditions import injected_vectors
from affectlens.interventions.config import CausalConfig
from affectlens.interventions.effects import (
    Ablated,
    Injected,
    at_divergence,
    beyond_valence,
    diagonal_p,
    expected_above,
    nearest_in_valence,
    wrong_vectors,
)
from affectlens.interventions.frames import read_frames, read_lexicon, story_end
from affectlens.interventions.verdicts import Summary, summarise
from affectlens.model.subject import ModelConfig, load_tokenizer
from affectlens.model.tokens import continuation
from affectlens.model.words import choose_words
from affectlens.probing import control_vectors as controls
from affectlens.sae.model import Dictionary
from affectlens.stage import Setting
from affectlens.stages.causal import CausalStage
from affectlens.study import Study

CONCEPTS = ("afraid", "calm", "proud", "sad")
PLANTED, NULL, D, LAYER = 0, 2, 32, 1
STORY = "The rain had stopped. She put the two letters on the table and waited for the others to come home."


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Planted:
    """A Llama whose blocks do nothing and whose output row for one concept's words is one direction.

    The next-token logits are a closed form of the last token's embedding, so every effect is known. The directions of
    all concepts are orthonormal; the words of the other concepts have no output row, so their directions do nothing.
    """

    def __init__(self, source: Path, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        generator = torch.Generator().manual_seed(5)
        self.directions = torch.linalg.qr(torch.randn(D, D, generator=generator))[0][:4]
        self.words = choose_words(self.tokenizer, CONCEPTS, read_lexicon(), CausalConfig().words)
        with torch.no_grad():
            for block in model.model.layers:
                block.self_attn.o_proj.weight.zero_()
                block.mlp.down_proj.weight.zero_()
            model.model.norm.weight.fill_(1.0)
            self.embedding = torch.randn(model.config.vocab_size, D, generator=generator)
            self.output = torch.zeros_like(self.embedding)
            self.output[list(self.words[PLANTED].tokens)] = 3 * self.directions[PLANTED]
            model.model.embed_tokens.weight.copy_(self.embedding)
            model.lm_head.weight = torch.nn.Parameter(self.output.clone())
        model.config.tie_word_embeddings = False
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.folder, self.epsilon = folder, model.config.rms_norm_eps

    def contrast(self, residual: np.ndarray) -> np.ndarray:
        """Mean logit of each concept's words less the mean of the other concepts', of final residual rows."""
        residual = np.asarray(residual, dtype=np.float64)
        rms = np.sqrt((residual**2).mean(axis=-1, keepdims=True) + self.epsilon)
        found = residual / rms @ self.output.double().numpy().T
        own = np.stack([found[..., list(word.tokens)].mean(axis=-1) for word in self.words], axis=-1)
        return own - (own.sum(axis=-1, keepdims=True) - own) / (len(CONCEPTS) - 1)

    def last(self, text: str) -> np.ndarray:
        """The residual of a text's last token, the same at every layer."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.embedding[ids[-1]].double().numpy()


@pytest.fixture(scope="module")
def planted(model_folder, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return Planted(model_folder("llama"), tmp_path_factory.mktemp("planted") / "model")


def documents() -> tuple[Document, ...]:
    found = []
    splits: tuple[tuple[Split, str], ...] = (
        ("train", "park"), ("validation", "shop"), ("test", "exam"), ("test", "phone"),
    )  # fmt: skip
    for split, topic in splits:
        for number, concept in enumerate(CONCEPTS):
            narrator = "first" if number % 2 else "third"
            found.append(Document(len(found), "story", concept, topic, narrator, split, f"{STORY} {concept} {topic}."))
    return tuple(found)


def stage(planted: Planted, norm: float = 5.0, **config: Any) -> CausalStage:
    """The stage with the results of earlier stages that the planted model would give.

    The SAE's first four features read and write the four directions.
    """
    from sae_lens import SAE

    texts = documents()
    corpus = SimpleNamespace(
        documents=texts,
        emotions=CONCEPTS,
        indices=lambda *splits: [text.index for text in texts if text.split in splits],
        labels=lambda rows: np.array([[texts[row].emotion == concept for concept in CONCEPTS] for row in rows]),
        topics=lambda rows: np.array([texts[row].topic for row in rows]),
    )
    codes = np.random.default_rng(4).uniform(size=(len(texts), 64))
    codes[:, :4] = 0  # so that no search for shuffled labels ends at a studied feature
    rows = np.random.default_rng(0).normal(size=(300, D)).astype(np.float32)
    tokens = SimpleNamespace(document=np.arange(300) % len(texts), read=lambda chosen: rows[chosen])
    module = SAE.from_dict(
        {
            "architecture": "standard",
            "d_in": D,
            "d_sae": 64,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": False,
        }
    )
    extra = np.random.default_rng(1).normal(size=(60, D))
    decoder = torch.tensor(np.concatenate([planted.directions.numpy(), controls.unit_rows(extra)]), dtype=torch.float32)
    module.W_dec.data, module.W_enc.data = decoder, decoder.T.contiguous()
    module.b_enc.data, module.b_dec.data = torch.zeros(64), torch.zeros(D)
    auroc = np.random.default_rng(2).uniform(0.4, 0.6, (64, 4))
    auroc[np.arange(4), np.arange(4)] = 1.0
    results = {
        "corpus": corpus,
        "activations": SimpleNamespace(
            mean_norm=lambda layer: norm, tokens=lambda layer: tokens, pooled=lambda layer: rows[: len(texts)]
        ),
        "sae": Dictionary(module.eval().requires_grad_(False)),
        "directions": SimpleNamespace(
            unit=lambda layer: planted.directions.numpy(),
            centre=lambda layer: np.zeros(D, np.float32),
            raw=lambda layer: np.zeros((4, D)),
            neutral=lambda layer: np.empty((0, D)),
            massive=lambda layer: [],
            without_massive=lambda layer, values: values,
            strength_unit=lambda store, layer: store.mean_norm(layer),
            layers=(1, 2, 3),
        ),
        "match": SimpleNamespace(
            best=np.arange(4),
            auroc=lambda split: auroc,
            codes=codes,
            scores=lambda dictionary, rows: codes[rows],
        ),
    }
    model = ModelConfig(name=str(planted.folder), layer=LAYER, dtype="float32")
    return CausalStage(CausalConfig(**config), Setting(0, model, "cpu", 1, Path("unused")), results)


def run(built: CausalStage, folder: Path) -> tuple[dict[str, float], Causal]:
    parts = {}
    for part in built.parts():
        parts[part.name] = folder / "parts" / part.name
        parts[part.name].mkdir(parents=True)
        built.run_part(part, parts[part.name], lambda units: None)
    metrics = built.finish(parts, folder)
    return metrics, CausalStage.open(folder)


@pytest.fixture(scope="module")
def finished(planted: Planted, tmp_path_factory: pytest.TempPathFactory):
    built = stage(planted, strengths=(0.1, 0.2, 0.4), reference=0.2)
    folder = tmp_path_factory.mktemp("causal")
    metrics, result = run(built, folder)
    return SimpleNamespace(stage=built, folder=folder, metrics=metrics, result=result)


def arrays(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / "causal.safetensors")


def test_every_injected_effect_is_the_known_one(planted: Planted, finished) -> None:
    """Every vector, strength, frame and concept: the measured effect is the closed form's."""
    found = arrays(finished.folder)["inject.effect"]
    vectors, strengths = finished.stage.inputs.vectors, np.array([0.1, 0.2, 0.4]) * 5.0
    expected = np.empty(found.shape)
    for number, frame in enumerate(finished.stage.runner.frames()):
        last = planted.last(frame)
        pushed = last + strengths[None, :, None] * vectors[:, None, :].astype(np.float64)
        expected[:, :, number] = planted.contrast(pushed) - planted.contrast(last)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.abs(expected).max() > 1


def test_every_ablation_is_the_known_one(planted: Planted, finished) -> None:
    """Directions projected out, features zeroed, and the controls that take as much along other directions."""
    found, built = arrays(finished.folder), finished.stage
    random = built.inputs.mixed_controls(built.config.ablation_controls).astype(np.float64)
    for concept, own in enumerate(planted.directions.double().numpy()):
        along = np.concatenate([own[None], random])
        for number, document in enumerate(built.runner.stories(concept)):
            text, _ = built.runner.context_text(document, number)
            last = planted.last(text)
            for kind, taken in (("direction", own @ last), ("feature", max(own @ last, 0.0))):
                expected = planted.contrast(last) - planted.contrast(last - taken * along)
                np.testing.assert_allclose(found[f"ablate.{concept:04d}.{kind}"][number], expected, atol=2e-5)


def rows(result: Causal, table: str) -> list[dict]:
    return result.table(table).to_dict("records")


def test_the_planted_concept_is_sufficient_and_the_null_is_not(finished) -> None:
    verdicts = {(row["concept"], row["vector"]): row for row in rows(finished.result, "verdicts")}
    for vector in ("direction", "feature"):
        for index, concept in enumerate(CONCEPTS):
            row, planted = verdicts[concept, vector], index == PLANTED
            assert row["sufficient"] == row["specific"] == row["above_controls"] == planted
            assert (row["p_adjusted"] <= 0.05) == planted
            assert planted or not row["necessary"]
    assert "sufficient and specific" in verdicts[CONCEPTS[PLANTED], "direction"]["words"]
    assert "sufficiency not shown" in verdicts[CONCEPTS[NULL], "direction"]["words"]
    assert finished.metrics["share_sufficient_direction"] == pytest.approx(1 / 4)
    assert finished.metrics["above_controls_expected_direction"] == 0


def test_the_matrix_has_the_planted_row_and_column(finished) -> None:
    frame = finished.result.table("matrix").query("vector == 'direction'")
    matrix = frame.pivot(index="injected", columns="measured", values="effect").loc[list(CONCEPTS), list(CONCEPTS)]
    matrix = matrix.to_numpy()
    assert matrix[PLANTED, PLANTED] > 1
    # One concept's words rise, so the contrast of each of the three others falls by a third of it.
    np.testing.assert_allclose(matrix[PLANTED, 1:], -matrix[PLANTED, PLANTED] / 3, rtol=1e-4)


def test_tables_hold_every_row_once_and_no_number_that_is_none(finished) -> None:
    effects = finished.result.table("effects")
    assert len(effects) == len(CONCEPTS) * 2 * (3 + 1)
    assert effects["p"].between(0, 1, inclusive="right").all()
    assert all(np.isfinite(value) for value in finished.metrics.values())
    assert set(finished.result.table("dose")["concept"]) == set(CONCEPTS)
    controls = finished.result.table("controls").query("operation == 'inject' and vector == 'feature'")
    members = dict(zip(controls["family"], controls["members"], strict=True))
    assert members == dict.fromkeys(("isotropic", "covariance", "permuted", "random_feature"), 20) | {
        "shuffled_feature": 40,
        "wrong_emotion": 3,
    }


def test_metrics_are_the_means_that_the_tables_declare(finished) -> None:
    from affectlens.results.tables import averaged, read_all

    declared = {
        metric: frame[column].astype(float).mean()
        for table in read_all(finished.folder).values()
        for metric, frame, column in averaged(table)
    }
    assert {"effect_direction", "share_specific_feature", "share_necessary_direction"} <= set(declared)
    for metric, mean in declared.items():
        if metric in finished.metrics:
            assert finished.metrics[metric] == pytest.approx(mean), metric
    assert set(declared) - set(finished.metrics) <= {f"share_necessary_{it}" for it in ("direction", "feature")}


def test_shuffled_controls_are_built_as_directions_and_features_are(planted: Planted) -> None:
    """One story a concept and topic: a shuffled label is one story of each topic, less the mean of all."""
    built = stage(planted)
    names, vectors = built.inputs.names, built.inputs.vectors
    shuffled = np.array([family == "shuffled_direction" for _, family in names])
    assert shuffled.sum() == 40
    stories = built.inputs.activations.pooled(LAYER)[built.inputs.corpus.indices("train", "validation")]
    pairs = (stories[:4, None] + stories[None, 4:]).reshape(16, D) / 2
    possible = controls.unit_rows(pairs - stories.mean(axis=0))
    assert np.abs(vectors[shuffled] @ possible.T).max(axis=1) == pytest.approx(1, abs=1e-5)
    decoder = controls.unit_rows(built.inputs.sae.decoder)
    features = vectors[np.array([family == "shuffled_feature" for _, family in names])]
    assert (features @ decoder.T).max(axis=1) == pytest.approx(1, abs=1e-5)


def test_the_same_study_gives_the_same_bytes_in_any_slices(planted: Planted, finished, tmp_path: Path) -> None:
    again = stage(planted, strengths=(0.1, 0.2, 0.4), reference=0.2)
    run(again, tmp_path / "again")
    names = ["causal.json", "causal.safetensors", *(f"tables/{table.name}.parquet" for table in tables.TABLES)]
    for path in (Path(name) for name in names if (finished.folder / name).exists()):
        assert (tmp_path / "again" / path).read_bytes() == (finished.folder / path).read_bytes()
    sliced = stage(planted, strengths=(0.1, 0.2, 0.4), reference=0.2, vectors_per_part=7, tokens_per_batch=60)
    run(sliced, tmp_path / "sliced")
    for name, values in arrays(tmp_path / "sliced").items():
        np.testing.assert_allclose(values, arrays(finished.folder)[name], atol=1e-5)


def test_a_set_of_features_and_further_outcomes(planted: Planted, tmp_path: Path) -> None:
    """Sets, two layers, reading downstream, sampled text with words free and banned."""
    built = stage(
        planted, strengths=(0.4,), reference=0.4, feature_set=3, layers=(2,), readout_layer=3, samples=2,
        sample_tokens=8, knockout=True, feature_ablation="resample", vectors_per_part=50, frames=2,
    )  # fmt: skip
    metrics, result = run(built, tmp_path)
    assert set(result.table("matrix")["vector"]) == {"direction", "feature", "features"}
    # Twice the push at two layers whose blocks do nothing is one push of twice the strength.
    found = arrays(tmp_path)["inject.effect"][PLANTED, 0, 0]
    last = planted.last(built.runner.frames()[0])
    pushed = last + 2 * 0.4 * 5.0 * planted.directions[PLANTED].double().numpy()
    np.testing.assert_allclose(found, planted.contrast(pushed) - planted.contrast(last), atol=2e-5)
    # Reading a direction where it was put: the push itself, in norms, against the mean of the others' (none).
    reading = [row for row in rows(result, "readout") if row["vector"] == "direction"]
    assert [row["effect"] for row in reading] == pytest.approx([0.8] * 4, abs=1e-5)
    assert all(row["above_controls"] for row in reading)
    texts = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    openings = len(read_frames()["openings"])
    assert len(texts) == 2 * 2 * openings * (1 + len(built.inputs.names))
    assert {text["vector"] for text in texts} >= {"none", "direction calm", "features sad", "isotropic"}
    samples = result.table("samples").query("concept == 'calm' and score == 'probe'")
    assert len(samples) == 2 * 3
    assert np.isfinite(samples["perplexity_ratio"]).all()
    assert samples["repetition"].between(0, 1).all()
    assert "knockout_text_probe_above_controls_direction" in metrics
    # Sampled with the planted concept pushed, its words come; banned, they do not.
    words = planted.words[PLANTED]
    forms = [planted.tokenizer.decode([token]).strip() for token in words.tokens]

    def said(banned: bool) -> int:
        own = [
            text["text"] for text in texts if text["vector"] == "direction afraid" and text["words_banned"] is banned
        ]
        return sum(form in text for text in own for form in forms)

    assert said(False) > 0
    if words.whole:
        assert said(True) == 0


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"strengths": (0.1, 0.1)}, "strengths"),
        ({"strengths": (-0.1, 0.1)}, "strengths"),
        ({"reference": 0.3}, "reference: 0.3"),
        ({"feature_set": 1}, "feature_set: 1"),
        ({"controls": 5}, "controls"),
    ],
)
def test_a_config_that_cannot_be_is_refused(values: dict, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        validate(CausalConfig, values, "study.yaml")


def test_layers_that_are_not_cached_are_refused_before_anything_runs(study_values: dict, write_study) -> None:
    for key, value, complaint in (
        ("layers", [1], "causal.layers: 1"),
        ("readout_layer", 3, "causal.readout_layer: 3"),
        ("readout_layer", 0, "not above"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            Study.load(write_study(study_values | {"causal": {key: value}}))


def test_equal_divergence_compares_what_is_equally_far() -> None:
    """Of two vectors with one effect per strength, the one that disturbs four times as much loses half of it."""
    strengths = np.array([0.5, 1.0, 2.0])
    effect = np.stack([strengths, strengths])[..., None]
    divergence = np.stack([strengths**2, 4 * strengths**2])
    found = at_divergence(effect, divergence, target=1.0)[:, 0]
    np.testing.assert_allclose(found, [1.0, 0.5])
    assert at_divergence(effect, divergence, target=100.0)[0, 0] == 2.0


def test_the_diagonal_is_tested_against_labels_permuted_among_vectors() -> None:
    generator = np.random.default_rng(0)
    p = [diagonal_p(generator.normal(size=(8, 8)) * np.arange(1, 9), 199, generator) for _ in range(300)]
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.04)
    own = generator.normal(size=(24, 24)) + 1.5 * np.eye(24)
    assert diagonal_p(own, 999, generator) == 1 / 1000
    # A vector that raises all words, and words that all vectors raise, say nothing of labels.
    assert diagonal_p(np.add.outer(np.arange(6.0), np.arange(6.0)), 99, generator) == 1


def test_wrong_labels_set_what_is_to_be_expected_above_controls() -> None:
    matrix = np.array([[9.0, 2.0, 0.0], [0.0, 9.0, 2.0], [0.0, 0.0, 9.0]])
    assert expected_above(matrix, np.ones(3)) == pytest.approx(2 / 6)
    derangements = [[1, 2, 0], [2, 0, 1]]
    counted = [np.mean([matrix[row, column] > 1 for column, row in enumerate(order)]) for order in derangements]
    assert expected_above(matrix, np.ones(3)) == pytest.approx(np.mean(counted))


def test_wrong_vectors_and_valence_count_the_others() -> None:
    matrix = np.array([[2.0, 0.0, 1.0], [3.0, 1.0, 0.5], [0.0, 0.0, 0.4]])
    np.testing.assert_allclose(wrong_vectors(matrix), [0.5, 0.0, 1.0])
    ratings = {name: {"valence": value} for name, value in (("a", 1.0), ("b", 1.2), ("c", 8.0))}
    near = nearest_in_valence(("a", "b", "c", "d"), ratings, 1)
    assert near == {0: [1], 1: [0], 2: [1]}
    effect = np.zeros((4, 2, 4))
    effect[0, :, 0], effect[0, :, 1] = [1.0, 2.0], 0.75
    beyond: Any = beyond_valence(effect, near)
    np.testing.assert_allclose(beyond[0], [0.25, 1.25])
    assert beyond[3] is None


def test_controls_share_what_they_are_matched_in() -> None:
    generator = np.random.default_rng(0)
    scales = np.linspace(0.1, 3, 16)
    rows = generator.normal(size=(4000, 16)) * scales + 7
    drawn = controls.covariance_matched(3000, rows, generator)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1)
    spread = drawn.std(axis=0)
    assert np.corrcoef(spread, scales)[0, 1] > 0.98
    assert abs(controls.isotropic(3000, 16, generator).std(axis=0) - 0.25).max() < 0.03
    vectors = controls.unit_rows(generator.normal(size=(2, 16)))
    copies = controls.permuted(5, vectors, generator)
    for index, copy in enumerate(copies):
        np.testing.assert_allclose(np.sort(copy), np.sort(vectors[index % 2]))
        assert not np.allclose(copy, vectors[index % 2])


def test_random_features_fire_as_often_and_are_others() -> None:
    frequency = np.concatenate([np.zeros(50), np.geomspace(1e-4, 0.5, 950)])
    studied = np.array([100, 500, 900])
    drawn = controls.frequency_matched(studied, frequency, 30, np.random.default_rng(0))
    assert not set(drawn) & set(studied)
    assert len(set(drawn)) == 30
    wanted = frequency[studied[np.arange(30) % 3]]
    assert (np.abs(np.log(frequency[drawn] / wanted)) < 0.5).all()


def test_a_turned_set_keeps_lengths_and_angles() -> None:
    generator = np.random.default_rng(0)
    vectors, along = generator.normal(size=(3, 16)), generator.normal(size=(3, 16))
    turned = controls.same_geometry(vectors, along)
    np.testing.assert_allclose(turned @ turned.T, vectors @ vectors.T)
    assert np.abs(controls.unit_rows(turned) @ controls.unit_rows(vectors).T).max() < 0.9
    one = controls.same_geometry(vectors[:1], along[:1])
    np.testing.assert_allclose(one, np.linalg.norm(vectors[0]) * controls.unit_rows(along[:1]))


def test_families_take_turns() -> None:
    first, second = np.zeros((2, 3)), np.ones((1, 3))
    assert controls.in_turn([first, second], 5)[:, 0].tolist() == [0, 1, 0, 0, 1]


def test_the_lexicon_serves_every_emotion() -> None:
    lexicon = read_lexicon()
    assert set(lexicon) == set(emotion_list())
    for concept, words in lexicon.items():
        assert 8 <= len(words) <= 14, concept
        assert len(set(words)) == len(words), concept
        assert all(word == word.lower() and " " not in word for word in words), concept


def test_frames_name_no_emotion() -> None:
    words = {word for each in read_lexicon().values() for word in each} | set(emotion_list())
    for kind, texts in read_frames().items():
        assert len(set(texts)) == len(texts)
        for text in texts:
            assert not words & set(text.lower().replace(",", "").split()), (kind, text)


def test_words_are_single_balanced_and_belong_to_one_concept(model_folder) -> None:
    tokenizer = load_tokenizer(ModelConfig(name=str(model_folder("llama"))), Path("unused"))
    lexicon = {"a": ["the", "and", "to", "both"], "b": ["he", "both", "quixotically"], "c": ["quixotically", "zyxwv"]}
    a, b, c = choose_words(tokenizer, ("a", "b", "c"), lexicon, most=2)
    assert len(a.words) == 2
    assert set(a.words) < {"the", "and", "to"}
    assert b.words == ("he",)
    assert a.whole
    assert b.whole
    assert not c.whole, "no word of it is one token, so first pieces stand in, and it says so"
    assert c.words == ("zyxwv",)
    d, e = choose_words(tokenizer, ("d", "e"), {"d": ["the", "both"], "e": ["both"]}, most=2)
    assert not d.shared
    assert e.shared, "it has no word of its own, so one that d has too stands in, and it says so"
    assert e.words == ("both",)
    with pytest.raises(UserError, match="also belongs to `c`"):
        choose_words(tokenizer, ("c", "d"), {"c": ["zyxwv"], "d": ["zyxwv"]}, most=2)


def test_words_have_the_tokens_of_running_text_with_a_space_mark_before_every_text() -> None:
    """Llama 2's own tokenizer turns " sad" by itself into a lone space mark and a word."""
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = ["angry", "afraid", "felt", "("]
    vocabulary, merges = {"<unk>": 0, "\u2581": 1}, {}
    for letter in sorted(set("".join(words))):
        vocabulary.setdefault(letter, len(vocabulary))
    for word in words[:3]:
        for end in range(1, len(word) + 1):
            merges["\u2581" + word[: end - 1], word[end - 1]] = None
            vocabulary.setdefault("\u2581" + word[:end], len(vocabulary))
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges), unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    angry, mark = vocabulary["\u2581angry"], vocabulary["\u2581"]
    assert tokenizer(" angry", add_special_tokens=False)["input_ids"] == [mark, angry]
    scored = choose_words(tokenizer, ("afraid", "angry"), {}, most=3)
    assert [each.tokens for each in scored] == [(vocabulary["\u2581afraid"],), (angry,)]
    assert all(each.whole for each in scored)
    # A candidate after "(" follows it without a space.
    bare = continuation(tokenizer, "(", "angry")
    assert bare[0] == vocabulary["a"]
    assert mark not in bare


def test_story_ends_are_whole_sentences_that_fit() -> None:
    def count(text: str) -> list[str]:
        return text.split()

    text = "One two three. Four five six! 'Seven eight?' Nine ten."
    assert story_end(text, count, 5) == "'Seven eight?' Nine ten."
    assert story_end(text, count, 2) == "Nine ten."
    assert story_end(text, count, 1) == "ten."
    assert story_end(text, count, 99) == text


class Measured:
    """Made-up measurements of four concepts: the first is raised by injection and lowered by ablation."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.config = CausalConfig(strengths=(0.1,))
        self.families = np.array([family for _, family in injected_vectors(self.config, CONCEPTS)])
        effect = 0.05 * generator.normal(size=(len(self.families), 1, 6, 4))
        effect[0, :, :, 0] += 1.0
        self.effect, self.perplexity = effect, np.ones((8, 1))
        self.drop = 0.05 * generator.normal(size=(4, 3, 21, 4))
        self.drop[0, :, 0, 0] += 1.0
        self.base = np.zeros((4, 3, 4)) + np.eye(4)[:, None, :]

    def summary(self) -> Summary:
        far = np.abs(self.effect).max(axis=-1)
        injected = Injected(self.families, (0.1,), 0, self.effect, far, self.perplexity)
        order = np.arange(3)
        ablated = [
            Ablated({"direction": drop, "feature": drop * 0}, {"feature": np.zeros(3)}, base, order, np.zeros(3, int))
            for drop, base in zip(self.drop, self.base, strict=True)
        ]
        ratings = {concept: {"valence": float(index)} for index, concept in enumerate(CONCEPTS)}
        return summarise(CONCEPTS, injected, ablated, ratings, self.config, np.random.default_rng(0))

    def verdict(self, concept: str = "afraid", vector: str = "direction") -> dict:
        found = self.summary().tables[tables.VERDICTS]
        return next(row for row in found if (row["concept"], row["vector"]) == (concept, vector))


def test_a_verdict_says_what_was_shown_and_of_whom() -> None:
    measured = Measured()
    first = measured.verdict()
    assert (first["sufficient"], first["specific"], first["necessary"]) == (True, True, True)
    assert "sufficient and specific." in first["words"]
    assert ": necessary." in first["words"]
    feature = measured.verdict(vector="feature")
    assert "does not fire" in feature["words"]
    assert not feature["sufficient"]
    for concept in CONCEPTS[1:]:
        verdict = measured.verdict(concept)
        assert not (verdict["sufficient"] or verdict["specific"] or verdict["necessary"])
        assert "sufficiency not shown" in verdict["words"]
        assert "necessity not shown" in verdict["words"]
    metrics = measured.summary().metrics
    assert metrics["share_necessary_direction"] == 0.25
    assert metrics["share_sufficient_direction_n"] == 4


def test_what_spoils_neutral_text_does_not_count() -> None:
    measured = Measured()
    measured.perplexity[0] = 2.0
    first = measured.verdict()
    assert first["p_adjusted"] <= 0.05
    assert not first["sufficient"]
    assert "2.0 times" in first["words"]


def test_words_raised_by_a_wrong_vector_too_are_not_specific() -> None:
    measured = Measured()
    measured.effect[1, :, :, 0] += 1.5
    first = measured.verdict()
    assert first["above_controls"]
    assert not first["first"]
    assert not first["specific"]


def test_an_effect_that_words_of_like_valence_share_in_some_frames_is_not_specific() -> None:
    measured = Measured()
    measured.effect[0, 0, :, 1:] += np.array([3.0, -3.0] * 3)[:, None]
    first = measured.verdict()
    assert first["sufficient"]
    assert first["first"]
    assert first["beyond_valence_low"] < 0
    assert not first["specific"]


def test_stories_that_do_not_evoke_show_no_necessity() -> None:
    measured = Measured()
    measured.base[0, :, 0] = -1.0
    first = measured.verdict()
    assert first["necessary"] is None


def test_directions_of_wrong_emotions_that_are_as_strong_take_the_verdict_away() -> None:
    """Every vector raises every concept's words far above random controls: nothing is shown of any label."""
    measured = Measured()
    generator = np.random.default_rng(1)
    measured.effect[:4] = 1 + 0.3 * generator.normal(size=(4, 1, 1, 4))
    found = measured.summary()
    rows = [row for row in found.tables[tables.VERDICTS] if row["vector"] == "direction"]
    assert all(row["above_controls"] for row in rows)
    assert not any(row["sufficient"] for row in rows)
    assert {row["hardest_family"] for row in rows} == {"wrong_emotion"}
    assert found.metrics["above_controls_expected_direction"] == 1


def test_all_concepts_can_be_studied_at_once() -> None:
    """Also where long words fall into pieces, so that some concepts have no token that is theirs alone."""
    known: dict[str, int] = {}

    class Tokenizer:
        all_special_ids, unk_token_id = (), None

        def __call__(self, text: str, **options: bool) -> dict[str, list[int]]:
            pieces = [piece for word in text.split() for piece in ([word] if len(word) < 9 else [word[:5], word[5:]])]
            return {"input_ids": [known.setdefault(piece, len(known)) for piece in pieces]}

    found = choose_words(Tokenizer(), emotion_list(), read_lexicon(), most=6)
    assert len({frozenset(each.tokens) for each in found}) == len(found) == 171
    assert any(each.shared for each in found)
