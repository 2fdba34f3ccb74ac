"""Checkpoints that survive a kill at any moment.

A checkpoint is a folder ``step-00000042`` with its files and a manifest of their hashes.
It is written under another name, synced, and renamed, so a half-written one never bears a
step's name. One that fails its manifest is moved aside, and the next older one is taken.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from slm_core.errors import CheckpointCorrupt
from slm_core.training.durable import publish, write_file

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "state.json"
_STEP, _DRAFT, _CORRUPT = "step-", "draft-", "corrupt-"


class Checkpoint(NamedTuple):
    """A checkpoint whose files match their hashes."""

    path: Path
    step: int
    state: dict[str, Any]
    """What the saver said about itself: step, epoch, counters, identity of the run."""


def save(
    folder: Path, step: int, files: Mapping[str, bytes], state: dict[str, Any], *, keep: int
) -> Path:
    """Write the checkpoint of ``step``, then remove all but the ``keep`` newest."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{_DRAFT}{step:08d}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    contents = {**files, STATE: json.dumps(state, indent=2).encode()}
    for name, data in contents.items():
        write_file(draft / name, data)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    write_file(draft / MANIFEST, json.dumps({"step": step, "files": hashes}, indent=2).encode())
    final = folder / f"{_STEP}{step:08d}"
    # Left by an attempt that was resumed from an older checkpoint; this one replaces it.
    shutil.rmtree(final, ignore_errors=True)
    publish(draft, final)
    for old in _by_step(folder)[keep:]:
        shutil.rmtree(old)
    log.info("checkpoint saved step=%d path=%s", step, final)
    return final


def newest(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that verifies; None when none was ever finished.

    Raises:
        CheckpointCorrupt: there were checkpoints, and none of them verifies.
    """
    for draft in folder.glob(f"{_DRAFT}*"):
        shutil.rmtree(draft)
    for path in _by_step(folder):
        problem = _problem(path)
        if problem is None:
            step = int(path.name.removeprefix(_STEP))
            return Checkpoint(path, step, json.loads((path / STATE).read_text("utf-8")))
        log.warning("checkpoint is corrupt, trying an older one path=%s problem=%s", path, problem)
        aside = folder / f"{_CORRUPT}{path.name}"
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    corrupt = sorted(path.name for path in folder.glob(f"{_CORRUPT}*"))
    if corrupt:
        raise CheckpointCorrupt(
            f"No checkpoint in {folder} verifies. To train again from the first step, remove "
            "that folder.",
            corrupt=corrupt,
        )
    return None


def _by_step(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_STEP}*"), reverse=True)


def _problem(path: Path) -> str | None:
    """Return what is wrong with the checkpoint, or None."""
    try:
        expected = json.loads((path / MANIFEST).read_text("utf-8"))["files"]
        for name, digest in expected.items():
            if hashlib.sha256((path / name).read_bytes()).hexdigest() != digest:
                return f"{name} does not match its hash"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None if STATE in expected else f"{STATE} is not listed"
