"""The graders that come with the package; importing this registers them."""

from affectlens.experiments.grade.code import CodeConfig, CodeGrader
from affectlens.experiments.grade.grader import (
    GRADERS,
    Answer,
    Grade,
    Grader,
    GraderConfig,
    GradingContext,
    RegisteredGrader,
    make_grader,
)
from affectlens.experiments.grade.judge import JudgeConfig, JudgeGrader
from affectlens.experiments.grade.rules import RulesConfig, RulesGrader
from affectlens.experiments.grade.vote import ModelJudgeConfig

__all__ = [
    "GRADERS",
    "Answer",
    "CodeConfig",
    "CodeGrader",
    "Grade",
    "Grader",
    "GraderConfig",
    "GradingContext",
    "JudgeConfig",
    "JudgeGrader",
    "ModelJudgeConfig",
    "RegisteredGrader",
    "RulesConfig",
    "RulesGrader",
    "make_grader",
]
