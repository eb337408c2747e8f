"""Writes ``models.md``: whether each architecture of transformers is read as transformers itself computes it.

``python docs/models.py [MODEL_TYPE ...]`` builds a random model of every architecture that transformer-lens knows (four
blocks of width 32; norms and biases are not at their neutral values), reads it as a study does, and compares the
residual stream after each block with transformers' own hidden states. It takes some minutes.
"""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from affectlens.errors import UserError
from affectlens.model.config import ModelConfig, Site
from affectlens.model.reading import Trunk, open_reader
from affectlens.model.subject import Subject
from tiny import _tokenizer

TABLE = Path(__file__).parent / "models.md"
BLOCKS, WIDTH = 4, 32
MOST = 5_000_000
LARGEST = 1e-4
"""Difference that rounding explains."""
SIZES: dict[str, Any] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), BLOCKS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), WIDTH),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 512),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k"), 2),
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 640, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
    "sliding_window": 8, "rotary_dim": 4,
}  # fmt: skip
"""Under every name that some architecture has for them; the others are ignored."""
MORE: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8},
    "deepseek_v3": {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
                    "n_group": 1, "topk_group": 1, "num_key_value_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "mpt": {"attn_config": {"attn_impl": "eager"}},
    "bert": {"is_decoder": True},
}  # fmt: skip


def architectures() -> dict[str, str]:
    """Class of the causal model by ``model_type``, of those that transformer-lens knows."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = {kind: name for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if isinstance(name, str)}
    return {kind: name for kind, name in sorted(known.items()) if name in SUPPORTED_ARCHITECTURES}


def build(kind: str, folder: Path) -> Any:
    """A random model of an architecture, saved with a tokenizer; returned as transformers loads it."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind)
    if config.get_text_config() is not config:
        raise ValueError("a model of several modalities; its text model may be a row of its own")
    fixed = {name for name in SIZES if isinstance(getattr(type(config), name, None), property)}
    kept = {
        name: value
        for name, value in {**SIZES, **MORE.get(kind, {})}.items()
        if name not in fixed and name in config.to_dict() | config.attribute_map
    }
    sized = transformers.AutoConfig.for_model(kind, **kept)
    with torch.device("meta"):
        count = sum(weight.numel() for weight in transformers.AutoModelForCausalLM.from_config(sized).parameters())
    if count > MOST:
        raise ValueError(f"{count / 1e6:,.0f} million parameters with these sizes")
    model = transformers.AutoModelForCausalLM.from_config(sized)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight)) if weight.ndim == 1 else weight.mul_(3)
    model.save_pretrained(folder)
    _tokenizer(folder, bos=True)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def difference(model: Any, reader: Any) -> float:
    """Largest difference of a residual row from transformers' own, as a share of its norm; one row is padded."""
    import torch

    ids = torch.tensor([[0] + [(7 * place) % 600 + 5 for place in range(40)]])
    short = ids[:, :9]
    padded = torch.cat([ids, torch.nn.functional.pad(short, (0, 32))])
    sites = [Site(layer) for layer in range(BLOCKS - 1)]
    found, largest = reader.activations(padded, sites), 0.0
    for row, tokens in enumerate((ids, short)):
        with torch.no_grad():
            states = model.eval()(tokens, output_hidden_states=True, use_cache=False).hidden_states
        for site in sites:
            want = states[site.layer + 1][0].float()
            gap = (found[site][row, : len(want)].float() - want).norm(dim=-1) / want.norm(dim=-1)
            largest = max(largest, float(gap.max()))
    return largest


@dataclass(frozen=True)
class Row:
    """What was found of one architecture.

    Attributes:
        way: the library whose modules are run for reading; empty where the model is refused or was not built.
        difference: largest, as a share of the residual's norm.
        reason: why it is refused, for reading or for steering, or why it could not be built.
    """

    name: str
    kind: str
    way: str = ""
    difference: float = 0.0
    steered: bool = False
    reason: str = ""
    built: bool = True

    def __str__(self) -> str:
        if not self.way:
            return f"| {self.name} | `{self.kind}` | {self.reason} |"
        steered = "yes" if self.steered else f"refused: {self.reason}"
        return f"| {self.name} | `{self.kind}` | {self.way} | {self.difference:.0e} | {steered} |"


def check(kind: str, name: str) -> Row:
    """Build, read and compare one architecture."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "model"
        try:
            model = build(kind, folder)
        except Exception as error:
            return Row(name, kind, reason=_short(error), built=False)
        config = ModelConfig(name=str(folder), layer=BLOCKS - 2, dtype="float32")
        try:
            reader = open_reader(config, BLOCKS - 1, device="cpu", models=Path(root))
            found = difference(model, reader)
        except UserError as refusal:
            return Row(name, kind, reason=_short(refusal))
        way = "transformers" if isinstance(reader, Trunk) else "transformer-lens"
        try:
            Subject.load(config, device="cpu", models=Path(root))
        except UserError as refusal:
            return Row(name, kind, way, found, reason=_short(refusal))
        return Row(name, kind, way, found, steered=True)


def _short(error: Exception) -> str:
    words = re.sub(r"`model\.name: \S+`: ", "", " ".join(str(error).split()))
    words = words.partition("; study another model")[0]
    return re.sub(r"/\S+", "...", words).replace("|", "/")[:160]


HEAD = """# Models

Generated by `docs/models.py`, which builds a random model of each architecture that transformer-lens {lens} knows (four
blocks of width 32, norms and biases not at their neutral values), reads it as a study does, and compares the residual
stream after each block with the hidden states of transformers {transformers}, float32, one row padded. The difference
is the largest of any row, as a share of its norm. "Steered" means that all values under transformer-lens, logits
included, equal transformers' too. On every load the same is compared on one short prompt, so that a model whose values
differ is refused, whatever this page says. An architecture that transformer-lens does not know is refused.

| class in transformers | `model_type` | read through | difference | steered |
|---|---|---|---|---|
"""
REFUSED = """
## Refused

| class in transformers | `model_type` | why |
|---|---|---|
"""
UNTRIED = """
## Not tried

No small random model could be built of these with the sizes of this script.

| class in transformers | `model_type` | why |
|---|---|---|
"""


def main() -> None:
    """Check the named architectures and print them, or check all and write the page."""
    import torch
    import transformers

    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    asked, rows = sys.argv[1:], []
    for kind, name in architectures().items():
        if not asked or kind in asked:
            rows.append(check(kind, name))
            print(rows[-1], flush=True)
    wrong = [row.kind for row in rows if row.difference > LARGEST]
    if wrong:
        raise SystemExit(f"read with other values than transformers computes: {', '.join(wrong)}")
    if not asked:
        head = HEAD.format(lens=version("transformer-lens"), transformers=version("transformers"))
        parts = [head, *(f"{row}\n" for row in rows if row.way)]
        parts += [REFUSED, *(f"{row}\n" for row in rows if not row.way and row.built)]
        parts += [UNTRIED, *(f"{row}\n" for row in rows if not row.built)]
        TABLE.write_text("".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
