"""A claim becomes an adapter and a verdict; what stops a run leaves the claim where it helps."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from prefect.states import State

from flows.retrain_student import retrain_student
from slm_core.errors import ModelError, StoreUnavailable, TracingUnavailable
from slm_core.records import CallStats, ClaimState, DropReason, RunState
from slm_core.report import ReportInput
from slm_core.testing.langfuse_receiver import LangfuseReceiver, ReceivedSpan
from slm_core.tracing import push_pending
from tasks import _wiring
from tasks.capture import take_claim

pytestmark = pytest.mark.integration

DEADLINE_SECONDS = 60.0
LEAKED = 3
"""Number of the captured call that asks what a test case asks."""


class Finished(NamedTuple):
    """One retraining that ran to its end, and what it left."""

    service: Any
    claim_id: str
    result: ReportInput
    langfuse: LangfuseReceiver


@pytest.fixture(scope="module")
def finished(make_service: Callable[[], Any], traffic: Any) -> Iterator[Finished]:
    service = make_service()
    with LangfuseReceiver() as langfuse:
        service.trace_to(langfuse, SLM_REQUIRE_LANGFUSE="1")
        claim_id = service.claimed(leaked=LEAKED)
        result = retrain_student(claim_id=claim_id, run_id="run-1", overrides=service.plan())
        assert isinstance(result, ReportInput)
        yield Finished(service, claim_id, result, langfuse)
    _wiring._settings.clear()


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr(take_claim, "retry_delay_seconds", [0, 0])


def run(service: Any, run_id: str = "run-1", **arguments: Any) -> State[Any]:
    return retrain_student(
        run_id=run_id, **({"overrides": service.plan()} | arguments), return_state=True
    )
