"""The files that the status leaves, and a disk that takes none."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from slm_core.status import Operations, Status, StatusFiles
from slm_core.status.snapshot import Disk
from slm_core.system.durable import is_full_disk
from slm_core.testing.limits import largest_file

NOW = datetime(2026, 3, 14, 3, 0, tzinfo=UTC)


def status(dashboard: str) -> Status:
    return Status(
        at=NOW,
        host="gpu-1",
        threshold=100,
        store=None,
        store_name="sqlite:///slm.db",
        disk=Disk(path="/data", free_bytes=0, total_bytes=1),
        operations=Operations(at=NOW, dashboard=dashboard),
    )


def test_a_full_disk_keeps_the_old_files_and_promises_no_checkpoint(tmp_path: Path) -> None:
    files = StatusFiles(tmp_path)
    files.write(status("http://old"))
    with largest_file(100), pytest.raises(OSError, match="too large") as met:
        files.write(status("http://new"))
    assert is_full_disk(met.value)
    assert "checkpoint" not in str(met.value)
    assert files.operations() == Operations(at=NOW, dashboard="http://old")
    assert {path.name for path in tmp_path.iterdir()} == {"status.json", "status.html"}
