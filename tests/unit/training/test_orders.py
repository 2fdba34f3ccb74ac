"""A run can be told crashed from stopped from at work, and what it was told is never lost."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from slm_core.errors import (
    ConfigError,
    DatasetError,
    DiskFull,
    GpuFault,
    ModelError,
    OutOfGpuMemory,
    RecordNotFound,
    RecoveryExhausted,
    RunBusy,
    SlmError,
    SpecChanged,
    StoreUnavailable,
    TrainingDiverged,
    WorkerDied,
)
from slm_core.records import RunState
from slm_core.training.orders import Order, OrderBook, Part, state_after
from slm_core.training.spec import TrainingSpec

BEGAN = datetime(2026, 3, 1, tzinfo=UTC)

HOLD = """
import sys, time
from pathlib import Path
from slm_core.training.orders import Order, OrderBook
book = OrderBook(Path(sys.argv[1]))
with book.carry_out(Order(run_id="run-1", flow="train", spec={"seed": 1})):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def book(tmp_path: Path) -> OrderBook:
    return OrderBook(tmp_path / "runs")


def order(number: int = 1, **changes: Any) -> Order:
    began = BEGAN + timedelta(hours=number)
    given = {"flow": "train", "spec": {"seed": number}, "created_at": began} | changes
    return Order(run_id=f"run-{number}", **given)


def test_an_order_lasts_and_says_how_its_run_ended(book: OrderBook) -> None:
    with book.carry_out(order()):
        found = book.get("run-1")
        assert (found.state, found.spec) == (RunState.RUNNING, {"seed": 1})
        assert book.at_work("run-1")
        book.note("run-1", dataset_id="dataset-1")
    found = book.get("run-1")
    assert (found.state, found.dataset_id, found.why) == (RunState.COMPLETED, "dataset-1", "")
    assert not book.at_work("run-1")
    assert book.resumable() == []


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (KeyboardInterrupt(), RunState.INTERRUPTED),
        (RuntimeError("bug"), RunState.INTERRUPTED),
        (WorkerDied("x"), RunState.INTERRUPTED),
        (StoreUnavailable("x"), RunState.INTERRUPTED),
        (GpuFault("x"), RunState.INTERRUPTED),
        (DiskFull("x"), RunState.INTERRUPTED),
        (RecoveryExhausted("x"), RunState.INTERRUPTED),
        (OutOfGpuMemory("x"), RunState.FAILED),
        (TrainingDiverged("x"), RunState.FAILED),
        (SpecChanged("x"), RunState.FAILED),
        (ModelError("x"), RunState.FAILED),
        (DatasetError("x"), RunState.FAILED),
    ],
)
def test_what_somebody_can_mend_outside_is_an_interruption(
    book: OrderBook, error: BaseException, state: RunState
) -> None:
    assert state_after(error) is state
    with pytest.raises(type(error)), book.carry_out(order()):
        raise error
    found = book.get("run-1")
    assert found.state is state
    assert found.why.startswith(type(error).__name__)
    assert found.needs_person == (isinstance(error, SlmError) and not error.retryable)
    assert [one.run_id for one in book.resumable()] == (
        ["run-1"] if state is RunState.INTERRUPTED else []
    )


def test_an_order_of_a_newer_version_hides_no_other(book: OrderBook, tmp_path: Path) -> None:
    for number in (1, 2):
        book.write(order(number))
    file = tmp_path / "runs" / "run-2" / "order.json"
    file.write_text(file.read_text().replace("{", '{"of_a_newer_version": 1,', 1))
    assert [one.run_id for one in book.list()] == ["run-1"]
    assert book.find("run-3") is None
    with pytest.raises(ConfigError, match="a newer one may have written it"):
        book.find("run-2")


def test_who_only_looks_is_no_work(book: OrderBook, tmp_path: Path) -> None:
    with book.carry_out(order()):
        assert book.at_work("run-1")
    lock = tmp_path / "runs" / "run-1" / "order.lock"
    with lock.open("r+") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not book.at_work("run-1")


def test_a_run_that_goes_on_does_not_need_a_person_any_more(book: OrderBook) -> None:
    with pytest.raises(DiskFull), book.carry_out(order()):
        raise DiskFull("full")
    assert book.get("run-1").needs_person
    with book.carry_out(book.get("run-1")):
        assert not book.get("run-1").needs_person


def test_a_cancelled_run_that_goes_on_is_cancelled_no_more(book: OrderBook) -> None:
    with book.carry_out(order().model_copy(update={"cancelled": True})):
        assert not book.get("run-1").cancelled


def test_who_comes_while_a_run_stops_waits_for_it(book: OrderBook) -> None:
    begun, leave = threading.Event(), threading.Event()

    def stop_slowly() -> None:
        with book.carry_out(order()):
            begun.set()
            leave.wait(10)
            time.sleep(0.3)

    stopping = threading.Thread(target=stop_slowly)
    stopping.start()
    begun.wait(10)
    with pytest.raises(RunBusy), book.carry_out(order(), wait_seconds=0.1):
        pass
    leave.set()
    with book.carry_out(order(), wait_seconds=10):
        pass
    stopping.join()


def test_a_killed_run_is_at_work_until_it_is_dead_and_then_the_one_to_resume(
    book: OrderBook, tmp_path: Path
) -> None:
    book.write(order(0, state=RunState.INTERRUPTED))
    runs = str(tmp_path / "runs")
    child = subprocess.Popen([sys.executable, "-c", HOLD, runs], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert book.at_work("run-1")
        assert book.newest_resumable().run_id == "run-0"
        with pytest.raises(RunBusy, match="run-1"), book.carry_out(order()):
            pytest.fail("two at work")
    finally:
        child.kill()
        child.communicate()
    assert book.get("run-1").state is RunState.RUNNING
    assert book.newest_resumable().run_id == "run-1"
    assert book.newest_resumable().spec == {"seed": 1}


def test_a_training_of_a_run_leads_to_the_whole_run(book: OrderBook) -> None:
    training = TrainingSpec(base_model="model", tracks=("toolcall",))
    parts = (Part(run_id="run-1-toolcall", training=training),)
    book.write(order(parts=parts))
    assert book.get("run-1-toolcall").run_id == "run-1"
    assert book.get("run-1").parts[0].training == training


def test_without_anything_to_resume_it_says_so(book: OrderBook) -> None:
    with pytest.raises(RecordNotFound, match="slm runs list"):
        book.newest_resumable()
    with pytest.raises(RecordNotFound, match="run-7"):
        book.get("run-7")
    assert book.find("run-7") is None


@pytest.mark.parametrize("name", ["", "../other", "a/b", ".hidden", "a b"])
def test_an_id_cannot_lead_out_of_the_folder(book: OrderBook, name: str) -> None:
    with pytest.raises(ConfigError):
        book.find(name)


def test_an_order_names_the_machine_that_took_it_up_last(book: OrderBook) -> None:
    book.write(order(host="elsewhere", state=RunState.INTERRUPTED))
    with book.carry_out(book.get("run-1")):
        assert book.get("run-1").host == socket.gethostname()
    assert book.get("run-1").host == socket.gethostname()


def test_a_child_of_the_run_does_not_keep_its_lock(book: OrderBook) -> None:
    with book.carry_out(order()):
        child = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        assert not book.at_work("run-1")
    finally:
        child.kill()
        child.wait()
    assert os.listdir(book._runs / "run-1") != []
