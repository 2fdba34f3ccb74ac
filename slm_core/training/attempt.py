"""What a worker does: load, train, log, save, publish. Imports torch."""

from __future__ import annotations

import json
import logging
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from slm_core.errors import DatasetError, ModelError
from slm_core.prompting.prefix import get_prefix
from slm_core.prompting.render import Renderer
from slm_core.records import Split
from slm_core.training import checkpoints
from slm_core.training.durable import write_json
from slm_core.training.events import StepEvent, read_events
from slm_core.training.loop import Counters, Loop
from slm_core.training.lora import Student, load_student
from slm_core.training.publish import publish_adapter
from slm_core.training.rows import Rows, read_examples, tokenize
from slm_core.training.run_folder import Job, RunFolder
from slm_core.training.step_log import StepLog
from slm_core.training.stop import StopRequest

log = logging.getLogger(__name__)


def run_job(run: RunFolder, job: Job, stop: StopRequest) -> bool:
    """Train to the end and publish the adapter; False when asked to stop before.

    Raises:
        ModelError, ConfigError: see ``load_student``.
        DatasetError: no row to train on, or rows that would have to be cut.
        TrainingDiverged: loss or gradient is not finite.
    """
    spec = job.identity.spec
    disable_progress_bar()
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    renderer = Renderer(_load_tokenizer(Path(job.model_folder)), get_prefix(spec.cep))
    train, val = _load_rows(job, "train", renderer), _load_rows(job, "val", renderer)
    if not train.rows:
        raise DatasetError(
            f"The train split of {job.dataset_path} has no row to train on.",
            tracks=spec.tracks,
            too_long=len(train.too_long),
            other_track=train.other_track,
        )
    student = load_student(Path(job.model_folder), spec)
    loop = Loop(student, train.rows, spec, job.plan)
    if job.resume_from is not None:
        _resume(loop, Path(job.resume_from))
    total = loop.schedule.total_steps
    eval_every = spec.eval_every_steps or loop.schedule.steps_per_epoch
    log.info(
        "training begins attempt=%d step=%d total_steps=%d device=%s precision=%s",
        job.attempt,
        loop.counters.step,
        total,
        student.device,
        student.precision,
    )
    stop.wait_for_step()
    with StepLog(run, first_step=loop.counters.step, total_steps=total) as step_log:
        for result in loop.steps():
            step, last = result.step, result.step == total
            measured = bool(val.rows) and (last or step % eval_every == 0)
            val_loss = loop.validation_loss(val.rows) if measured else None
            due = last or measured or step % spec.log_every_steps == 0
            step_log.add(result, val_loss, due=due)
            stopping = stop.asked and not last
            if stopping or step % spec.save_every_steps == 0:
                step_log.sync()
                _save(run, job, loop)
            if stopping:
                log.info("training stopped as asked step=%d", step)
                return False
    events = read_events(run.events)
    summary = _summary(job, loop, student, train, val, events)
    write_json(run.summary, summary)
    publish_adapter(
        run,
        job,
        student,
        prompt_hash=renderer.prompt_hash,
        summary=summary,
        losses=[event.point() for event in events],
    )
    return True


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"The tokenizer in {folder} cannot be loaded: {error}") from error


def _load_rows(job: Job, split: Split, renderer: Renderer) -> Rows:
    spec = job.identity.spec
    rows = tokenize(
        read_examples(Path(job.dataset_path), split),
        lambda example: renderer.example(example.prompt, example.tools, example.completion),
        tracks=spec.tracks,
        max_length=spec.max_length,
        too_long=spec.too_long,
    )
    log.info(
        "rows ready split=%s rows=%d supervised_tokens=%d too_long=%d other_track=%d",
        split,
        len(rows.rows),
        rows.supervised_tokens,
        len(rows.too_long),
        rows.other_track,
    )
    return rows


def _save(run: RunFolder, job: Job, loop: Loop) -> None:
    spec, counters = job.identity.spec, loop.counters
    epoch, position = divmod(counters.step, loop.schedule.steps_per_epoch)
    state: dict[str, Any] = {
        "counters": counters._asdict(),
        "epoch": epoch,
        "steps_into_epoch": position,
        "seed": spec.seed,
        "spec_digest": job.identity.spec_digest,
    }
    checkpoints.save(
        run.checkpoints, counters.step, loop.state_files(), state, keep=spec.keep_checkpoints
    )


def _resume(loop: Loop, checkpoint: Path) -> None:
    state = json.loads((checkpoint / checkpoints.STATE).read_text("utf-8"))
    loop.restore(checkpoint, Counters(**state["counters"]))


def _summary(
    job: Job, loop: Loop, student: Student, train: Rows, val: Rows, events: list[StepEvent]
) -> dict[str, Any]:
    """Return the totals of the run over all its attempts."""
    counters = loop.counters
    losses = [event.loss for event in events]
    val_losses = [event.val_loss for event in events if event.val_loss is not None]
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    on_gpu = student.device.type == "cuda"
    return {
        "steps": counters.step,
        "epochs": job.identity.spec.epochs,
        "examples": len(train.rows),
        "val_examples": len(val.rows),
        "tokens": counters.tokens,
        "supervised_tokens": counters.supervised_tokens,
        "seconds": round(counters.seconds, 3),
        "tokens_per_second": round(counters.tokens / counters.seconds, 1),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "best_loss": min(losses),
        "val_loss": val_losses[-1] if val_losses else None,
        "best_val_loss": min(val_losses, default=None),
        "attempts": job.attempt,
        "dropped": {
            "too_long": len(train.too_long) + len(val.too_long),
            "other_track": train.other_track + val.other_track,
        },
        "too_long_ids": [*train.too_long, *val.too_long],
        "trainable_parameters": sum(p.numel() for p in student.trainable.values()),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "precision": str(student.precision).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
    }
