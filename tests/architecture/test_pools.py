"""The job templates of the work pools are such as Prefect takes, and each pool can use them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator
from prefect.server.schemas.actions import WorkPoolCreate

from tasks.deploy import Pool, PoolType, job_template, read_pools

ROOT = Path(__file__).parents[2]
POOLS = read_pools(ROOT)
TYPES: tuple[PoolType, ...] = get_args(PoolType)
TEMPLATES = [(name, kind) for name in POOLS for kind in TYPES]


def template(name: str, kind: PoolType) -> dict[str, Any]:
    return job_template(ROOT, POOLS[name], kind)


@pytest.mark.parametrize(("name", "kind"), TEMPLATES)
def test_prefect_takes_the_template(name: str, kind: PoolType) -> None:
    WorkPoolCreate(name=name, type=kind, base_job_template=template(name, kind))


def test_prefect_would_refuse_a_placeholder_without_a_variable() -> None:
    broken = template("gpu", "docker")
    del broken["variables"]["properties"]["image"]
    with pytest.raises(ValueError, match="image"):
        WorkPoolCreate(name="gpu", type="docker", base_job_template=broken)


@pytest.mark.parametrize(("name", "kind"), TEMPLATES)
def test_every_variable_is_used_described_and_has_a_default_that_fits(
    name: str, kind: PoolType
) -> None:
    made = template(name, kind)
    used = set(re.findall(r"{{ (\w+) }}", str(made["job_configuration"])))
    variables = made["variables"]["properties"]
    assert used == variables.keys()
    Draft202012Validator.check_schema(made["variables"])
    for variable, schema in variables.items():
        assert schema["description"], variable
        if "default" in schema:
            Draft202012Validator(schema).validate(schema["default"])


def test_a_pool_may_only_set_variables_that_the_template_has() -> None:
    pool = Pool(
        description="x", concurrency_limit=1, queues={}, templates={"docker": {"unknown": 1}}
    )
    with pytest.raises(KeyError, match="unknown"):
        job_template(ROOT, pool, "docker")


def test_only_the_gpu_pool_asks_for_gpus() -> None:
    def asked(name: str) -> tuple[Any, Any]:
        docker = template(name, "docker")["variables"]["properties"]["container_create_kwargs"]
        kubernetes = template(name, "kubernetes")["variables"]["properties"]["gpus"]
        return docker["default"], kubernetes["default"]

    requests = [{"driver": "nvidia", "count": -1, "capabilities": [["gpu"]]}]
    assert asked("gpu") == ({"device_requests": requests}, 1)
    assert asked("cpu") == ({}, 0)


def test_docker_understands_the_request_for_gpus() -> None:
    from docker.types import DeviceRequest

    given = template("gpu", "docker")["variables"]["properties"]["container_create_kwargs"]
    (request,) = given["default"]["device_requests"]
    assert DeviceRequest(**request)["Count"] == -1


def test_a_kubernetes_job_is_never_started_twice() -> None:
    # Any other backoff limit begins a pod anew beside Prefect's own retries: two trainings.
    job = template("gpu", "kubernetes")["job_configuration"]["job_manifest"]["spec"]
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    variables = template("gpu", "kubernetes")["variables"]["properties"]
    told = variables["env"]["default"]
    assert told["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"
    assert variables["grace_seconds"]["default"] >= 60
