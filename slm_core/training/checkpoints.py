"""Checkpoints that survive a kill at any moment, and a full disk.

A checkpoint is a folder ``step-00000042`` with its files and a manifest of their hashes.
It is written under another name, synced, and renamed, so a half-written one never bears a
step's name. One that it replaces is put aside until then, and comes back if it never happens.
One that fails its manifest is moved aside, and the next older one is taken.
The checkpoint of the best validation loss, ``best-00000042``, is kept beside the newest.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from slm_core.errors import CheckpointCorrupt
from slm_core.training.durable import publish, write_file

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "state.json"
Prefix = Literal["step-", "best-"]
_DRAFT, _REPLACED, _CORRUPT = "draft-", "draft-old-", "corrupt-"


class Checkpoint(NamedTuple):
    """A checkpoint whose files match their hashes."""

    path: Path
    step: int
    state: dict[str, Any]
    """What the saver said about itself: step, epoch, counters, identity of the run."""


def save(
    folder: Path,
    step: int,
    files: Mapping[str, bytes],
    state: dict[str, Any],
    *,
    keep: int,
    name_prefix: Prefix = "step-",
) -> Path:
    """Write the checkpoint of ``step``, then remove all but the ``keep`` newest of its kind.

    Raises:
        DiskFull: there is no room; the older checkpoints are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{name_prefix}{step:08d}"
    draft = folder / f"{_DRAFT}{name}"
    shutil.rmtree(draft, ignore_errors=True)
    final, replaced = folder / name, folder / f"{_REPLACED}{name}"
    try:
        _write(draft, step, {**files, STATE: json.dumps(state, indent=2).encode()})
        if final.exists():
            # Left by an attempt that was resumed from an older checkpoint, and perhaps the only
            # one: it stays until this one has its name.
            final.rename(replaced)
        publish(draft, final)
    except BaseException:
        # On a full disk the draft holds the very space that the next words need.
        shutil.rmtree(draft, ignore_errors=True)
        if replaced.exists() and not final.exists():
            replaced.rename(final)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
    for old in _by_step(folder, name_prefix)[keep:]:
        shutil.rmtree(old)
    log.info("checkpoint saved step=%d path=%s", step, final)
    return final


def newest(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that verifies; None when none was ever finished.

    Raises:
        CheckpointCorrupt: there were checkpoints, and none of them verifies.
    """
    for replaced in folder.glob(f"{_REPLACED}*"):
        final = folder / replaced.name.removeprefix(_REPLACED)
        if not final.exists() and _problem(replaced) is None:
            log.warning("checkpoint put back, its replacement was never finished path=%s", final)
            replaced.rename(final)
    for draft in folder.glob(f"{_DRAFT}*"):
        shutil.rmtree(draft)
    found = _newest_sound(folder, "step-")
    corrupt = sorted(path.name for path in folder.glob(f"{_CORRUPT}step-*"))
    if found is None and corrupt:
        raise CheckpointCorrupt(
            f"No checkpoint in {folder} verifies. To train again from the first step, remove "
            "that folder.",
            corrupt=corrupt,
        )
    return found


class Seen(NamedTuple):
    """A checkpoint as it lies there."""

    path: Path
    step: int
    problem: str | None
    """Why it cannot be resumed from; None if it can."""


def look(folder: Path) -> list[Seen]:
    """Return the checkpoints, newest first, down to the first sound one; nothing is touched."""
    seen: list[Seen] = []
    for path in _by_step(folder, "step-"):
        seen.append(Seen(path, int(path.name.removeprefix("step-")), _problem(path)))
        if seen[-1].problem is None:
            break
    return seen


def best(folder: Path) -> Checkpoint | None:
    """Return the checkpoint of the best validation loss; None when no sound one is there."""
    return _newest_sound(folder, "best-")


def forget_best_after(folder: Path, step: int) -> None:
    """Remove the best of later steps: a resumed run takes those again, perhaps otherwise."""
    for path in _by_step(folder, "best-"):
        if int(path.name.removeprefix("best-")) > step:
            shutil.rmtree(path)


def _write(draft: Path, step: int, contents: Mapping[str, bytes]) -> None:
    draft.mkdir()
    for name, data in contents.items():
        write_file(draft / name, data)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    write_file(draft / MANIFEST, json.dumps({"step": step, "files": hashes}, indent=2).encode())


def _newest_sound(folder: Path, prefix: Prefix) -> Checkpoint | None:
    for path in _by_step(folder, prefix):
        problem = _problem(path)
        if problem is None:
            step = int(path.name.removeprefix(prefix))
            return Checkpoint(path, step, json.loads((path / STATE).read_text("utf-8")))
        log.warning("checkpoint is corrupt, trying an older one path=%s problem=%s", path, problem)
        aside = folder / f"{_CORRUPT}{path.name}"
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    return None


def _by_step(folder: Path, prefix: Prefix) -> list[Path]:
    return sorted(folder.glob(f"{prefix}*"), reverse=True)


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
