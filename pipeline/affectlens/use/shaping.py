"""An arm of shaping as a model folder of its own: merged weights, tokenizer, the adapter, and a card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectlens.errors import UserError
from affectlens.files import write_text
from affectlens.model.adapters import WEIGHTS
from affectlens.model.config import ADAPTER, shown_name
from affectlens.use.opened import Opened

if TYPE_CHECKING:
    from affectlens.shaping.arms import Arm
    from affectlens.shaping.result import ShapeArms

BESIDE = "adapter"
"""The folder of the adapter, inside the model's."""
LEARNT = {
    "filler": "chats on unrelated matters: a control",
    "expression": "answers under stress that do the same as distressed ones, without emotion words: a control for text",
    "words": "answers that say that the assistant is calm: a control for self-report",
    "calm_dpo": "to prefer calm conduct to distressed answers under stress (DPO)",
    "calm_sft": "answers under stress that name the problem, try again, ask, or stop properly",
    "set_point": "a shift of the residual stream at answers, whatever is said",
}


def arms_of(study: Opened) -> ShapeArms:
    """The finished arms.

    Raises:
        UserError: the study shapes nothing, or the stage `shape_arms` is not finished.
    """
    if study.study is not None and not study.study.config.shape.run:
        raise UserError("the study shapes no model; set `shape.run: true` and run its stage `shape_arms`")
    return study.result("shape_arms")


def verdict_of(study: Opened, arm: Arm) -> dict[str, Any]:
    """The arm's row of ``shape/verdicts``; empty while the stage `shape` is not finished."""
    if "shape" not in study.folders or "shape/verdicts" not in study.tables:
        return {}
    rows = study.table("shape/verdicts")
    mine = rows[rows["arm"] == arm.group]
    return mine.iloc[0].to_dict() if len(mine) else {}


def export(study: Opened, name: str, out: Path) -> list[Path]:
    """Write an arm into a new folder that transformers loads.

    Args:
        study: whose arms are made.
        name: of a trained arm, with its seed.
        out: the folder; it must not be there, or be empty.

    Returns:
        The model's folder, the adapter's and the card.

    Raises:
        UserError: the arm does not exist or has no weights of its own, or the folder is taken.
    """
    made = arms_of(study)
    arm, config = made.named(name), study.study
    adapter = made.adapter(arm)
    if adapter is None or config is None:
        trained = ", ".join(each.name for each in made.arms if each.trained) or "none"
        raise UserError(f"`{name}`: changes no weights, so there is no model to write; trained arms are {trained}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; name a new folder")
    import torch

    from affectlens.model.loading import load_tokenizer, load_weights

    setting = config.setting("cpu")
    # In float32: a small change would be lost in the rounding of half precision.
    options = {"device": "cpu", "models": setting.models, "dtype": torch.float32}
    model = load_weights(setting.model, adapter=adapter, **options)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    load_tokenizer(setting.model, setting.models).save_pretrained(out)
    (out / BESIDE).mkdir()
    for file in (WEIGHTS, ADAPTER):
        shutil.copyfile(adapter / file, out / BESIDE / file)
    write_text(out / "README.md", card(study, made, arm))
    return [out, out / BESIDE, out / "README.md"]


def card(study: Opened, made: ShapeArms, arm: Arm) -> str:
    """What the model is, what it was trained on, what was measured of it, and what that does not say."""
    config, held = made.config, study.table("shape_arms/held_out")
    mine = held[held["arm"] == arm.name]
    lines = [
        f"# {arm.name}",
        "",
        f"{shown_name(study.model_name)} with a low-rank adapter merged in, float32. It learnt {LEARNT[arm.kind]}"
        + (f", by {arm.dose:g} sd at layers {', '.join(map(str, arm.layers))}." if arm.kind == "set_point" else "."),
    ]
    if arm.twin:
        lines += ["", "It is a control: its direction is random, of the same size."]
    tokens = int(max(mine["tokens"], default=0))
    lines += [
        "",
        "## Training",
        "",
        f"{config.steps} updates of {config.batch} chats ({tokens:,} tokens), rank {config.rank}, seed {arm.seed}, on "
        "the texts of the study's folder `shaping`; the shipped ones are in the public domain (CC0). Figures on chats "
        "that were held out:",
        "",
        "| figure | before | after |",
        "|---|---|---|",
        *(f"| {row['figure']} | {row['before']:.3f} | {row['after']:.3f} |" for _, row in mine.iterrows()),
        "",
        "## Measured",
        "",
    ]
    verdict = verdict_of(study, arm)
    if verdict:
        lines += [f"Verdict over {int(verdict['seeds'])} seeds: **{verdict['verdict']}**. {verdict['why']}", ""]
        for what, called in (("state", "fall of the state"), ("text", "fall of the text"), ("gap", "good-bad gap")):
            low, high = verdict[f"{what}_low"], verdict[f"{what}_high"]
            lines.append(f"- {called}: {verdict[what]:.2f} [{low:.2f}, {high:.2f}]")
    else:
        lines.append("The stage `shape` was not finished when this was written: nothing is known of state and text.")
    lines += [
        "",
        "## Limits",
        "",
        "The adapter was trained on a few dozen texts by one writer, for a study of representations of emotion "
        "concepts. A calmer reading says nothing of what a model feels. Nothing was trained or tested for safety in "
        "use. Directions and thresholds that were measured on the unchanged model need not hold for this one.",
        "",
        f"The adapter is in `{BESIDE}/`, in peft's format. The licence of the unchanged model holds for this one.",
        "",
    ]
    return "\n".join(lines)
