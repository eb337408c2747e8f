"""Reading a text of one's own: 500 tokens against a bare forward pass, and a command from its start to its end.

The study is the quickstart, whose directions are computed first where they are not in ``cache/`` yet (three minutes;
the rest takes two). The bare forward pass is transformers' model, whole, on the same tokens in the same type.
Everything computes with one torch thread.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import affectlens
import harness
import torch
from affectlens.model.loading import load_weights
from affectlens.use.readings import Readings
from affectlens.use.texts import read_texts
from harness import Row

TOKENS = 500
TEXT = "Nobody came, and the lamp is still on."
PEER = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
folder, dtype, text = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
with torch.no_grad():
    model(tokenizer(text, return_tensors="pt").input_ids)
"""


def text_of(study: affectlens.OpenStudy, tokens: int) -> str:
    """So many tokens of the study's stories, one after the other, or a few less."""
    ids = study.tokenizer(" ".join(study.documents["text"][:20]), add_special_tokens=False)["input_ids"]
    return study.tokenizer.decode(ids[:tokens])


def started(arguments: Sequence[str]) -> None:
    """One process from start to end, its output thrown away."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measure(quick: bool) -> Sequence[Row]:
    """All rows, contenders taken in turns."""
    study = affectlens.run_study("quickstart", "compute.threads=1", stages=["directions"])
    assert study.study is not None
    setting = study.study.setting("cpu")
    torch.set_num_threads(1)
    readings, text = Readings.of(study), text_of(study, TOKENS)
    model: Any = load_weights(setting.model, device="cpu", models=setting.models)
    ids = torch.tensor([[study.tokenizer.bos_token_id, *study.tokenizer(text, add_special_tokens=False)["input_ids"]]])

    def read() -> None:
        list(read_texts(study, readings, [("text", text)]))

    def bare() -> None:
        with torch.inference_mode():
            model(ids, use_cache=False)

    taken = harness.medians({"read": read, "bare": bare}, 5 if quick else 21)
    (folder,) = setting.models.glob("gguf-*[0-9a-f]/")
    command = ["-m", "affectlens.cli", "read", "quickstart", TEXT, "--json", "-", "--set", "compute.threads=1"]
    peer = ["-c", PEER, str(folder), str(model.dtype).removeprefix("torch."), TEXT]
    processes = {"read": partial(started, command), "peer": partial(started, peer)}
    whole = harness.medians(processes, 1 if quick else 5)
    return [
        Row(f"{ids.shape[1] - 1} tokens after start-up; peer: a bare forward pass", taken["read"], taken["bare"], "s"),
        Row(
            "`affectlens read` of 9 words; peer: load model and tokenizer, one pass", whole["read"], whole["peer"], "s"
        ),
    ]


def main() -> None:
    """Run all parts and print one table."""
    chosen = harness.options(__doc__)
    rows = measure(chosen.quick)
    harness.print_table(rows)
    if chosen.json:
        harness.write_json(chosen.json, rows, harness.machine("torch", "transformers") | {"threads": 1})


if __name__ == "__main__":
    main()
