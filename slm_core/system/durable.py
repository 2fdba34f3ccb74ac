"""Files that hold the old content or the new one, whatever ends the process or the machine.

Everything here raises ``OSError`` as it comes; who calls knows what was lost and what to do.
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

# EFBIG: the limit on the size of one file (``ulimit -f``), which quota systems use as well.
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What libraries say that write files without Python, such as safetensors.
_NO_SPACE_WORDS = tuple(os.strerror(number).lower() for number in sorted(_NO_SPACE))


def replace_file(path: Path, data: bytes) -> None:
    """Replace ``path`` with ``data`` in one step; if that fails, it stays as it was."""
    # Of its own name: two processes may write the same file at the same time.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
    try:
        write_file(draft, data)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    # Without it the disk may forget the new name.
    sync_folder(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the disk has the folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_full_disk(error: BaseException) -> bool:
    """Return whether ``error`` says that there is no room for a file."""
    if isinstance(error, OSError):
        return error.errno in _NO_SPACE
    said = str(error).lower()
    return any(words in said for words in _NO_SPACE_WORDS)
