"""prefect.yaml names flows that exist, and deployments/README.md lists every deployment."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from slm_core.local_stack.prefect_api import POOLS
from tasks.deploy import read_pools

ROOT = Path(__file__).parents[2]
DECLARED = read_pools(ROOT)
PREFECT: dict[str, Any] = yaml.safe_load((ROOT / "prefect.yaml").read_text())
DEPLOYMENTS: list[dict[str, Any]] = PREFECT["deployments"]


def flow_name(deployment: dict[str, Any]) -> str:
    """Name of the flow behind the entrypoint: its ``name``, or the function's with dashes."""
    file, function = deployment["entrypoint"].split(":")
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            for decorator in node.decorator_list:
                text = ast.unparse(decorator)
                if text == "flow" or text.startswith("flow("):
                    return _keyword(decorator, "name") or function.replace("_", "-")
    pytest.fail(f"{deployment['entrypoint']} is no flow")


def _keyword(decorator: ast.expr, name: str) -> str | None:
    for keyword in decorator.keywords if isinstance(decorator, ast.Call) else []:
        if keyword.arg == name:
            return ast.literal_eval(keyword.value)
    return None


def test_every_deployment_is_of_a_flow_and_in_the_table() -> None:
    table = (ROOT / "deployments" / "README.md").read_text()
    names = [f"{flow_name(deployment)}/{deployment['name']}" for deployment in DEPLOYMENTS]
    assert [name for name in names if f"| `{name}` |" not in table] == []
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_a_deployment_is_described_tagged_and_queued(deployment: dict[str, Any]) -> None:
    assert deployment["description"]
    assert deployment["tags"]
    pool = deployment["work_pool"]
    assert pool["work_queue_name"] in DECLARED[pool["name"]].queues


def test_the_local_stack_has_a_worker_for_each_pool() -> None:
    assert POOLS.keys() == DECLARED.keys()
    assert {name: pool.concurrency_limit for name, pool in DECLARED.items()} == POOLS


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_a_deployment_says_what_it_takes_and_needs_and_how_to_stop_it(
    deployment: dict[str, Any],
) -> None:
    text = " ".join(deployment["description"].split())
    assert [word for word in ("**Takes**", "**Needs**", "**To stop it**") if word not in text] == []
    assert deployment["version"] == "{{ $CODE_VERSION }}"


def test_a_second_training_waits_and_is_never_dropped() -> None:
    for deployment in DEPLOYMENTS:
        if "training" in deployment["tags"] and deployment["work_pool"]["name"] == "gpu":
            limit = deployment["concurrency_limit"]
            assert (limit["limit"], limit["collision_strategy"]) == (1, "ENQUEUE")


def test_the_design_s_deployments_are_there() -> None:
    names = {f"{flow_name(deployment)}/{deployment['name']}" for deployment in DEPLOYMENTS}
    wanted = "ingest/spool retrain/nightly retrain/on-threshold resume/run compare/approaches "
    wanted += "eval/cep eval/baseline eval/berkeley check-gpus/now train/llama-cep train/phi-cep "
    wanted += "train/fledgling train/paper-llama train/paper-phi train/targeted"
    assert set(wanted.split()) - names == set()


def test_a_schedule_paused_on_call_stays_paused() -> None:
    for deployment in DEPLOYMENTS:
        for schedule in deployment.get("schedules", []):
            assert schedule["slug"]
            assert "active" not in schedule
