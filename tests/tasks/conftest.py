"""Settings for tasks that are called outside any flow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from slm_core.settings import Settings
from slm_core.store import Store, open_store
from tasks import _wiring


@pytest.fixture
def settings(slm_home: Path) -> Iterator[Settings]:
    """Settings of an empty service, in use for tasks."""
    settings = Settings.from_env({"SLM_HOME": str(slm_home)})
    _wiring.configure(settings)
    yield settings
    _wiring._settings.clear()


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    """The store that the tasks use."""
    with open_store(settings.database_url) as store:
        yield store
