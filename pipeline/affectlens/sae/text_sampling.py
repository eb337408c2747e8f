"""Text sampled from the model under study, for SAE training: what it reads most is what it would write.

``python -m affectlens.sae.text_sampling OUT.jsonl`` writes the embedded neutral texts followed by samples, a file that
``corpus.neutral`` takes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from affectlens.corpus.texts import EMBEDDED, read_jsonl
from affectlens.model.subject import ModelConfig, Subject

ROWS = 32
"""Samples that are drawn together."""
LEAST = 64
"""Tokens under which a sample, read again by the tokenizer, is left out."""


def samples(subject: Subject, count: int, tokens: int, seed: int) -> Iterator[str]:
    """Texts that the model continues from its begin token alone, at temperature 1.

    Args:
        count: how many are drawn; repetitive and very short ones are left out.
        tokens: length of each.
        seed: of the draws; each block of samples has its own.
    """
    import numpy as np

    from affectlens.model.sampling import repetition, sample

    for first in range(0, count, ROWS):
        chances = np.random.default_rng([seed, first]).random((min(ROWS, count - first), tokens))
        for (completion,) in sample(subject, [subject.led([])], chances[:, None], special="never"):
            text = subject.tokenizer.decode(completion.tokens).strip()
            if len(subject.encode(text)) >= LEAST and repetition(completion.tokens) < 0.5:
                yield text


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON-lines file to write")
    parser.add_argument("--model", default="embedded", help="as model.name of a study")
    parser.add_argument("--models", type=Path, default=Path("cache/models"), help="where converted models are kept")
    parser.add_argument("--texts", type=int, default=640, help="samples to draw")
    parser.add_argument("--tokens", type=int, default=160, help="length of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    subject = Subject.load(ModelConfig(name=given.model), device=given.device, models=given.models)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with given.out.open("w", encoding="utf-8") as stream:
        for row in read_jsonl(EMBEDDED / "neutral.jsonl"):
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        for number, text in enumerate(samples(subject, given.texts, given.tokens, given.seed)):
            row = {"id": f"sampled-{number:04d}", "kind": "sampled", "text": text}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            stream.flush()


if __name__ == "__main__":
    main()
