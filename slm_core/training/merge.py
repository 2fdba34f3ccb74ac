"""Make one ordinary model of a base model and a LoRA adapter, for servers without LoRA.

This side checks and starts a worker process; it never imports torch. What it refuses: a base
model that the adapter was not trained on, a folder that exists, and a merged model whose
answers are not those of base and adapter. The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from slm_core.backends.adapter_folder import read_adapter
from slm_core.backends.model_folder import SUMS, check_model_folder, file_sha256, locate_model
from slm_core.errors import (
    ConfigError,
    MergeRejected,
    ModelError,
    PromptMismatch,
    RunBusy,
    TrainingError,
)
from slm_core.prompting.prefix import PREFIXES, Variant
from slm_core.records import Adapter
from slm_core.system.locks import try_lock
from slm_core.training.card import merged_card
from slm_core.training.durable import publish, write_file
from slm_core.training.last_words import read_error
from slm_core.training.merged_model import Dtype, MergeCheck, MergedModel, MergeOrder

log = logging.getLogger(__name__)

_PROMPTS = (
    "What is the weather in Paris for the next 3 days?",
    'Answer with JSON: {"name": "search", "arguments": {"query": "trains to Rome"}}',
    "Book a table for two at 19:30 tomorrow and tell me the price in euros.",
    "List the first five prime numbers and explain why 1 is not one of them.",
)
"""What base and merged model are compared on besides rows of the dataset."""
_MOST_ROWS = 32
RECORD = "slm_merged.json"
_ORDER, _RESULT, _ERROR, _LOG = "order.json", "result.json", "error.json", "merge.log"
_LOG_TAIL_LINES = 15
_WORK_SECONDS = 6 * 3600.0
"""For a large model on a slow disk; a worker that takes longer waits for something."""
_KILL_SECONDS = 10.0

# Kept, for Python complains about a living process that nobody holds any more.
_abandoned: list[subprocess.Popen[bytes]] = []


def merge_adapter(
    adapter_path: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    dtype: Dtype = "auto",
    quantized: bool | None = None,
    force: bool = False,
    dataset_path: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "cpu",
    threads: int | None = None,
) -> MergedModel:
    """Merge an adapter into its base model, compare, and publish the folder ``out``.

    The worker needs about 4 bytes of memory per weight of the base model.

    Args:
        adapter_path: folder of a trained adapter.
        base: folder or hub id of its base model.
        out: folder to make.
        dtype: of the merged weights; ``auto`` keeps the base model's.
        quantized: merge into the base model's weights as 4-bit NF4 holds them; None does it
            for adapters that were trained so.
        force: publish also what the comparison rejects; the record says so.
        dataset_path: dataset whose validation rows (else training rows) are compared too, up
            to 32 of them.
        device: where the worker computes.
        threads: CPU threads of torch; None takes one per core.

    Raises:
        ConfigError: ``out`` exists, or a GPU is asked for where none is.
        ModelError: adapter or base is not what it claims to be, or cannot be merged.
        PromptMismatch: the base's chat template is not the one the adapter was trained with.
        MergeRejected: the merged model answers otherwise; nothing is left behind.
        MissingDependency: 4-bit without bitsandbytes.
        RunBusy: another merge into ``out`` is at work.
        TrainingError: the worker crashed, or did not end.
    """
    final, folder = Path(out).expanduser().absolute(), locate_model(str(base))
    if final.exists():
        raise ConfigError(f"{final} exists already; name a folder that does not.")
    adapter = read_adapter(Path(adapter_path))
    _check_base(adapter, check_model_folder(folder))
    trained_on_nf4 = adapter.summary.get("quantization") == "nf4"
    if quantized and "quantization" not in adapter.summary:
        trained_on_nf4 = True  # an older record does not say; the caller does
    into_nf4 = trained_on_nf4 if quantized is None else quantized
    with _draft(final) as draft:
        order = MergeOrder(
            parent_pid=os.getpid(),
            adapter_path=str(Path(adapter_path).absolute()),
            model_folder=str(folder),
            model=str(draft / "model"),
            variant=_variant(adapter),
            prompt_hash=adapter.prompt_hash,
            dtype=dtype,
            trained_on_nf4=trained_on_nf4,
            merge_into_nf4=into_nf4,
            precision=str(adapter.summary.get("precision", "float32")),
            prompts=_PROMPTS,
            dataset_path=str(dataset_path.absolute()) if dataset_path else None,
            max_rows=_MOST_ROWS,
            device=device,
            threads=threads,
        )
        used_dtype, check = _work(draft, order)
        problems = check.problems()
        if problems and not force:
            raise MergeRejected(
                "The merged model does not answer as base and adapter do: "
                f"{'; '.join(problems)}. Nothing was written. {_advice(order, used_dtype)}",
                **check.model_dump(),
            )
        merged = MergedModel(
            path=str(final),
            adapter_id=adapter.id,
            base_model=adapter.base_model,
            base_sha256=adapter.base_sha256,
            dtype=used_dtype,
            merged_into_nf4=into_nf4,
            cep_id=adapter.cep_id,
            prompt_hash=adapter.prompt_hash,
            check=check,
            forced=bool(problems),
            files=_sums(draft / "model"),
        )
        _write_papers(draft / "model", merged, adapter)
        publish(draft / "model", final)
    log.info("merged model published adapter=%s path=%s", adapter.id, final)
    return merged


def _check_base(adapter: Adapter, base_sha256: str) -> None:
    if adapter.base_sha256 != base_sha256:
        raise ModelError(
            f"Adapter {adapter.id} was trained on other base weights ({adapter.base_model}).",
            expected=adapter.base_sha256,
            found=base_sha256,
        )


def _variant(adapter: Adapter) -> Variant | None:
    variant: Variant | None = next((v for v, p in PREFIXES.items() if p.id == adapter.cep_id), None)
    if adapter.cep_id is not None and variant is None:
        raise PromptMismatch(
            f"Adapter {adapter.id} was trained with the context prefix {adapter.cep_id}, which "
            "this version does not have. Merge it with the version that trained it.",
            code_version=adapter.code_version,
        )
    return variant


@contextmanager
def _draft(final: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``final``, for this process alone, and remove it."""
    draft = final.with_name(f"{final.name}.draft")
    draft.mkdir(parents=True, exist_ok=True)
    handle = os.open(draft, os.O_RDONLY)
    try:
        if not try_lock(handle):
            raise RunBusy(f"Another merge into {final} is at work; wait for it.")
        for left in draft.iterdir():  # by a merge that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield draft
        finally:
            shutil.rmtree(draft)
    finally:
        os.close(handle)


def _work(draft: Path, order: MergeOrder) -> tuple[str, MergeCheck]:
    """Let the worker write ``order.model``; return its dtype and how it compares."""
    write_file(draft / _ORDER, order.model_dump_json().encode())
    # Threads that wait sleep instead of spinning, as in training: see supervise.py.
    polite = ["env", "OMP_WAIT_POLICY=passive"]
    command = [*polite, sys.executable, "-m", "slm_core.training.merge_worker", str(draft)]
    with (draft / _LOG).open("wb") as output:
        worker = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            code = worker.wait(_WORK_SECONDS)
        except subprocess.TimeoutExpired:
            raise TrainingError(
                f"The worker that merges did not end within {_WORK_SECONDS / 3600:g} hours, and "
                "was killed. Look at the disk and the GPU, then merge again.",
                log_tail=_log_tail(draft),
            ) from None
        finally:
            _kill(worker)
    if (error := read_error(draft / _ERROR)) is not None:
        raise error
    if code != 0:
        hint = " (often the host running out of memory)" if code == -signal.SIGKILL else ""
        raise TrainingError(
            f"The worker that merges ended with {code}{hint}. It needs about 4 bytes of memory "
            "per weight of the base model.",
            exit_code=code,
            log_tail=_log_tail(draft),
        )
    result = json.loads((draft / _RESULT).read_text("utf-8"))
    return result["dtype"], MergeCheck.model_validate(result["check"])


def _kill(worker: subprocess.Popen[bytes]) -> None:
    """End a worker that is still there; leave one that outlives SIGKILL to the kernel."""
    if worker.poll() is not None:
        return
    worker.send_signal(signal.SIGKILL)  # it has written nothing that will be kept
    try:
        worker.wait(_KILL_SECONDS)
    except subprocess.TimeoutExpired:
        _abandoned.append(worker)
        log.error("merge worker cannot be killed pid=%d", worker.pid)


def _log_tail(draft: Path) -> str:
    lines = (draft / _LOG).read_text("utf-8", "replace").splitlines()
    return "\n".join(lines[-_LOG_TAIL_LINES:])


def _advice(order: MergeOrder, dtype: str) -> str:
    if order.trained_on_nf4 != order.merge_into_nf4:
        wanted = "4-bit" if order.trained_on_nf4 else "full"
        return f"The adapter was trained on the {wanted} weights; merge it into those."
    if dtype != "float32":
        return "Rounding may be the reason: merge with dtype float32, or serve it unmerged."
    return "Serve it unmerged, or force the merge and evaluate the result."


def _sums(model: Path) -> dict[str, str]:
    return {file.name: file_sha256(file) for file in sorted(model.glob("*.safetensors"))}


def _write_papers(model: Path, merged: MergedModel, adapter: Adapter) -> None:
    sums = "".join(f"{digest}  {name}\n" for name, digest in merged.files.items())
    write_file(model / SUMS, sums.encode())
    write_file(model / RECORD, merged.model_dump_json(indent=2).encode())
    card = merged_card(
        adapter,
        dtype=merged.dtype,
        from_nf4=merged.merged_into_nf4,
        check=merged.check.model_dump(),
        forced=merged.forced,
    )
    write_file(model / "README.md", card.encode())
