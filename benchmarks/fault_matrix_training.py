"""Faults that a training can meet without a GPU, each caused on purpose, and what becomes of it.

    python -m benchmarks.fault_matrix_training [--only WORD]

Adds its rows to ``benchmarks.fault_matrix``. Every row is a real training on a CPU with the
limits of production; the fault is caused from outside, by a signal, a file or a full file
system. A run that recovers must end in the weights of one that nothing disturbed, byte for
byte. Exits with 1 when any row ends otherwise.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.fault_matrix import TITLES, FaultRow
from slm_core.errors import SlmError
from slm_core.records import Adapter, Attempt
from slm_core.testing.limits import limit_files_for_good
from slm_core.testing.training_runs import (
    make_training_spec,
    once_started,
    workers_of,
    write_training_files,
)
from slm_core.training import TrainingSpec, train

_EPOCHS = 6
_DISTURBED_STEP = 10
_SAVED = "the steps since the newest checkpoint, taken again"
_ONE_MORE = "the steps since the checkpoint before, taken again"


class Outcome(NamedTuple):
    """What was done to a run, and what became of it."""

    injected: str
    expected: str
    """Fault kinds of the attempts, then how the run ends."""
    seen: str
    lost: str


class Bench:
    """Model, data and the undisturbed run that all others are compared with."""

    def __init__(self, folder: Path) -> None:
        from slm_core.testing.tiny_model import build_tiny_model

        self.folder = folder
        self.keep: object = None
        """What must live as long as the folder."""
        self.files = write_training_files(folder / "files")
        self.spec = make_training_spec(build_tiny_model(folder / "model"), epochs=_EPOCHS)
        self.expected = self.train(self.spec, folder / "undisturbed").weights_sha256

    def train(self, spec: TrainingSpec, run_dir: Path, **more: Any) -> Adapter:
        return train(
            spec, dataset_path=self.files, dataset_id="d", run_dir=run_dir, run_id="r", **more
        )


class Run:
    """One disturbed run, and what is known about it."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench = bench
        self.folder = bench.folder / name
        self.caused_at: float | None = None
        self.noticed_at: float | None = None
        self.disturb: Callable[[], None] | None = None
        """Called once, when the run is well under way."""
        self.on_attempt: Callable[[Attempt], None] | None = None

    def worker(self) -> Any:
        return workers_of(os.getpid())[0]

    def go(self, **changes: Any) -> str:
        """Train to the end, whatever it is; return the faults and the end."""
        spec = self.bench.spec.model_copy(update=changes)
        try:
            adapter = self.bench.train(
                spec, self.folder, on_progress=self._on_progress, on_attempt=self._on_attempt
            )
            same = adapter.weights_sha256 == self.bench.expected
            end = "same weights" if same else "OTHER WEIGHTS"
        except SlmError as error:
            end = type(error).__name__
        return " > ".join([*self._kinds(), end])

    def _on_progress(self, done: int, total: int, what: str) -> None:
        if self.disturb is not None and done >= _DISTURBED_STEP:
            disturb, self.disturb = self.disturb, None
            self.caused_at = time.monotonic()
            disturb()

    def _on_attempt(self, attempt: Attempt) -> None:
        if attempt.fault is not None and self.noticed_at is None:
            self.noticed_at = time.monotonic()
        if self.on_attempt is not None:
            self.on_attempt(attempt)

    def _kinds(self) -> Iterator[str]:
        path = self.folder / "attempts.json"
        attempts = json.loads(path.read_text("utf-8")) if path.is_file() else []
        for attempt in attempts:
            if attempt["fault"]:
                yield attempt["fault"]["kind"]


def killed_worker(run: Run) -> Outcome:
    run.disturb = lambda: run.worker().kill()
    return Outcome("SIGKILL at a step", "worker_killed > same weights", run.go(), _SAVED)


def stopped_worker(run: Run) -> Outcome:
    run.disturb = lambda: run.worker().suspend()
    return Outcome("SIGSTOP at a step", "hung > same weights", run.go(), _SAVED)


def crash_after_crash(run: Run) -> Outcome:
    def on_attempt(attempt: Attempt) -> None:
        if attempt.fault is None:
            once_started(os.getpid(), 0, lambda worker: worker.kill())

    run.on_attempt = on_attempt
    expected = "worker_killed > worker_killed > worker_killed > RecoveryExhausted"
    return Outcome("SIGKILL of every worker as it loads", expected, run.go(), "nothing")


def _damage(run: Run, how: Callable[[Path], object]) -> str:
    """Kill the worker, and damage the newest checkpoint before the next one starts."""

    def on_attempt(attempt: Attempt) -> None:
        if attempt.number == 1 and attempt.fault is not None:
            how(max((run.folder / "checkpoints").glob("step-*")))

    run.disturb = lambda: run.worker().kill()
    run.on_attempt = on_attempt
    return run.go()


def flipped_bit(run: Run) -> Outcome:
    def flip(checkpoint: Path) -> None:
        path = checkpoint / "adapter.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

    seen = _damage(run, flip)
    injected = "SIGKILL, then one bit of the newest checkpoint flipped"
    return Outcome(injected, "worker_killed > same weights", seen, _ONE_MORE)


def half_checkpoint(run: Run) -> Outcome:
    seen = _damage(run, lambda checkpoint: (checkpoint / "manifest.json").unlink())
    injected = "SIGKILL, then the newest checkpoint without its manifest"
    return Outcome(injected, "worker_killed > same weights", seen, _ONE_MORE)


def file_limit(run: Run) -> Outcome:
    run.disturb = lambda: limit_files_for_good(run.worker().pid, 10_000)
    first = run.go()
    seen = f"{first} > {run.go().rpartition(' > ')[2]}"
    expected = "disk_full > DiskFull > same weights"
    return Outcome("files of the worker limited to 10 kB, then not", expected, seen, _SAVED)


def full_disk(run: Run) -> Outcome:
    """Fill a small file system of the run's own; needs the right to mount one."""
    run.folder.mkdir(parents=True)
    with _mounted(run.folder, "32m"):

        def fill() -> None:
            with (run.folder / "filler").open("wb", buffering=0) as filler:
                try:
                    while True:
                        filler.write(b"\0" * 4096)
                except OSError:
                    return

        run.disturb = fill
        first = run.go()
        (run.folder / "filler").unlink(missing_ok=True)
        then = run.go().rpartition(" > ")[2]
    # Even the list of attempts may have had no room for the last one.
    seen = f"{first.rpartition(' > ')[2]} > {then}"
    injected = "file system of 32 MB filled up, then emptied"
    return Outcome(injected, "DiskFull > same weights", seen, _SAVED)


def not_a_number(run: Run) -> Outcome:
    seen = run.go(learning_rate=1e30)
    injected, expected = "learning rate of 1e30", "diverged > TrainingDiverged"
    return Outcome(injected, expected, seen, "the run")


def changed_spec(run: Run) -> Outcome:
    run.disturb = lambda: run.worker().terminate()
    first = run.go()
    seen = f"{first} > {run.go(learning_rate=1e-4).rpartition(' > ')[2]}"
    expected = "interrupted > WorkerDied > SpecChanged"
    return Outcome("SIGTERM, then another learning rate", expected, seen, "nothing")


CASES: dict[str, Callable[[Run], Outcome]] = {
    "killed worker": killed_worker,
    "hung worker": stopped_worker,
    "crash without progress": crash_after_crash,
    "corrupt checkpoint": flipped_bit,
    "half-written checkpoint": half_checkpoint,
    "file size limit": file_limit,
    "full disk": full_disk,
    "loss not a number": not_a_number,
    "changed spec": changed_spec,
}
_NEEDS_ROOT = frozenset({"full disk"})


def measure(name: str) -> FaultRow:
    """Cause one fault and return what became of it."""
    run = Run(_bench(), name.replace(" ", "-"))
    outcome = CASES[name](run)
    *kinds, end = outcome.seen.split(" > ")
    after = None
    if run.caused_at is not None and run.noticed_at is not None:
        after = run.noticed_at - run.caused_at
    return FaultRow(
        fault=name,
        injected=outcome.injected,
        detected=", ".join(kinds) or end,
        detected_after_seconds=after,
        done=end,
        lost=outcome.lost,
        right=outcome.seen == outcome.expected,
    )


ROWS: list[Callable[[], FaultRow]] = [
    functools.partial(measure, name)
    for name in CASES
    if os.geteuid() == 0 or name not in _NEEDS_ROOT
]


@functools.cache
def _bench() -> Bench:
    folder = tempfile.TemporaryDirectory(prefix="fault-matrix-training-")
    bench = Bench(Path(folder.name))
    bench.keep = folder
    return bench


@contextmanager
def _mounted(folder: Path, size: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def main() -> int:
    """Run the chosen rows and print them as a Markdown table."""
    parser = argparse.ArgumentParser(description="Cause training faults on purpose.")
    parser.add_argument("--only", default="", help="rows whose name has this")
    wanted = parser.parse_args().only
    print("| " + " | ".join(TITLES) + " |")
    print("| --- | --- | --- | --: | --- | --- | --- |")
    right = True
    for name in CASES:
        if wanted in name and (os.geteuid() == 0 or name not in _NEEDS_ROOT):
            found = measure(name)
            right = right and found.right
            print("| " + " | ".join(found.cells()) + " |", flush=True)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
