"""What needs a person, and what does not because it goes on by itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest

from slm_core.records import Claim, ClaimState, Health, RunState
from slm_core.status import (
    FlowRunNow,
    Night,
    Operations,
    PoolNow,
    Routine,
    RunbookPage,
    Status,
    Waiting,
    concerns,
)
from slm_core.status.markdown import to_markdown
from slm_core.status.page import to_page
from slm_core.status.sections import sections
from slm_core.status.snapshot import Disk, GpuNow, GpusNow, RunNow, Stored

NOW = datetime(2026, 3, 14, 3, 0, tzinfo=UTC)
GIB = 2**30


def ago(**units: float) -> datetime:
    return NOW - timedelta(**units)


def status(**changes: Any) -> Status:
    values: dict[str, Any] = {
        "at": NOW,
        "host": "gpu-1",
        "threshold": 100,
        "store": Stored(calls=140, waiting=40),
        "store_name": "sqlite:///slm.db",
        "disk": Disk(path="/data", free_bytes=500 * GIB, total_bytes=1000 * GIB),
        "operations": operations(),
    }
    return Status(**(values | changes))


def operations(**changes: Any) -> Operations:
    return Operations(**({"at": ago(minutes=30)} | changes))


def run(**changes: Any) -> RunNow:
    values: dict[str, Any] = {
        "run_id": "run-1",
        "flow": "retrain",
        "state": RunState.RUNNING,
        "at_work": False,
        "host": "gpu-1",
        "moved_at": ago(hours=1),
    }
    return RunNow(**(values | changes))


def night(green: bool | None, outcome: str = "Failed", **since: float) -> Night:
    return Night(at=ago(**(since or {"hours": 1})), outcome=outcome, green=green, run="owl")


def routine(red: int) -> Routine:
    return Routine(deployment="settle/routes", red=red, at=ago(minutes=5), outcome="Failed")


def claim(state: ClaimState, age: datetime, owner: str | None = None) -> Stored:
    one = Claim(id="claim-1", size=100, state=state, owner=owner, created_at=age)
    return Stored(calls=140, waiting=40, claims=(one,))


def gpus(health: Health) -> GpusNow:
    card = GpuNow(name="0: H200", health=health, message="Xid 79")
    return GpusNow(checked_at=ago(hours=2), health=health, gpus=(card,))


NEEDS = {
    "night-not-green": {"operations": operations(nights=(night(False),))},
    "night-not-green ": {"operations": operations(nightly_since=ago(days=2))},
    "night-not-green  ": {
        "operations": operations(
            nightly_since=ago(days=9), nights=(night(True, "Completed", hours=27),)
        )
    },
    "training-failed": {"runs": (run(state=RunState.FAILED, why="DatasetError"),)},
    "run-stopped": {"runs": (run(),)},
    "run-stopped ": {"runs": (run(state=RunState.INTERRUPTED, why="DiskFull"),)},
    "threshold-without-run": {"store": claim(ClaimState.NEW, ago(minutes=31))},
    "night-not-green   ": {"operations": operations(nights=(night(None, "Late", days=3),))},
    "night-not-green    ": {
        "operations": operations(
            nightly_since=ago(days=30),
            nights=(
                *(night(None, "Late", hours=5 + 24 * one) for one in range(3)),
                night(None, "Running", days=4),
                night(True, "Completed", days=5),
            ),
        )
    },
    "schedule-not-green": {"operations": operations(routines=(routine(red=2),))},
    "claim-stuck": {"store": claim(ClaimState.SUBMITTED, ago(hours=27))},
    "claim-stuck ": {"store": claim(ClaimState.RELEASED, ago(hours=27))},
    "claim-stuck  ": {
        "store": claim(ClaimState.RUNNING, ago(days=9), "run-1"),
        "runs": (run(moved_at=ago(days=4)),),
    },
    "claim-stuck   ": {"store": claim(ClaimState.RUNNING, ago(hours=27), "run-elsewhere")},
    "claim-stuck    ": {
        "store": claim(ClaimState.RUNNING, ago(days=2), "run-1"),
        "runs": (run(host="gpu-2", moved_at=ago(hours=27)),),
    },
    "gpu-sick": {"gpus": gpus(Health.FAIL)},
    "gpu-sick ": {"reboot_due": "the driver met a fatal error"},
    "promotion-waiting": {
        "operations": operations(
            waiting=(Waiting(id="1", name="owl", flow="promote", since=ago(hours=2)),)
        )
    },
    "promotion-waiting ": {
        "store": Stored(
            calls=140,
            waiting=40,
            waiting_promotions=(Waiting(id="1", name="a", flow="promote", since=ago(hours=2)),),
        ),
        # The same, as the server sees it.
        "operations": operations(
            waiting=(Waiting(id="1", name="owl", flow="promote", since=ago(hours=2)),)
        ),
    },
    "no-worker": {"operations": operations(pools=(PoolNow(name="gpu", online=0, late=2),))},
    "no-worker ": {
        "operations": operations(pools=(PoolNow(name="gpu", online=1, late=2, paused=True),))
    },
    "no-worker  ": {
        "operations": operations(
            pools=(PoolNow(name="gpu", online=1, late=2, paused_queues=("gpu",)),)
        )
    },
    "disk-full": {"disk": Disk(path="/data", free_bytes=4 * GIB, total_bytes=100 * GIB)},
    "disk-full ": {"disk": Disk(path="/data", free_bytes=20 * GIB, total_bytes=1000 * GIB)},
    "store-down": {"store": None, "store_problem": "It does not answer."},
    "status-silent": {"operations": operations(at=ago(hours=4))},
}


@pytest.mark.parametrize("page", NEEDS)
def test_what_needs_a_person_is_named_with_its_page(page: str) -> None:
    seen = status(**NEEDS[page])
    (found,) = concerns(seen)
    assert found.runbook == page.strip()
    assert found.why in to_markdown(seen).replace("\\", "")
    assert 'class="FAILURE"' in to_page(seen)


WELL = {
    "nothing is known of Prefect": {"operations": None},
    "a night runs": {"operations": operations(nights=(night(None), night(True, hours=25)))},
    "a night waits for a long training": {
        "operations": operations(
            nightly_since=ago(days=9),
            nights=(night(None, "Late", hours=30), night(True, hours=54)),
        )
    },
    "one red ingest is followed by another": {"operations": operations(routines=(routine(red=1),))},
    "a claim's run waits for its turn": {"store": claim(ClaimState.SUBMITTED, ago(hours=20))},
    "a claim's run waits behind a long training": {
        "store": claim(ClaimState.SUBMITTED, ago(days=3)),
        "runs": (run(at_work=True),),
    },
    "a claim's run waits behind a training on another machine": {
        "store": claim(ClaimState.SUBMITTED, ago(days=3)),
        "operations": operations(
            running=(FlowRunNow(id="r", name="owl", flow="retrain", state="Running"),)
        ),
    },
    "the night before last failed": {
        "operations": operations(nights=(night(True), night(False, hours=25)))
    },
    "nothing to do is green": {"operations": operations(nights=(night(True, "Skipped"),))},
    "no night is scheduled": {"operations": operations(nights=(night(True, hours=90),))},
    "a run crashed just now": {"runs": (run(moved_at=ago(minutes=5)),)},
    "a person cancelled a run": {"runs": (run(state=RunState.INTERRUPTED, cancelled=True),)},
    "a run is at work": {"runs": (run(at_work=True),)},
    "a run of another machine": {"runs": (run(host="gpu-2"),)},
    "a run stopped long ago": {"runs": (run(moved_at=ago(days=4)),)},
    "a claim was made just now": {"store": claim(ClaimState.NEW, ago(minutes=5))},
    "a claim waits for the night": {"store": claim(ClaimState.RELEASED, ago(hours=20))},
    "a claim is held": {"store": claim(ClaimState.RUNNING, ago(hours=20), "run-elsewhere")},
    "a claim is worked on": {
        "store": claim(ClaimState.RUNNING, ago(days=9), "run-1"),
        "runs": (run(at_work=True, moved_at=ago(days=2)),),
    },
    "a claim is worked on elsewhere": {
        "store": claim(ClaimState.RUNNING, ago(days=9), "run-1"),
        "runs": (run(host="gpu-2", moved_at=ago(hours=1)),),
    },
    "a pool rests and nobody waits": {
        "operations": operations(pools=(PoolNow(name="gpu", online=1, late=0, paused=True),))
    },
    "a GPU is warm": {"gpus": gpus(Health.WARN)},
    "a busy pool": {"operations": operations(pools=(PoolNow(name="gpu", online=1, late=9),))},
}


@pytest.mark.parametrize("what", WELL)
def test_what_goes_on_by_itself_needs_nobody(what: str) -> None:
    seen = status(**WELL[what])
    assert concerns(seen) == ()
    assert "All is well" in to_markdown(seen)
    assert 'class="SUCCESS"' in to_page(seen)


def test_every_page_that_an_alarm_names_is_in_the_runbook() -> None:
    runbook = (Path(__file__).parents[3] / "RUNBOOK.md").read_text()
    pages = set(get_args(RunbookPage))
    assert {page for page in pages if f"\n## {page}\n" not in runbook} == set()
    # A canary that was taken back is news of a moment: the teacher answers again, all is well.
    assert {page.strip() for page in NEEDS} == pages - {"canary-stepped-back"}


def test_the_screen_answers_every_question() -> None:
    running = FlowRunNow(
        id="run-1", name="owl", flow="retrain", state="Running", progress="12 of 80"
    )
    other = run(run_id="run-2", at_work=True, step=5, total_steps=20, loss=0.5, eta_seconds=300)
    seen = status(
        runs=(run(at_work=True), other, run(run_id="run-3", moved_at=ago(minutes=1))),
        operations=operations(running=(running,), nights=(night(True, "Completed"),)),
        gpus=gpus(Health.PASS),
    )
    answers = {part.title: part for part in sections(seen)}
    assert answers["Live"].summary == "the teacher answers every call"
    assert answers["Next retraining"].summary == "40 of 100 usable calls wait; 60 more start it"
    assert answers["Nights"].short == "green"
    assert answers["GPUs of gpu-1"].short == "1 of 1"
    first, second, third = answers["At work"].rows
    assert (first[0], first[3]) == ("owl", "12 of 80")
    assert second[3].replace("\u202f", " ") == "step 5 of 20 (25 %), loss 0.500, 5 min left"
    assert third[2] == "crashed"
    assert answers["At work"].short == "2"


def test_the_page_shows_what_a_record_says_and_runs_none_of_it() -> None:
    page = to_page(status(runs=(run(state=RunState.FAILED, why="<script>alert(1)</script>"),)))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "default-src 'none'" in page
    assert to_page(status()) == to_page(status())
