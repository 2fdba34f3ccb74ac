from __future__ import annotations

import errno

import pytest

from slm_core.system.durable import is_full_disk


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EFBIG, "File too large"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("no room in the batch"), False),
    ],
)
def test_a_full_disk_is_known_by_number_or_words(error: Exception, full: bool) -> None:
    assert is_full_disk(error) is full
