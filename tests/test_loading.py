"""A model is loaded whole and as its library computes it, or refused in one sentence."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from affectlens.errors import ConfigError, UserError
from affectlens.files import file_digest
from affectlens.model import embedded
from affectlens.model.config import ModelConfig, Shape, depth_override, dtype_name, identity, resolve_dtype, shape
from affectlens.model.converted import converted_folder, damage
from affectlens.model.loading import gguf_file, load_tokenizer, load_weights
from affectlens.model.reading import open_reader
from affectlens.model.subject import Subject
from affectlens.model.tokens import Chat, encode, tokenise
from safetensors.torch import load_file, save_file
from tiny import build_model


@pytest.fixture
def copied(tmp_path, model_folder):
    """``copied(change)`` -> a tiny Llama whose tensors, by name, were changed."""

    def copy(change=lambda weights: weights) -> ModelConfig:
        folder = Path(shutil.copytree(model_folder("llama"), tmp_path / "copy"))
        weights = change(load_file(folder / "model.safetensors"))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return ModelConfig(name=str(folder), layer=2, dtype="float32")

    return copy


def without(*names: str):
    return lambda weights: {name: values for name, values in weights.items() if name not in names}


ROUTES = {
    "trunk": lambda config, models: open_reader(config, 3, device="cpu", models=models),
    "bridge": lambda config, models: Subject.load(config, device="cpu", models=models),
    "weights": lambda config, models: load_weights(config, device="cpu", models=models),
}


@pytest.mark.parametrize("route", ROUTES)
def test_weights_that_a_checkpoint_lacks_are_refused(tmp_path, copied, route: str):
    config = copied(without("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(UserError, match=r"lacks weights.*layers\.1\.mlp\.up_proj\.weight"):
        ROUTES[route](config, tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "base_model.model.", "_orig_mod."])
@pytest.mark.parametrize("route", ROUTES)
def test_renamed_weights_are_refused_and_the_prefix_is_named(tmp_path, copied, route: str, prefix: str):
    config = copied(lambda weights: {prefix + name: values for name, values in weights.items()})
    with pytest.raises(UserError, match=rf"lacks weights.* and \d+ more\); its names begin with `{prefix}"):
        ROUTES[route](config, tmp_path)


@pytest.mark.parametrize("tensor", ["layers.0.self_attn.q_proj.weight", "embed_tokens.weight"])
@pytest.mark.parametrize("route", ROUTES)
def test_weights_of_another_shape_are_refused_by_name(tmp_path, copied, route: str, tensor: str):
    config = copied(lambda weights: {name: v[:-8].clone() if tensor in name else v for name, v in weights.items()})
    with pytest.raises(UserError, match="in another shape .*" + tensor.replace(".", r"\.")):
        ROUTES[route](config, tmp_path)


def test_what_lies_above_the_cut_may_be_missing(tmp_path, copied):
    config = copied(without("model.layers.3.mlp.up_proj.weight", "lm_head.weight"))
    assert open_reader(config, 3, device="cpu", models=tmp_path).width == 32


def test_loading_draws_nothing_and_leaves_the_logs_as_they_were(tmp_path, model_folder, copied):
    config = ModelConfig(name=str(model_folder("llama")), dtype="float32")
    logs = transformers.utils.logging
    before, state = (logs.get_verbosity(), logs.is_progress_bar_enabled()), torch.random.get_rng_state()
    load_weights(config, device="cpu", models=tmp_path)
    with pytest.raises(UserError):
        load_weights(copied(without("lm_head.weight")), device="cpu", models=tmp_path)
    assert (logs.get_verbosity(), logs.is_progress_bar_enabled()) == before
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_bridge_that_computes_other_values_is_refused(tmp_path):
    """Cohere's interleaved rotary positions, as transformer-lens 3.9 reads them."""
    folder = build_model(tmp_path / "cohere", "llama")
    tokenizer = load_tokenizer(ModelConfig(name=str(folder)), tmp_path)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 640, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    settings = transformers.CohereConfig(**sizes, num_key_value_heads=2, intermediate_size=64)
    model = transformers.AutoModelForCausalLM.from_config(settings)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(3)
    other = tmp_path / "other"
    model.save_pretrained(other)
    tokenizer.save_pretrained(other)
    with pytest.raises(UserError, match=r"other values than transformers.*differs by [\d.]+%"):
        open_reader(ModelConfig(name=str(other), dtype="float32"), 2, device="cpu", models=tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[1, 2]", "does not describe a model"),
        ("null", "does not describe a model"),
        ("{", "no valid JSON"),
        ("[" * 100_000, "no valid JSON"),
        ('{"text_config": 3}', "does not describe a model"),
        ('{"num_hidden_layers": 0, "hidden_size": 32}', "names no depth or width"),
        ('{"num_hidden_layers": "many", "hidden_size": 32}', "names no depth or width"),
        ("{}", "names no depth or width"),
    ],
)
def test_a_broken_configuration_is_one_sentence(tmp_path, content: str, reason: str):
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=reason):
        shape(ModelConfig(name=str(tmp_path)))


@pytest.mark.parametrize("name", ["./nothing", "/no/such/folder", "weights.gguf", "a b c", "x/y/z"])
def test_a_path_to_nothing_is_one_sentence(name: str):
    with pytest.raises(ConfigError, match=r"model\.name.*no such folder"):
        shape(ModelConfig(name=name))


def test_a_model_without_its_tokenizer_is_one_sentence(tmp_path, copied):
    config = copied()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (Path(config.name) / file).unlink()
    with pytest.raises(UserError, match="tokenizer") as error:
        Subject.load(config, device="cpu", models=tmp_path)
    assert len(str(error.value).splitlines()) == 1
    (Path(config.name) / "tokenizer.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="tokenizer"):
        load_tokenizer(config, tmp_path)


def test_weights_that_cannot_be_read_are_one_sentence(tmp_path, copied):
    config = copied()
    (Path(config.name) / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"`model.name: .*copy`: the model could not be loaded \(.+\)$"):
        open_reader(config, 2, device="cpu", models=tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "merges.txt", "code.py", "extra/template.jinja", "weights.pt"])
def test_every_file_of_a_folder_counts_but_documents(copied, name: str):
    config = copied()
    before, file = identity(config), Path(config.name) / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("changed", encoding="utf-8")
    assert identity(config) != before
    after = identity(config)
    (Path(config.name) / "README.md").write_text("a document", encoding="utf-8")
    (Path(config.name) / ".cache").mkdir()
    (Path(config.name) / ".cache" / "x").write_text("hidden", encoding="utf-8")
    assert identity(config) == after


def test_a_local_folder_called_snapshots_is_known_by_content(tmp_path, model_folder):
    folder = Path(shutil.copytree(model_folder("llama"), tmp_path / "snapshots" / "latest"))
    config = ModelConfig(name=str(folder))
    before = identity(config)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert identity(config) != before


def test_the_number_type_is_known_without_a_model():
    assert resolve_dtype("float16", "cpu") == torch.float16
    assert resolve_dtype("auto", "cpu") in (torch.float32, torch.bfloat16)
    assert getattr(torch, dtype_name("auto", "cpu")) == resolve_dtype("auto", "cpu")


def test_a_converted_model_is_made_again_when_damaged(tmp_path):
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "weights").write_bytes(bytes(range(256)))

    folder = converted_folder(tmp_path, "one", build)
    assert converted_folder(tmp_path, "one", build) == folder and len(built) == 1
    (folder / "weights").write_bytes(bytes(255))
    assert damage(folder, file_digest) == [f"{folder / 'weights'}: the file is gone or cut short"]
    converted_folder(tmp_path, "one", build)
    assert len(built) == 2 and not damage(folder, file_digest)
    (folder / "weights").write_bytes(bytes(256))  # same length: seen by content
    assert damage(folder, file_digest)
    converted_folder(tmp_path, "one", build)
    assert len(built) == 3 and not damage(folder, file_digest)
    (folder / "record.json").write_text(json.dumps([1]), encoding="utf-8")
    converted_folder(tmp_path, "one", build)
    assert len(built) == 4


def test_large_files_of_a_converted_model_are_read_when_they_changed(tmp_path, monkeypatch):
    """Once by whoever uses it first, then where size, times or inode are others; always by ``affectlens verify``."""
    from affectlens import files
    from affectlens.model.converted import verify

    size, built, hashed = 2 * files.LARGE, [], []
    taken = files.file_digest
    monkeypatch.setattr(files, "file_digest", lambda path: hashed.append(path.name) or taken(path))

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "weights").write_bytes(bytes(size))

    folder = converted_folder(tmp_path, "one", build)
    for _ in range(3):
        converted_folder(tmp_path, "one", build)
    assert hashed.count("weights") == 1 and len(built) == 1
    weights = folder / "weights"
    times = weights.stat()
    weights.write_bytes(b"x" + bytes(size - 1))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))  # a change that hides its time is seen all the same
    converted_folder(tmp_path, "one", build)
    assert len(built) == 2 and weights.read_bytes() == bytes(size)
    converted_folder(tmp_path, "one", build)
    good = taken(weights)
    # Bytes that rot on the disk leave no trace in the times, as if the memory's stamp were theirs.
    weights.write_bytes(b"x" + bytes(size - 1))
    files.DigestMemory(tmp_path / "digests.json").remember({weights: good})
    converted_folder(tmp_path, "one", build)
    assert len(built) == 2
    assert verify(folder) == [f"{weights}: the bytes are not those that were written"]
    converted_folder(tmp_path, "one", build)
    assert len(built) == 3 and verify(folder) == []


def test_control_tokens_spelled_in_a_text_are_text(tiny_subject):
    tokenizer = tiny_subject("llama").tokenizer
    text = "He wrote </s> on the board<pad>, and <s>."
    assert not set(encode(tokenizer, text)) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(encode(tokenizer, text)) == text
    tokenizer = load_tokenizer(ModelConfig(name=tokenizer.name_or_path), Path())
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
    read = tokenise(tokenizer, Chat(({"role": "user", "content": text}, {"role": "assistant", "content": "Yes."})))
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = [*read.lead, *read.ids.tolist()]
    assert [token for token in ids if token in (begin, end)] == [begin, end, begin, end]
    assert tokenizer.decode(read.ids[read.kept]) == text + "Yes."


def test_chat_templates_write_the_day_of_the_config(tmp_path, copied):
    config = copied()
    template = "\n{{ strftime_now('%d %b %Y') }} {{ strftime_now('%A %H:%M') }}|{{ messages[0]['content'] }}"
    tokenizer = load_tokenizer(config, tmp_path)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(config.name)
    chat = [{"role": "user", "content": "Hello"}]
    for day in (datetime.date(2026, 1, 1), datetime.date(2031, 12, 24)):
        frozen = load_tokenizer(config.model_copy(update={"template_date": day}), tmp_path)
        written = frozen.apply_chat_template(chat, tokenize=False)
        assert written == f"\n{day:%d %b %Y} {day:%A} 00:00|Hello"
    assert ModelConfig.model_validate({"template_date": "2030-02-03"}).template_date == datetime.date(2030, 2, 3)


def test_rows_are_padded_with_a_token_that_the_model_has(tmp_path, copied):
    config = copied()
    tokenizer = load_tokenizer(config, tmp_path)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(config.name)
    subject = Subject.load(config, device="cpu", models=tmp_path)
    assert subject.tokenizer.pad_token_id == 640
    assert int(subject.pad([[5, 6], [7]]).max()) < 640


@pytest.mark.parametrize(("layers", "kept"), [(1, 4), (3, 4), (5, 5)])
def test_a_model_of_mixed_attention_is_cut_above_its_first_full_one(tmp_path, layers: int, kept: int):
    """transformers cannot run linear attention alone (Qwen 3.5, Qwen 3 Next, Olmo Hybrid)."""
    kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 2
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 8, "layer_types": kinds}))
    cut = depth_override(ModelConfig(name=str(tmp_path)), layers)
    assert cut == {"num_hidden_layers": kept, "layer_types": kinds[:kept]}


def test_a_gguf_file_is_a_model_known_by_its_content(tmp_path):
    file = embedded.weights_file()
    config = ModelConfig(name=str(file), layer=15)
    assert shape(config) == Shape(30, 576) == shape(ModelConfig())
    assert gguf_file(config) == gguf_file(ModelConfig()) == file
    assert identity(config).removeprefix("gguf:") == identity(ModelConfig()).removeprefix("embedded:")
    other = tmp_path / "model.bin"
    other.write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="no GGUF file"):
        shape(ModelConfig(name=str(other)))
