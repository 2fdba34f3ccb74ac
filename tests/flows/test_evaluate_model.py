"""Evaluating alone: which arms, who is judged, and what is not asked twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.evaluate_model import evaluate_model
from slm_core.errors import RecordNotFound, TracingUnavailable
from slm_core.presets import EVAL_BASELINE
from slm_core.testing.langfuse_receiver import LangfuseReceiver
from slm_core.testing.tiny_adapter import build_tiny_adapter
from slm_core.tracing import push_pending

pytestmark = pytest.mark.integration


def gates_of(report: Any) -> str:
    return " ".join(gate.reason for gate in report.decision.gates)


def test_without_an_adapter_the_prefixed_student_is_judged(service: Any) -> None:
    report = evaluate_model(run_id="eval-1", overrides=service.eval_plan())
    assert {arm.arm for arm in report.evaluation.arms} == {"teacher", "student", "student_cep"}
    assert report.evaluation.difference("toolcall", "args_f1", "student_cep", "teacher")
    assert report.decision.adapter_id is None
    assert "student_cep" in gates_of(report)
