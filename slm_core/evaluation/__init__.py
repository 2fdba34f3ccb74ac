"""How good each arm is, with n and intervals, and how the arms differ on the same cases."""

from slm_core.evaluation.agreement import compare_answers
from slm_core.evaluation.evaluate import evaluate, read_details
from slm_core.evaluation.outputs import Arm
from slm_core.evaluation.scoring import check_gold
from slm_core.evaluation.spec import EvaluationSpec

__all__ = ["Arm", "EvaluationSpec", "check_gold", "compare_answers", "evaluate", "read_details"]
