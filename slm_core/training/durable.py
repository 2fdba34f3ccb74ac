"""Files and folders that are either whole on disk or not there at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` with ``value`` as JSON in one step."""
    fresh = path.with_name(f"{path.name}.new")
    write_file(fresh, json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")
    fresh.replace(path)
    sync_folder(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def publish(draft: Path, final: Path) -> None:
    """Give the folder ``draft`` its final name once all of its files are on disk."""
    for file in draft.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    sync_folder(draft)
    draft.rename(final)
    sync_folder(final.parent)


def sync_folder(path: Path) -> None:
    """Wait until the disk has the folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
