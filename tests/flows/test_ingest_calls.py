"""From the spool folder to claims, and one retraining per claim."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from prefect import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

from flows.ingest_calls import RETRAIN, ingest_calls
from flows.retrain_student import retrain_student
from slm_core.records import Call, ClaimState, DropReason, Tool
from slm_core.testing.records import make_call

pytestmark = pytest.mark.integration


def calls(first: int, count: int) -> list[Call]:
    return [make_call(number) for number in range(first, first + count)]


@pytest.fixture
def deployment() -> Iterator[Any]:
    """The deployment that ingest starts, as `make up` registers it."""
    name = RETRAIN.split("/")[1]
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(retrain_student)
        deployment_id = client.create_deployment(flow_id, name=name, enforce_parameter_schema=False)
        yield lambda: [
            run.parameters["claim_id"]
            for run in client.read_flow_runs(
                deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name]))
            )
        ]
        client.delete_deployment(deployment_id)


def test_every_row_of_the_spool_is_accounted_for(service: Any) -> None:
    broken_tool = Tool(name="broken", parameters={"type": "nonsense"})
    service.spool(
        [
            *calls(0, 45),
            make_call(100, response=None),
            make_call(101, tools=(broken_tool,)),
            make_call(102, success=False, error="timeout"),
        ]
    )
    garbage = service.settings.spool_dir / "garbage.jsonl"
    garbage.write_bytes(b'{"id": \n\xff\xfe\x00 nothing\n[1, 2]\n{"model": 7}\n')

    report = ingest_calls(submit=False)

    assert (report.read, report.stored, report.quarantined, report.usable) == (52, 48, 4, 45)
    assert report.unusable == {
        DropReason.FAILED: 1,
        DropReason.NO_RESPONSE: 1,
        DropReason.TOOL_SCHEMA: 1,
    }
    assert (len(report.claims), report.waiting) == (2, 5)
    with service.store() as store:
        assert [(c.id, c.size, c.state) for c in store.claims.list()] == [
            (claim, 20, ClaimState.NEW) for claim in report.claims
        ]
        assert {row.source for row in store.quarantine.list()} == {
            f"garbage.jsonl:{line}" for line in (1, 2, 3, 4)
        }


def test_a_second_ingest_adds_nothing_and_the_rest_waits_for_the_next_claim(service: Any) -> None:
    service.spool(calls(0, 25))
    assert ingest_calls(submit=False).waiting == 5
    service.spool(calls(0, 25), "again")  # same ids
    again = ingest_calls(submit=False)
    assert (again.read, again.stored, again.duplicates, again.claims) == (25, 0, 25, ())
    service.spool(calls(25, 15), "more")
    assert len(ingest_calls(submit=False).claims) == 1
    with service.store() as store:
        assert (store.calls.count(), store.calls.waiting()) == (40, 0)


def test_an_empty_spool_is_no_error(service: Any) -> None:
    report = ingest_calls(submit=False)
    assert (report.read, report.claims, report.waiting) == (0, (), 0)


def test_without_the_deployment_a_claim_stays_new_and_the_log_says_so(
    service: Any, caplog: pytest.LogCaptureFixture
) -> None:
    service.spool(calls(0, 20))
    ingest_calls()
    with service.store() as store:
        assert [claim.state for claim in store.claims.list()] == [ClaimState.NEW]
    assert f"no deployment {RETRAIN}" in caplog.text


def test_each_claim_starts_one_run_however_often_ingest_runs(service: Any, deployment: Any) -> None:
    service.spool(calls(0, 40))
    report = ingest_calls()
    ingest_calls()
    assert sorted(deployment()) == sorted(report.claims)
    with service.store() as store:
        assert {claim.state for claim in store.claims.list()} == {ClaimState.SUBMITTED}


def test_a_server_that_refuses_artifacts_keeps_no_claim_waiting(
    service: Any,
    deployment: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr("flows.ingest_calls.create_table_artifact", refused)
    service.spool(calls(0, 20))
    report = ingest_calls()
    assert deployment() == list(report.claims) != []
    assert "ingest not shown in the dashboard error=ConnectionError" in caplog.text


def test_an_ingest_killed_after_the_start_does_not_start_a_second_run(
    service: Any, deployment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.spool(calls(0, 20))
    with monkeypatch.context() as patch:

        def killed(*_: object) -> bool:
            raise KeyboardInterrupt

        patch.setattr("slm_core.store.claims.Claims.submitted", killed)
        with pytest.raises(KeyboardInterrupt):
            ingest_calls()
    with service.store() as store:
        (claim,) = store.claims.list(ClaimState.NEW)
    ingest_calls()
    assert deployment() == [claim.id]
    with service.store() as store:
        assert store.claims.get(claim.id).state is ClaimState.SUBMITTED


def test_calls_may_come_as_arguments_of_capture_call(service: Any) -> None:
    service.settings.spool_dir.mkdir(parents=True)
    row = {
        "agent_type": "sub-agent",
        "agent_name": "desk",
        "model_used": "gpt-4o",
        "system_prompt": "You call tools.",
        "user_query": "Weather in Rome?",
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
        "assistant_response": '{"name": "weather", "arguments": {}}',
    }
    (service.settings.spool_dir / "other.jsonl").write_text(json.dumps(row) + "\n")
    assert ingest_calls(submit=False).usable == 1
