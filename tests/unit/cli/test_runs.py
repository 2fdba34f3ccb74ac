"""``slm runs`` on run folders as they are left by whatever happened, and on the store alone."""

from __future__ import annotations

import json
import shutil
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from slm_core.cli import run_logs
from slm_core.cli.run_next import BY_ERROR
from slm_core.records import Attempt, Fault, RunState
from slm_core.store import Store
from slm_core.testing.records import make_dataset, make_training_run
from slm_core.training import TrainingSpec, checkpoints
from slm_core.training.events import StepEvent, line
from slm_core.training.orders import Order, OrderBook, Part
from slm_core.training.run_folder import RunFolder

ROOT = Path(__file__).parents[3]
SPEC = TrainingSpec(base_model="models/phi", cep="compact")
BEGAN = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
PLAN = {
    "rows_per_step": 16,
    "pass_rows": 4,
    "max_length": 2048,
    "world_size": 2,
    "changes": ["nf4"],
}


@pytest.fixture
def book(slm_home: Path) -> OrderBook:
    return OrderBook(slm_home / "runs")


def order(run_id: str, **changes: Any) -> Order:
    values: dict[str, Any] = {
        "run_id": run_id,
        "flow": "train",
        "spec": {},
        "parts": (Part(run_id=run_id, training=SPEC),),
        "dataset_id": "dataset-1",
    }
    return Order(**(values | changes))


def train(slm_home: Path, run_id: str, *, steps: int = 42, of: int = 100) -> RunFolder:
    """Leave what a training leaves that ran out of memory once and was killed then."""
    run = RunFolder(slm_home / "runs" / run_id / "training")
    run.path.mkdir(parents=True)
    fault = Fault(kind="out_of_gpu_memory", message="CUDA out of memory", step=20)
    first = Attempt(
        number=1, started_at=BEGAN, ended_at=BEGAN, last_step=20, fault=fault, plan=PLAN
    )
    second = Attempt(
        number=2, started_at=BEGAN, first_step=20, plan=PLAN, reason="base model in nf4"
    )
    for attempt, words in ((first, "first words\n"), (second, "second words\n")):
        run.mark_log(attempt)
        with run.log.open("a") as log:
            log.write(words)
    run.write_attempts([first, second])
    events = [
        StepEvent(
            step=step,
            epoch=0.1,
            loss=1.0,
            grad_norm=1.0,
            learning_rate=1e-4,
            tokens_per_second=100.0,
            total_steps=of,
            eta_seconds=61.0,
        )
        for step in range(1, steps + 1)
    ]
    run.events.write_bytes(b"".join(map(line, events)) + b'{"step": 4')
    for step in (30, 40):
        checkpoints.save(run.checkpoints, step, {"weights": b"w"}, {"step": step}, keep=3)
    return run


def test_every_kind_of_run_is_listed_with_its_state(
    slm: Any, store: Store, slm_home: Path, book: OrderBook
) -> None:
    train(slm_home, "crashed-1")
    book.write(order("crashed-1"))
    book.write(order("stopped-1", state=RunState.INTERRUPTED, why="DiskFull: 0 bytes left"))
    book.write(order("failed-1", state=RunState.FAILED, why="LeakFound: row 1"))
    book.write(order("done-1", state=RunState.COMPLETED))
    book.write(order("other-1", host="elsewhere"))
    (slm_home / "runs" / "eval-1" / "evaluation").mkdir(parents=True)
    store.datasets.save(make_dataset())
    store.runs.save(make_training_run())
    with book.hold("work-1"):
        book.write(order("work-1"))
        found = {one["run_id"]: one for one in slm.json("runs", "list")}
        shown = slm("runs", "list").stdout
    states = {run_id: one["state"] for run_id, one in found.items()}
    assert states == {
        "crashed-1": "crashed",
        "stopped-1": "interrupted",
        "failed-1": "failed",
        "done-1": "completed",
        "other-1": "elsewhere",
        "work-1": "at work",
        "eval-1": "unfinished",
        make_training_run().id: "completed",
    }
    assert "42 of 100" in shown
    assert "DiskFull: 0 bytes left" in shown
    assert set(states) <= set(shown.split())


def test_runs_and_status_say_the_same_step_before_a_torn_end(
    slm: Any, store: Store, slm_home: Path, book: OrderBook
) -> None:
    run = train(slm_home, "run-1")
    with run.events.open("ab") as events:
        events.write(b"\n" + b"\0" * 5000 + b'\n{"step": 43')
    with book.hold("run-1"):
        book.write(order("run-1"))
        (listed,) = slm.json("runs", "list")
        (seen,) = slm.json("status")["status"]["runs"]
    assert [part["step"] for part in listed["parts"]] == [42]
    assert (seen["step"], seen["total_steps"]) == (42, 100)


def test_a_run_is_shown_with_attempts_checkpoints_and_what_to_do(
    slm: Any, store: Store, slm_home: Path, book: OrderBook
) -> None:
    run = train(slm_home, "run-1")
    book.write(order("run-1", claim_id="claim-1"))
    broken = run.checkpoints / "step-00000040"
    (broken / "weights").write_bytes(b"damaged")

    shown = slm("runs", "show", "run-1").stdout

    for part in (
        "crashed, stage: training",
        "42 of 100, 1 min 1 s left",
        "not sound: step 40",
        "newest sound: step 30",
        "out_of_gpu_memory: CUDA out of memory",
        "16 rows a step, 4 a pass, length 2048, 2 worker(s), nf4",
        "base model in nf4",
        "slm runs resume run-1",
        "RUNBOOK.md#run-stopped",
    ):
        assert part in shown
    assert broken.is_dir(), "looking must not move what it looks at"
    found = slm.json("runs", "show", "run-1")
    steps = [one["step"] for one in found["checkpoints"]["run-1"]]
    assert steps == [40, 30]
    assert found["next"]["commands"] == ["slm runs resume run-1"]


def test_the_next_action_follows_the_error_and_its_page_exists(
    slm: Any, store: Store, slm_home: Path, book: OrderBook
) -> None:
    pages = {
        text.removeprefix("## ").strip()
        for text in (ROOT / "RUNBOOK.md").read_text().splitlines()
        if text.startswith("## ")
    }
    for error, step in BY_ERROR.items():
        run_id = f"run-{error}"
        book.write(order(run_id, state=RunState.INTERRUPTED, why=f"{error}: words"))
        found = slm.json("runs", "show", run_id)["next"]
        assert found["words"] == step.words
        assert found["page"] in pages
        assert not any("RUN" in text.split() or "FOLDER" in text for text in found["commands"])
    corrupt = slm.json("runs", "show", "run-CheckpointCorrupt")["next"]["commands"]
    folder = slm_home / "runs" / "run-CheckpointCorrupt" / "training" / "checkpoints"
    assert corrupt[0] == f"mv {folder} {folder}.bad"


def test_an_id_may_be_cut_short_and_a_wrong_one_gets_a_hint(
    slm: Any, store: Store, book: OrderBook
) -> None:
    for run_id in ("0a1b2c", "0a1b3d", "night-7"):
        book.write(order(run_id))
    book.write(order("two", parts=(Part(run_id="two-toolcall", training=SPEC),)))
    assert slm.json("runs", "show", "0a1b2")["run_id"] == "0a1b2c"
    assert slm.json("runs", "show", "b3d")["run_id"] == "0a1b3d"
    assert slm.json("runs", "show", "two-tool")["run_id"] == "two"
    said = slm.refused("runs", "show", "0a1b", status=2)
    assert "0a1b2c" in said
    assert "0a1b3d" in said
    assert "Did you mean night-7?" in slm.refused("runs", "show", "nihgt-7")
    assert "slm runs list" in slm.refused("runs", "show", "zzzzzzzz")


def test_runs_are_shown_while_the_database_is_away(
    slm: Any, book: OrderBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLM_DATABASE_URL", "postgresql://ann:hunter2@127.0.0.1:1/slm")
    book.write(order("run-1"))
    listed = slm("runs", "list")
    assert "run-1" in listed.stdout
    assert "The store is left out" in listed.stderr
    assert "hunter2" not in listed.stderr
    assert "crashed" in slm("runs", "show", "run-1").stdout


def test_logs_are_cut_by_attempt(slm: Any, slm_home: Path, book: OrderBook) -> None:
    train(slm_home, "run-1")
    book.write(order("run-1"))
    whole = slm("runs", "logs", "run-1").stdout
    assert whole.index("first words") < whole.index("second words")
    first = slm("runs", "logs", "run-1", "--attempt", 1).stdout
    assert "first words" in first
    assert "second words" not in first
    second = slm("runs", "logs", "run-1", "--attempt", 2).stdout
    assert "after step 20: base model in nf4" in second
    assert "first words" not in second
    assert "no attempt 3" in slm("runs", "logs", "run-1", "--attempt", 3).stderr
    assert slm("runs", "logs", "run-1", "-n", 1).stdout.splitlines()[1:] == ["second words"]


def test_a_log_is_followed_while_the_run_is_at_work_and_no_longer(
    slm: Any, slm_home: Path, book: OrderBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_logs, "BEGIN_SECONDS", 30.0)
    monkeypatch.setattr(run_logs, "LOOK_SECONDS", 0.05)
    run = train(slm_home, "run-1")
    book.write(order("run-1"))

    def work() -> None:
        time.sleep(0.3)  # it begins only after somebody began to follow it
        with book.hold("run-1"):
            time.sleep(0.3)
            with run.log.open("a") as log:
                log.write("words of the third attempt\nhalf a li")

    worker = threading.Thread(target=work)
    worker.start()
    shown = slm("runs", "logs", "run-1", "--follow").stdout
    worker.join()
    assert "words of the third attempt" in shown
    assert shown.splitlines()[-1] == "half a li"


def test_a_run_without_a_log_says_so(slm: Any, book: OrderBook) -> None:
    book.write(order("run-1"))
    assert "has written anything" in slm("runs", "logs", "run-1").stderr


def test_what_must_not_be_resumed_is_refused(slm: Any, store: Store, book: OrderBook) -> None:
    book.write(order("done-1", state=RunState.COMPLETED))
    assert "is complete" in slm.refused("runs", "resume", "done-1", status=2)
    book.write(order("other-1", host="elsewhere"))
    assert "--host-is-dead" in slm.refused("runs", "resume", "other-1")
    with book.hold("work-1"):
        book.write(order("work-1"))
        assert "is at work" in slm.refused("runs", "resume", "work-1")


def test_a_server_that_is_away_names_the_way_without_it(
    slm: Any, store: Store, book: OrderBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = "11111111-2222-4333-8444-555555555555"
    book.write(order(run_id, state=RunState.INTERRUPTED))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    said = slm.refused("runs", "resume", run_id)
    assert "does not answer" in said
    assert f"slm runs resume {run_id} --here" in said
    shown = slm("runs", "show", run_id)
    assert "does not answer" in shown.stderr
    assert "interrupted" in shown.stdout


def test_an_evaluation_goes_on_by_prefect_only(slm: Any, store: Store, slm_home: Path) -> None:
    folder = slm_home / "runs" / "eval-1"
    (folder / "evaluation").mkdir(parents=True)
    assert "by Prefect only" in slm.refused("runs", "resume", "eval-1", status=2)
    (folder / "report").mkdir()
    (folder / "report" / "report.json").write_text(json.dumps({"outcome": "PARTIAL"}))
    found = slm.json("runs", "show", "eval-1")
    assert (found["state"], found["outcome"]) == ("completed", "PARTIAL")


def test_a_run_folder_that_is_gone_is_no_run(slm: Any, slm_home: Path, book: OrderBook) -> None:
    book.write(order("run-1"))
    shutil.rmtree(slm_home / "runs")
    assert "No runs yet" in slm("runs", "list").stdout
