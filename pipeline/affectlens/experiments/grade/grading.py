"""From the ``grader`` of an experiment to something that grades."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from affectlens.experiments.grade.answer import Answer, Grader
from affectlens.experiments.grade.config import CodeConfig, GraderConfig, RulesConfig

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Answer", "Grader", "make_grader"]


def make_grader(config: GraderConfig, *, models: Path, device: str, generator: np.random.Generator) -> Grader:
    """The grader that a config asks for.

    Args:
        config: rules, code or judges.
        models: folder that holds converted models, for local judges.
        device: where local judges compute.
        generator: what judges' shuffling is drawn from.

    Raises:
        UserError: the grader cannot work here: a pattern that is none, a key that is not set, code that could not be
            contained.
    """
    if isinstance(config, RulesConfig):
        from affectlens.experiments.grade.rules import RulesGrader

        return RulesGrader(config)
    if isinstance(config, CodeConfig):
        from affectlens.experiments.grade.code import CodeGrader

        return CodeGrader(config)
    from affectlens.experiments.grade.judge import JudgeGrader, LocalJudge
    from affectlens.experiments.grade.remote import RemoteJudge

    judges = [RemoteJudge(judge) if judge.address else LocalJudge(judge, models, device) for judge in config.judges]
    return JudgeGrader(config, judges, generator)
