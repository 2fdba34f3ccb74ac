"""The command line on a store of its own, in this process."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from typer.testing import CliRunner

from slm_core.cli.app import app
from slm_core.store import Store, open_store


class Ran(Protocol):
    """What a command did."""

    exit_code: int
    stdout: str
    stderr: str


class Slm:
    """Runs ``slm`` with these words."""

    def __call__(self, *words: object, status: int = 0) -> Ran:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == status, f"{result.output}\n{result.exception!r}"
        return result

    def json(self, *words: object) -> Any:
        return json.loads(self(*words, "--json").stdout)

    def refused(self, *words: object, status: int = 1) -> str:
        """Return the message of a command that must fail, and say so once."""
        result = self(*words, status=status)
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        return result.stderr


@pytest.fixture
def slm() -> Iterator[Slm]:
    logger = logging.getLogger("slm_core")
    level = logger.level
    yield Slm()
    logger.setLevel(level)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a store that holds nothing; copying it is quicker than migrating."""
    file = tmp_path_factory.mktemp("store") / "empty.db"
    open_store(f"sqlite:///{file}").close()
    return file


@pytest.fixture
def store(empty_store: Path, slm_home: Path) -> Iterator[Store]:
    """The store that the commands of this test use."""
    slm_home.mkdir()
    with open_store(f"sqlite:///{shutil.copy(empty_store, slm_home / 'slm.db')}") as store:
        yield store
