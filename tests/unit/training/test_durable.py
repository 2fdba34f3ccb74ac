from __future__ import annotations

import json
from pathlib import Path

import pytest

from slm_core.training.durable import publish, write_json


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
