"""What the numbers of an evaluation allow: promote, improve, or keep the teacher."""

from slm_core.decision.decide import decide
from slm_core.decision.spec import MULTI_TURN, DecisionSpec

__all__ = ["MULTI_TURN", "DecisionSpec", "decide"]
