from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from slm_core.errors import DiskFull
from slm_core.testing.limits import largest_file
from slm_core.training.durable import disk_full, publish, write_json


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_published_folder_has_its_name_and_files(tmp_path: Path) -> None:
    draft, final = tmp_path / "draft", tmp_path / "final"
    draft.mkdir()
    (draft / "a").write_text("x")
    publish(draft, final)
    assert not draft.exists()
    assert (final / "a").read_text() == "x"


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with largest_file(1000), pytest.raises(DiskFull, match=r"a\.json"):
        write_json(path, {"a": "x" * 2000})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_other_trouble_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_json(tmp_path / "absent" / "a.json", {})


def test_the_error_says_where_and_how_much_is_free(tmp_path: Path) -> None:
    error = disk_full(tmp_path / "not/yet/there", OSError(errno.ENOSPC, "No space left"))
    assert "not/yet/there" in error.message
    assert 0 < error.context["free_bytes"] < error.context["total_bytes"]
