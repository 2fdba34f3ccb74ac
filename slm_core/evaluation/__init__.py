"""How good each arm is, with n and intervals, and how the arms differ on the same cases."""

from slm_core.evaluation.agreement import compare_answers
from slm_core.evaluation.evaluate import evaluate, read_details
from slm_core.evaluation.outputs import Arm
from slm_core.evaluation.scoring import check_gold
from slm_core.evaluation.shards import answer, gather, split
from slm_core.evaluation.spec import EvaluationSpec

__all__ = [
    "Arm",
    "EvaluationSpec",
    "answer",
    "check_gold",
    "compare_answers",
    "evaluate",
    "gather",
    "read_details",
    "split",
]
