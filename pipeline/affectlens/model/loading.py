"""Loading a model's tokenizer and weights, all of them: what a checkpoint lacks is refused, never made up."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from affectlens.errors import Unavailable, UserError
from affectlens.model import embedded
from affectlens.model.adapters import merge
from affectlens.model.config import ModelConfig, depth_override, locate, resolve_dtype, settings
from affectlens.model.converted import memory

GATED = "accept its terms on the hub, then log in with `hf auth login`, or set HF_TOKEN"
"""What opens a model that its makers give to people with an account only."""
SHOWN = 3
"""Names of missing weights that an error lists."""


def gguf_file(config: ModelConfig) -> Path | None:
    """The GGUF file of a model that has to be converted; None for any other model."""
    path = embedded.weights_file() if config.name == "embedded" else locate(config)
    return path if path is not None and path.is_file() else None


def source(config: ModelConfig, models: Path) -> tuple[str, dict[str, Any]]:
    """What transformers is given to load: a folder where there is one, else the hub name with its revision."""
    file, path = gguf_file(config), locate(config)
    if file is not None:
        return str(embedded.model_folder(models, _digest(file, models), file)), {}
    if path is not None:
        return str(path), {}
    return config.name, {} if config.revision is None else {"revision": config.revision}


def _digest(file: Path, models: Path) -> str:
    """The checksum of a file, computed once as long as it stays unchanged."""
    digests = memory(models)
    digest = digests.file(file)
    if models.is_dir():  # a dry run leaves no folder behind
        digests.flush()
    return digest


@contextmanager
def loading(config: ModelConfig) -> Iterator[None]:
    """Within, whatever a library raises over a model becomes one sentence.

    Raises:
        UserError: the model cannot be loaded, with the reason.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        words = " ".join(str(error).split())
        reason = (words if len(words) <= 300 else words[:297] + "...") or type(error).__name__
        remedy = f"; {GATED}" if "gated repo" in words else ""
        raise Unavailable(f"`model.name: {config.name}`: the model could not be loaded ({reason}){remedy}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Within, transformers draws no bars and logs errors only; afterwards as before, whatever happens."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_tokenizer(config: ModelConfig, models: Path, *, converting: bool = True) -> Any:
    """The model's transformers tokenizer, without its weights; its chat template writes ``template_date``.

    Args:
        converting: whether a GGUF file may be converted now; otherwise the tokenizer is read straight from it.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    with loading(config):
        file = gguf_file(config)
        kind: Any = AutoTokenizer
        if file is not None and not converting and not embedded.converted(models, _digest(file, models)):
            name, options = str(file.parent), {"gguf_file": file.name}
            if config.name == "embedded":  # the class that AutoTokenizer finds after three seconds in the file
                kind = PreTrainedTokenizerFast
        else:
            name, options = source(config, models)
        require_architecture(config)
        try:
            tokenizer = kind.from_pretrained(name, trust_remote_code=config.trust_remote_code, **options)
        except Exception as error:
            words = " ".join(str(error).split())
            if "instantiate the backend tokenizer" in words:  # what follows are ways to write one
                words = "there is no file of it"
            raise UserError(
                f"`model.name: {config.name}`: the model's tokenizer could not be loaded ({words[:200]}); save the "
                "tokenizer into the model's folder"
            ) from error
    return freeze_date(tokenizer, config.template_date)


def require_architecture(config: ModelConfig) -> None:
    """Refuse a folder whose model transformers does not know, before its weights are wanted.

    Raises:
        UserError: names the architecture.
    """
    from transformers import CONFIG_MAPPING

    path = locate(config)
    values = settings(config) if path is not None and path.is_dir() else None
    if values is None or (config.trust_remote_code and values.get("auto_map")):
        return
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        remedy = (
            "set `model.trust_remote_code`" if values.get("auto_map") else "update transformers, or correct the file"
        )
        raise UserError(
            f"`model.name: {config.name}`: its config.json says `model_type: {kind}`, which transformers does not "
            f"know; {remedy}"
        )


def load_weights(
    config: ModelConfig,
    *,
    device: str,
    models: Path,
    layers: int | None = None,
    head: bool = True,
    adapter: Path | None = None,
    **options: Any,
) -> Any:
    """transformers' model in evaluation mode, whole, or its first ``layers`` blocks when no more are needed.

    Args:
        head: with the output matrix; otherwise embedding, blocks and final norm alone.
        adapter: the folder of a low-rank adapter that is merged into the weights, in float32.
        options: of ``from_pretrained``; ``dtype`` is that of the config unless given.

    Raises:
        UserError: it cannot be loaded, or the checkpoint lacks weights; names three of them.
    """
    import torch
    import transformers

    kind: Any = transformers.AutoModelForCausalLM if head else transformers.AutoModel
    with loading(config), quiet(), torch.random.fork_rng():
        # Nothing should be drawn. If a library draws all the same, it draws the same every time.
        torch.manual_seed(0)
        name, where = source(config, models)
        cut = {} if layers is None else depth_override(config, layers)
        options = {"dtype": resolve_dtype(config.dtype, device), **options}
        dtype = options["dtype"]
        if adapter is not None:  # a small change would be lost in the rounding of half precision
            options["dtype"] = torch.float32
        model, info = kind.from_pretrained(
            name,
            output_loading_info=True,
            trust_remote_code=config.trust_remote_code,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **(where | cut | options),
        )
        require_complete(config, info["missing_keys"], info["mismatched_keys"], info["unexpected_keys"])
        if adapter is not None:
            merge(model, adapter)
            model = model.to(dtype)
        return model.to(device).eval()


def require_complete(
    config: ModelConfig, missing: Sequence[str], mismatched: Sequence[Any], unexpected: Sequence[str]
) -> None:
    """Refuse a checkpoint that lacks weights: transformers draws them at random and goes on.

    Raises:
        UserError: names three of the weights, and the prefix in the file that hides them, if that is the fault.
    """
    lacking = sorted({*missing, *(row[0] if isinstance(row, tuple) else row for row in mismatched)})
    if not lacking:
        return
    hidden = next((name[: -len(key)] for key in lacking for name in unexpected if name.endswith("." + key)), None)
    more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
    remedy = (
        f"its names begin with `{hidden}`: take that off and save it again" if hidden else "save the whole model again"
    )
    raise UserError(
        f"`model.name: {config.name}`: the checkpoint lacks weights, or has them in another shape "
        f"({', '.join(lacking[:SHOWN])}{more}); {remedy}"
    )


DATE_CODES = "aAbBcdHIjmMpSUwWxXyYZz"
"""Of strftime."""


def freeze_date(tokenizer: Any, day: datetime.date) -> Any:
    """Make the tokenizer's chat templates write one fixed day where they ask for the time.

    Templates call ``strftime_now(format)``. A macro of that name, set before the template, takes its place: it puts the
    values of the fixed day (at midnight) in for the codes of the format.
    """
    moment = datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC)
    steps = "".join(f"|replace('%{code}', {moment.strftime('%' + code)!r})" for code in DATE_CODES)
    macro = f"{{%- macro strftime_now(format) %}}{{{{ format{steps} }}}}{{%- endmacro %}}"

    def frozen(template: str) -> str:
        if "strftime_now" not in template or template.startswith(macro[:30]):
            return template
        # The template engine drops a line break right behind a block.
        return macro + ("\n" if template.startswith("\n") else "") + template

    templates = getattr(tokenizer, "chat_template", None)
    if isinstance(templates, str):
        tokenizer.chat_template = frozen(templates)
    elif isinstance(templates, dict):
        tokenizer.chat_template = {name: frozen(template) for name, template in templates.items()}
    return tokenizer
