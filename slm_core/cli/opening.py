"""From the environment to settings and the store, the way every command begins."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from slm_core.errors import RecordNotFound

if TYPE_CHECKING:
    from slm_core.settings import Settings
    from slm_core.store import Store


def load_settings(*, log_level: str = "WARNING") -> Settings:
    """Read the settings and send log lines to stderr.

    ``log_level`` holds unless ``SLM_LOG_LEVEL`` is set: a command that shows its result
    need not log it too.

    Raises:
        ConfigError: the environment does not hold usable settings.
    """
    from slm_core.settings import Settings

    settings = Settings.from_env()
    if "log_level" in settings.model_fields_set:
        log_level = settings.log_level
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("slm_core").setLevel(log_level)
    return settings


@contextmanager
def opened_store(settings: Settings, *, create: bool = False) -> Iterator[Store]:
    """Open the store that the settings name.

    Raises:
        RecordNotFound: there is none, and ``create`` is false.
        StoreError: it cannot be used.
    """
    from slm_core.store import open_store

    kind, _, file = settings.database_url.partition("sqlite:///")
    if not create and not kind and not Path(file.partition("?")[0]).exists():
        raise _no_store(file)
    try:
        store = open_store(settings.database_url, create=create)
    except RecordNotFound as error:
        raise _no_store(error.context["store"]) from error
    with store:
        yield store


def _no_store(where: str) -> RecordNotFound:
    return RecordNotFound(
        f"There is no store at {where}. Check SLM_DATABASE_URL and SLM_HOME; a first one is made "
        "by `slm store upgrade`."
    )
