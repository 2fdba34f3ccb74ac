"""Files and folders of a run, whole on disk or not there at all; a full disk has a name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slm_core.errors import DiskFull
from slm_core.system import durable


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` with ``value`` as JSON in one step."""
    replace_file(path, json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")


def replace_file(path: Path, data: bytes) -> None:
    """Replace ``path`` with ``data`` in one step; if that fails, it stays as it was.

    Raises:
        DiskFull: there is no room for it.
    """
    with names_full_disk(path):
        durable.replace_file(path, data)


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` and wait until the disk has it.

    Raises:
        DiskFull: there is no room for it.
    """
    with names_full_disk(path):
        durable.write_file(path, data)


def publish(draft: Path, final: Path) -> None:
    """Give the folder ``draft`` its final name once all of its files are on disk."""
    with names_full_disk(final):
        for file in draft.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        durable.sync_folder(draft)
        draft.rename(final)
        durable.sync_folder(final.parent)


@contextmanager
def names_full_disk(path: Path) -> Iterator[None]:
    """Turn a full disk met while writing ``path`` into ``DiskFull``."""
    try:
        yield
    except OSError as error:
        if not durable.is_full_disk(error):
            raise
        raise disk_full(path, error) from error


def disk_full(path: Path, error: BaseException) -> DiskFull:
    """Return the error that a full disk at ``path`` means to the caller of ``train``."""
    folder = next(parent for parent in (path, *path.parents) if parent.is_dir())
    usage = shutil.disk_usage(folder)
    return DiskFull(
        f"{path} could not be written: {str(error).splitlines()[0]}. The last checkpoint is "
        "intact. Free some space or raise the limit, then train again to resume from it.",
        path=str(path),
        free_bytes=usage.free,
        total_bytes=usage.total,
    )
