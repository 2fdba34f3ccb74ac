"""Kill trainings with SIGKILL at random moments; every one must end in the same weights.

    python -m benchmarks.kill_resume --kills 50 --out kills.json

One small run on a CPU is left alone; its adapter is what all others must equal, byte for byte.
Each other run is killed once or twice: at a random time, inside the writing of a checkpoint or
of the adapter (seen by their draft folders), or while the worker still loads. Most kills take
the worker; the others take the trainer process that watches it, and with it the worker. The
training is called again until it returns. A worker is stopped for the moment of the kill, so
that the table says truly where it hit; the kill itself is a plain SIGKILL.

Exits with 1 when any run ended in other weights.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

from benchmarks.throughput_rows import ROOT

Phase = Literal["load", "step", "save", "publish"]
Victim = Literal["worker", "trainer"]

AIMS: tuple[Phase, ...] = ("step", "save", "load", "publish")
AIM_SHARES = (40, 35, 10, 15)
TRAINER_SHARE = 0.3
SECOND_KILL_SHARE = 0.5
CHECKPOINT_FILES = 4
SAVE_EVERY_STEPS = 3
EPOCHS = 9
_CALLS_AT_MOST = 8
_DEADLINE_SECONDS = 240.0
# A checkpoint is written within some 20 ms; the other moments can wait for a coarser look.
_POLL_SECONDS = {"save": 0.001, "publish": 0.001, "step": 0.005, "load": 0.005}
_DEAD = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


@dataclass
class Kill:
    """One SIGKILL and what became of its run."""

    run: int
    aim: Phase
    """Where the kill was to hit."""
    phase: Phase
    """Where it did."""
    victim: Victim
    step: int
    """Last step that was logged when the worker died."""
    draft_files: int = 0
    """Files that the half-written checkpoint or adapter had."""
    resumed_from: int | None = None
    """First step that the next attempt could keep; 0 is a fresh start."""
    steps_lost: int | None = None
    identical: bool | None = None


class Place(NamedTuple):
    """Model and data that all runs share."""

    model: Path
    dataset: Path


def prepare(folder: Path) -> Place:
    """Write a tiny model and 16 training rows to ``folder``."""
    from slm_core.testing.records import make_example
    from slm_core.testing.tiny_model import build_tiny_model

    dataset = folder / "dataset"
    dataset.mkdir()
    for split, numbers in {"train": range(16), "val": range(50, 52)}.items():
        examples = [make_example(n, "toolcall" if n % 2 else "structured") for n in numbers]
        text = "".join(example.model_dump_json() + "\n" for example in examples)
        (dataset / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return Place(build_tiny_model(folder / "model"), dataset)


def call_train(model: str, dataset: str, run_dir: str) -> None:
    """Call ``train`` once; runs in a process of its own, the one that may be killed."""
    os.nice(5)
    from slm_core.errors import WorkerDied
    from slm_core.training import TrainingSpec, train

    spec = TrainingSpec(
        base_model=model,
        cep="compact",
        lora_r=4,
        lora_dropout=0.1,
        learning_rate=5e-3,
        epochs=EPOCHS,
        micro_batch=2,
        accumulation=2,
        max_length=512,
        save_every_steps=SAVE_EVERY_STEPS,
        threads=1,
        device="cpu",
    )
    with contextlib.suppress(WorkerDied):  # the caller sees no adapter and calls again
        train(
            spec,
            dataset_path=Path(dataset),
            dataset_id="dataset-1",
            run_dir=Path(run_dir),
            run_id="run-1",
        )


def start_trainer(place: Place, run_dir: Path) -> subprocess.Popen[bytes]:
    """Start a process that calls ``train`` on ``run_dir``."""
    command = [sys.executable, "-m", "benchmarks.kill_resume", "--child"]
    command += [str(place.model), str(place.dataset), str(run_dir)]
    log = run_dir.with_suffix(".log").open("ab")
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def train_to_the_end(place: Place, run_dir: Path) -> None:
    """Call ``train`` until there is an adapter."""
    for _ in range(_CALLS_AT_MOST):
        start_trainer(place, run_dir).wait(_DEADLINE_SECONDS)
        if (run_dir / "adapter").is_dir():
            return
    raise SystemExit(f"{run_dir} has no adapter; see {run_dir.with_suffix('.log')}")


def weights_sha256(run_dir: Path) -> str:
    """Return the hash of the finished adapter's weights, after comparing it with its record."""
    found = hashlib.sha256((run_dir / "adapter/adapter_model.safetensors").read_bytes())
    record = json.loads((run_dir / "adapter/slm_adapter.json").read_text("utf-8"))
    if record["weights_sha256"] != found.hexdigest():
        raise SystemExit(f"The record in {run_dir} is not that of its weights.")
    return found.hexdigest()


def last_step(run_dir: Path) -> int:
    """Return the last step in the run's events."""
    events = run_dir / "events.jsonl"
    lines = events.read_bytes().splitlines() if events.is_file() else []
    for line in reversed(lines):
        with contextlib.suppress(ValueError):  # a half-written line
            return json.loads(line)["step"]
    return 0


def drafts(run_dir: Path, kind: Phase) -> int | None:
    """Return how many files a half-written checkpoint or adapter has; None without one."""
    pattern, folder = ("draft-*", run_dir / "checkpoints")
    if kind == "publish":
        pattern, folder = ("adapter.draft", run_dir)
    for draft in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            return len(os.listdir(draft))
    return None


def phase_of(run_dir: Path, steps_before: int) -> tuple[Phase, int]:
    """Return what a stopped worker was doing, and the files of its draft."""
    for kind in ("publish", "save"):
        files = drafts(run_dir, kind)
        if files is not None:
            return kind, files
    return ("step" if last_step(run_dir) > steps_before else "load"), 0


def find_worker(trainer: int) -> psutil.Process | None:
    """Return the worker process of ``trainer``, once there is one."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        for child in psutil.Process(trainer).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if "slm_core.training.worker" in child.cmdline():
                    return child
    return None


def moment(aim: Phase, run_dir: Path, chance: random.Random, total: int) -> Callable[[], bool]:
    """Return a question that turns true when the kill is due."""
    if aim == "load":
        due = time.monotonic() + chance.uniform(0.0, 2.5)
        return lambda: time.monotonic() >= due
    if aim == "publish":
        files = chance.randrange(CHECKPOINT_FILES)
        return lambda: (drafts(run_dir, "publish") or -1) >= files
    target = chance.randrange(1, total)
    delay = chance.uniform(0.0, 0.1)
    files = chance.randrange(CHECKPOINT_FILES + 1)
    seen: list[float] = []

    def due_in_step() -> bool:
        if not seen and last_step(run_dir) >= target:
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() >= seen[0] + delay

    def due_in_save() -> bool:
        if not seen and last_step(run_dir) >= target:
            seen.append(0.0)
        found = drafts(run_dir, "save") if seen else None
        return found is not None and found >= files

    return due_in_step if aim == "step" else due_in_save


def torment(
    place: Place, run_dir: Path, number: int, chance: random.Random, total: int
) -> list[Kill]:
    """Kill one run once or twice, let it finish, and say what was lost."""
    kills: list[Kill] = []
    trainer = start_trainer(place, run_dir)
    killed: set[int] = set()
    for _ in range(2 if chance.random() < SECOND_KILL_SHARE else 1):
        if trainer.poll() is not None:
            trainer = start_trainer(place, run_dir)
        aim = chance.choices(AIMS, AIM_SHARES)[0]
        victim: Victim = "trainer" if chance.random() < TRAINER_SHARE else "worker"
        worker = _next_worker(trainer, killed)
        if worker is None and trainer.returncode != 0:
            # A trainer that only reports its worker's death; the next call resumes.
            trainer = start_trainer(place, run_dir)
            worker = _next_worker(trainer, killed)
        if worker is None or not _wait_and_stop(worker, run_dir, aim, chance, total):
            break  # finished before the moment came
        phase, files = phase_of(run_dir, _resumed_at(run_dir))
        kills.append(Kill(number, aim, phase, victim, last_step(run_dir), files))
        killed.add(worker.pid)
        if victim == "trainer":
            trainer.kill()
            trainer.wait(_DEADLINE_SECONDS)
        else:
            worker.kill()
        _wait_until_dead(worker)
    trainer.wait(_DEADLINE_SECONDS)
    train_to_the_end(place, run_dir)
    _fill_in(kills, run_dir)
    return kills


def _next_worker(trainer: subprocess.Popen[bytes], killed: set[int]) -> psutil.Process | None:
    """Wait for a worker that was not killed yet; None when the trainer ends without one."""
    while trainer.poll() is None:
        worker = find_worker(trainer.pid)
        if worker is not None and worker.pid not in killed:
            return worker
        time.sleep(0.01)
    return None


def _wait_and_stop(
    worker: psutil.Process, run_dir: Path, aim: Phase, chance: random.Random, total: int
) -> bool:
    """Stop the worker when its moment comes; False when it ended or published before."""
    due = moment(aim, run_dir, chance, total)
    with contextlib.suppress(psutil.NoSuchProcess):
        while worker.status() not in _DEAD:
            if due():
                worker.suspend()
                while worker.status() not in (psutil.STATUS_STOPPED, *_DEAD):
                    time.sleep(0.0005)
                if worker.status() == psutil.STATUS_STOPPED:
                    if not (run_dir / "adapter").is_dir():
                        return True
                    worker.resume()
                return False
            time.sleep(_POLL_SECONDS[aim])
    return False


def _wait_until_dead(worker: psutil.Process) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    with contextlib.suppress(psutil.NoSuchProcess):
        while worker.status() not in _DEAD:  # a zombie is dead, whoever buries it
            if time.monotonic() > deadline:
                raise SystemExit(f"Worker {worker.pid} survived SIGKILL.")
            time.sleep(0.01)


def _resumed_at(run_dir: Path) -> int:
    """Return the first step that the present attempt was given."""
    return json.loads((run_dir / "attempts.json").read_text("utf-8"))[-1]["first_step"]


def _fill_in(kills: Sequence[Kill], run_dir: Path) -> None:
    """Add from the run's attempts where each killed one was resumed."""
    attempts = json.loads((run_dir / "attempts.json").read_text("utf-8"))
    ended_badly = [n for n, attempt in enumerate(attempts) if attempt["fault"]]
    for kill, position in zip(kills, ended_badly, strict=False):
        kill.resumed_from = attempts[position + 1]["first_step"]
        kill.steps_lost = max(0, kill.step - kill.resumed_from)


def table(kills: Sequence[Kill]) -> str:
    """Return the kills by where they hit, as a Markdown table."""
    lines = [
        "| hit while | kills | of the trainer | resumed from step | steps lost, mean (most) "
        "| identical |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for phase in ("load", "step", "save", "publish", "all"):
        some = [kill for kill in kills if phase in (kill.phase, "all")]
        if not some:
            continue
        lost = [kill.steps_lost for kill in some if kill.steps_lost is not None]
        resumed = [kill.resumed_from for kill in some if kill.resumed_from is not None]
        cells = (
            phase,
            str(len(some)),
            str(sum(kill.victim == "trainer" for kill in some)),
            f"{min(resumed)} to {max(resumed)}" if resumed else "",
            f"{sum(lost) / len(lost):.1f} ({max(lost)})" if lost else "",
            f"{sum(bool(kill.identical) for kill in some)} of {len(some)}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file for every kill, as JSON")
    parser.add_argument("--keep", type=Path, help="new folder for the runs, kept afterwards")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        call_train(*options.child)
        return 0
    chance, began = random.Random(options.seed), time.monotonic()
    with contextlib.ExitStack() as stack:
        if options.keep:
            folder = options.keep
            folder.mkdir(parents=True)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place = prepare(folder)
        unbroken = folder / "unbroken"
        train_to_the_end(place, unbroken)
        expected, total = weights_sha256(unbroken), last_step(unbroken)
        print(f"unbroken: {total} steps, weights {expected[:16]}", flush=True)
        kills: list[Kill] = []
        number = 0
        while len(kills) < options.kills and number < 2 * options.kills:
            number += 1
            run_dir = folder / f"run-{number:03d}"
            found = torment(place, run_dir, number, chance, total)
            same = weights_sha256(run_dir) == expected
            for kill in found:
                kill.identical = same
                print(
                    f"run {kill.run}: {kill.victim} killed at step {kill.step} in {kill.phase} "
                    f"({kill.draft_files} files), resumed from {kill.resumed_from}, "
                    f"{'identical' if same else 'OTHER WEIGHTS'}",
                    flush=True,
                )
            kills += found
    seconds = time.monotonic() - began
    print(f"\n{len(kills)} kills in {number} runs, {seconds:.0f} s\n\n{table(kills)}")
    if options.out:
        result = {
            "seed": options.seed,
            "runs": number,
            "steps": total,
            "save_every_steps": SAVE_EVERY_STEPS,
            "seconds": round(seconds, 1),
            "weights_sha256": expected,
            "kills": [asdict(kill) for kill in kills],
        }
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if kills and all(kill.identical for kill in kills) else 1


if __name__ == "__main__":
    sys.exit(main())
