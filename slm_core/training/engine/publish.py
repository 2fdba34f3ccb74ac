"""Write the finished adapter's folder: whole, self-describing, loadable by plain PEFT."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from typing import Any

from slm_core import __version__
from slm_core.backends.model_folder import file_sha256
from slm_core.prompting.prefix import get_prefix
from slm_core.records import Adapter, LossPoint, content_id
from slm_core.training.card import adapter_card
from slm_core.training.durable import publish, write_file
from slm_core.training.engine.student import Student
from slm_core.training.run_folder import Job, RunFolder

log = logging.getLogger(__name__)


def publish_adapter(
    run: RunFolder,
    job: Job,
    student: Student,
    *,
    prompt_hash: str,
    summary: dict[str, Any],
    losses: Sequence[LossPoint],
) -> Adapter:
    """Save the adapter with its record and card to ``run.adapter`` in one step."""
    draft = run.adapter.with_name("adapter.draft")
    shutil.rmtree(draft, ignore_errors=True)
    # Embeddings are frozen; PEFT's "auto" would ask the hub whether they grew.
    student.model.save_pretrained(str(draft), save_embedding_layers=False)
    identity, spec = job.identity, job.identity.spec
    prefix = get_prefix(spec.cep)
    made_by = {
        "weights_sha256": file_sha256(draft / "adapter_model.safetensors"),
        "dataset_id": identity.dataset_id,
        "spec_digest": identity.spec_digest,
        "cep_id": prefix.id if prefix else None,
        "prompt_hash": prompt_hash,
    }
    adapter = Adapter(
        id=content_id("adapter", made_by),
        path=str(run.adapter),
        base_model=spec.base_model,
        base_sha256=identity.base_sha256,
        run_id=identity.run_id,
        tracks=spec.tracks,
        code_version=__version__,
        summary=summary,
        losses=tuple(losses),
        **made_by,
    )
    write_file(draft / "slm_adapter.json", adapter.model_dump_json(indent=2).encode())
    write_file(draft / "README.md", adapter_card(adapter, rank=spec.lora_r).encode())
    publish(draft, run.adapter)
    log.info("adapter published id=%s path=%s", adapter.id, run.adapter)
    return adapter
