"""Serving: which model answers, who lets it, and a server that does."""

from slm_core.serving.approval import carry_out, needs_person, request_approval
from slm_core.serving.evidence import evidence_for, guard_routes, limits_of, require_evidence
from slm_core.serving.promotion import measured_tracks, promote, roll_back
from slm_core.serving.router import Answer, Router, ask
from slm_core.serving.server import serve
from slm_core.serving.spec import PromotionSpec, ServingSpec, TeacherSpec

__all__ = [
    "Answer",
    "PromotionSpec",
    "Router",
    "ServingSpec",
    "TeacherSpec",
    "ask",
    "carry_out",
    "evidence_for",
    "guard_routes",
    "limits_of",
    "measured_tracks",
    "needs_person",
    "promote",
    "request_approval",
    "require_evidence",
    "roll_back",
    "serve",
]
