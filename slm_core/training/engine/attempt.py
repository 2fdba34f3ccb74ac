"""What a worker does: load, train, log, save, publish. Imports torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from slm_core.backends.loading import device_of, load_tokenizer
from slm_core.backends.model_folder import file_sha256
from slm_core.errors import DatasetError, OutOfGpuMemory
from slm_core.prompting.prefix import get_prefix
from slm_core.prompting.render import Renderer
from slm_core.records import Split
from slm_core.training.engine.batches import Numbered
from slm_core.training.engine.course import Course
from slm_core.training.engine.loop import Loop
from slm_core.training.engine.machines import taken_over
from slm_core.training.engine.memory import limit_memory
from slm_core.training.engine.publish import publish_adapter
from slm_core.training.engine.ranks import Ranks, join
from slm_core.training.engine.step_log import StepLog
from slm_core.training.engine.student import Student, load_student
from slm_core.training.heartbeat import Heartbeat, Phase
from slm_core.training.rows import Row, Rows, read_examples, tokenize
from slm_core.training.run_folder import Job, RunFolder
from slm_core.training.stop import StopRequest

log = logging.getLogger(__name__)

# Compiling takes as long as some tens of passes and speeds each up by two thirds.
_PASSES_WORTH_COMPILING = 100


def run_job(run: RunFolder, job: Job, stop: StopRequest, rank: int = 0) -> bool:
    """Train to the end and publish the adapter; False when asked to stop before.

    Under torchrun ``rank`` and the plan's number of workers are not read: torchrun knows both.

    Raises:
        RuntimeError: the plan has GPUs, and CUDA does not come up.
        ModelError, ConfigError: see ``load_student``.
        SpecChanged: the checkpoint was trained on other prompts.
        DatasetError: no row to train on, or rows that would have to be cut.
        TrainingDiverged: loss or gradient is not finite.
        OutOfGpuMemory: not even the smallest pass fits; the last finished step is saved.
    """
    spec = job.identity.spec
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    if job.plan.gpus and spec.device != "cpu" and not torch.cuda.is_available():
        # torch is silent about a driver that does not start, and we would go on on the CPU. In
        # these words of its own it counts as a lost GPU, which is examined.
        raise RuntimeError("No CUDA GPUs are available")
    device = device_of(spec.device)
    ranks = join(device, rank, job.plan.world_size, run.rendezvous(job.attempt))
    if device.type == "cuda":
        device = torch.device("cuda", ranks.local_rank)
        torch.cuda.set_device(device)
        limit_memory(spec.gpu_memory_fraction)
    if not ranks.by_torchrun:
        return _train(run, job, stop, ranks, device)
    with taken_over(run, job, ranks) as present:
        return _train(run, present, stop, ranks, device)


def _train(run: RunFolder, job: Job, stop: StopRequest, ranks: Ranks, device: torch.device) -> bool:
    spec, plan = job.identity.spec, job.plan
    pulse = _Pulse(run, ranks)
    renderer = Renderer(load_tokenizer(Path(job.model_folder)), get_prefix(spec.cep))
    train, val = _load_rows(job, "train", renderer), _load_rows(job, "val", renderer)
    if not train.kept:
        raise DatasetError(
            f"The train split of {job.dataset_path} has no row to train on.",
            tracks=spec.tracks,
            too_long=len(train.too_long),
            other_track=train.other_track,
        )
    student = load_student(
        Path(job.model_folder), spec, device=device, quantization=plan.quantization
    )
    if spec.shard:
        student.shard()
    loop = Loop(student, train.rows, spec, plan, ranks=ranks, asked_to_stop=lambda: stop.asked)
    prompts = {
        "prompt_hash": renderer.prompt_hash,
        "tokenizer_sha256": _tokenizer_sha256(Path(job.model_folder)),
    }
    course = Course(run, job, loop, ranks, train, val, prompts=prompts)
    course.resume()

    def on_recovery(step: int, rung: str, message: str, details: dict[str, Any]) -> None:
        # Passes of another size may have to be compiled, until the end of this step.
        pulse.enter("probe", loop.counters.step)
        course.recovered(step, rung, message, details)

    loop.passes.on_pass = pulse.beat
    loop.passes.on_recovery = on_recovery
    pulse.enter("probe", loop.counters.step)
    _prepare(loop, student, train.kept)
    log.info(
        "training begins attempt=%d step=%d total_steps=%d device=%s precision=%s workers=%d",
        job.attempt,
        loop.counters.step,
        loop.schedule.total_steps,
        student.device,
        student.precision,
        ranks.world_size,
    )
    stop.wait_for_step()
    try:
        finished = _take_steps(run, loop, course, pulse, ranks)
    except OutOfGpuMemory:
        pulse.enter("save", loop.counters.step)
        course.save()
        if not spec.shard:  # there the others do not know of it
            ranks.wait()
        raise
    if not finished:
        return False
    pulse.enter("publish", loop.counters.step)
    if ranks.leads:
        summary = course.summary(student)
        publish_adapter(
            run,
            job,
            student,
            prompt_hash=renderer.prompt_hash,
            summary=summary,
            losses=[event.point() for event in course.events()],
        )
    ranks.wait()
    ranks.leave()
    return True


def _take_steps(run: RunFolder, loop: Loop, course: Course, pulse: _Pulse, ranks: Ranks) -> bool:
    """Take all remaining steps; False when asked to stop before the last."""
    total = loop.schedule.total_steps
    with StepLog(
        run, first_step=loop.counters.step, total_steps=total, writes=ranks.leads
    ) as step_log:
        if course.stop_reason is not None:  # an earlier attempt had come to its end
            return True
        evaluated = False
        # What is run for the first time may first have to be compiled.
        pulse.enter("probe", loop.counters.step)
        for result in loop.steps(course.reads):
            pulse.enter("eval" if evaluated else "probe", result.step)
            val_loss = course.validate(result.step)
            if val_loss is not None:
                pulse.enter("save", result.step)
                course.keep_best(result.step, val_loss)
                ranks.wait()  # the best weights may be on their way to the disk
            evaluated = evaluated or val_loss is not None
            step_log.add(result, val_loss, due=course.reads(result.step))
            for note in course.watch(result):
                step_log.note(note)
            ends = result.step == total or course.stop_reason is not None
            stopping = result.asked_to_stop and not ends
            if stopping or course.saves(result.step):
                pulse.enter("save", result.step)
                step_log.sync()
                course.save()
                ranks.wait()  # here, where waiting is no hang
            if stopping:
                log.info("training stopped as asked step=%d", result.step)
                return False
            if ends:
                log.info("training ends step=%d reason=%s", result.step, course.stop_reason)
                break
            pulse.enter("train", result.step)
    return True


class _Pulse:
    """This worker's sign of life."""

    def __init__(self, run: RunFolder, ranks: Ranks) -> None:
        self._heart = Heartbeat(run.heartbeat(ranks.rank))
        self._step = 0
        self._phase: Phase = "load"
        self.beat()

    def enter(self, phase: Phase, step: int) -> None:
        self._phase, self._step = phase, step
        self.beat()

    def beat(self) -> None:
        self._heart.beat(self._step, self._phase)


def _prepare(loop: Loop, student: Student, rows: list[Row]) -> None:
    """Compile if it pays, and find out by trial what fits into memory."""
    spec = loop.spec
    if student.device.type != "cuda":
        return
    left = loop.schedule.total_steps - loop.counters.step
    if spec.compile == "on" or (
        spec.compile == "auto" and left * spec.accumulation >= _PASSES_WORTH_COMPILING
    ):
        loop.passes.compile()
    # The longest rows, and as many as the largest pass of the run can hold.
    longest = sorted(rows, key=lambda row: len(row.ids), reverse=True)
    largest = max(spec.pass_tokens // max(1, len(longest[0].ids)), spec.micro_batch)
    step_rows = max(len(loop.schedule.rows_of(step)) for step in (1, loop.schedule.total_steps))
    trial = [Numbered(row, 0) for row in longest[: max(1, min(largest, step_rows))]]
    loop.passes.try_longest(trial, spec.gpu_memory_fraction)


def _tokenizer_sha256(folder: Path) -> str | None:
    """Return the hash of the file that most tokenizers consist of; None of the few others."""
    file = folder / "tokenizer.json"
    return file_sha256(file) if file.is_file() else None


def _load_rows(job: Job, split: Split, renderer: Renderer) -> Rows:
    spec, plan = job.identity.spec, job.plan
    rows = tokenize(
        read_examples(Path(job.dataset_path), split),
        lambda example: renderer.example(example.prompt, example.tools, example.completion),
        tracks=spec.tracks,
        max_length=spec.max_length,
        too_long=spec.too_long,
        shorten_to=plan.max_length if plan.max_length < spec.max_length else None,
    )
    log.info(
        "rows ready split=%s rows=%d supervised_tokens=%d too_long=%d other_track=%d cut=%d",
        split,
        len(rows.kept),
        rows.supervised_tokens,
        len(rows.too_long),
        rows.other_track,
        rows.cut_rows,
    )
    return rows
