"""Text for SAE training that the model writes itself."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from affectlens.corpus.texts import EMBEDDED, read_jsonl
from affectlens.model.subject import ModelConfig, Subject
from affectlens.sae import text_sampling as sampling


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_samples_are_long_enough_and_the_same_for_a_seed(model_folder, tmp_path, monkeypatch) -> None:
    model = ModelConfig(name=str(model_folder("llama")), dtype="float32")
    subject = Subject.load(model, device="cpu", models=tmp_path)
    monkeypatch.setattr(sampling, "ROWS", 3)
    monkeypatch.setattr(sampling, "LEAST", 20)
    texts = list(sampling.samples(subject, 5, 30, seed=1))
    assert texts
    assert all(len(subject.encode(text)) >= sampling.LEAST for text in texts)
    assert texts == list(sampling.samples(subject, 5, 30, seed=1))
    assert set(texts).isdisjoint(sampling.samples(subject, 5, 30, seed=2))
    # A longer run begins with the samples of a shorter one.
    assert list(sampling.samples(subject, 6, 30, seed=1))[: len(texts)] == texts


def test_the_file_is_one_that_a_corpus_takes(model_folder, tmp_path, monkeypatch) -> None:
    out = tmp_path / "new" / "texts.jsonl"
    model = str(model_folder("llama"))
    words = ["sampling", str(out), "--model", model, "--models", str(tmp_path), "--texts", "2", "--tokens", "90"]
    monkeypatch.setattr(sys, "argv", words)
    sampling.main()
    neutral = read_jsonl(EMBEDDED / "neutral.jsonl")
    rows = read_jsonl(out, required=("kind", "text"))
    assert [json.dumps(row) for row in rows[: len(neutral)]] == [json.dumps(row) for row in neutral]
    assert {row["kind"] for row in rows[len(neutral) :]} <= {"sampled"}
