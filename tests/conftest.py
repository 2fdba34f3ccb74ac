"""What every test may count on: a clean environment, no network, and the shared fixtures.

The environment is cleaned before any module of ours is imported. Only loopback can be
reached, except by tests marked ``hub``. Servers start once per test process.
"""

from __future__ import annotations

import ipaddress
import itertools
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CLEANED = ("SLM_", "AZURE_", "OPENAI_", "LANGFUSE_", "PREFECT_", "HF_", "WANDB_")
KEPT = ("SLM_SHARED_DATA",)
"""Where an optional folder of real data lies; tests that read it skip without it."""

_network = {"allowed": False}
_PREFECT_HOME = pytest.StashKey[Path]()
_database_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-gpu", action="store_true", help="fail, not skip, without a GPU")
    parser.addoption("--hub", action="store_true", help="run the tests that download from a hub")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Shells start background jobs deaf to Ctrl-C; tests of it would wait for ever.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in list(os.environ):
        if name.startswith(CLEANED) and name not in KEPT:
            del os.environ[name]
    config.stash[_PREFECT_HOME] = Path(tempfile.mkdtemp(prefix="slm-prefect-home-"))
    os.environ["PREFECT_HOME"] = str(config.stash[_PREFECT_HOME])
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    os.environ["DO_NOT_TRACK"] = "1"
    if not config.getoption("--hub"):
        os.environ["HF_HUB_OFFLINE"] = "1"
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.addaudithook(_refuse_network)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_PREFECT_HOME], ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("hub") and not item.config.getoption("--hub"):
        pytest.skip("downloads from a hub; run with --hub")
    if item.get_closest_marker("gpu") and not Path("/dev/nvidia0").exists():
        if item.config.getoption("--require-gpu"):
            pytest.fail("--require-gpu was given, but this machine has no /dev/nvidia0")
        pytest.skip("needs a GPU; `make test-gpu` fails without one")
    _network["allowed"] = item.get_closest_marker("hub") is not None


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: raise on a connection to, or a look-up of, anything but this machine."""
    if event == "socket.connect":
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if host is None or _network["allowed"] or _is_loopback(host):
        return
    raise RuntimeError(f"tests may only reach this machine, not {host!r}")


def _is_loopback(host: str | bytes) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name in ("", "localhost")
    return address.is_loopback or address.is_unspecified


@pytest.fixture(autouse=True)
def slm_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``SLM_HOME`` of this test: nothing lands in the repository."""
    home = tmp_path / "slm-home"
    monkeypatch.setenv("SLM_HOME", str(home))
    return home


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """Commands and flows that run in this process set them for good; not for later tests."""
    loggers = [logging.getLogger(name) for name in ("slm_core", "tasks", "flows")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: a Llama with random weights, its tokenizer and its chat template."""
    from slm_core.testing.tiny_model import build_tiny_model

    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server on SQLite for flows called in this process, without heartbeats.

    Heartbeats cost a second per flow.
    """
    from prefect.settings import (
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_RESULTS_LOCAL_STORAGE_PATH,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    results = tmp_path_factory.mktemp("prefect-results")
    with (
        prefect_test_harness(server_startup_timeout=180),
        temporary_settings(
            {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_RESULTS_LOCAL_STORAGE_PATH: results}
        ),
    ):
        yield


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Superuser URL of a real PostgreSQL server (SQLAlchemy form, driver psycopg)."""
    from slm_core.local_stack.postgres import throwaway_postgres

    with throwaway_postgres() as url:
        yield url


@pytest.fixture
def postgres_database(postgres_url: str) -> str:
    """URL of a fresh, empty database on that server."""
    from slm_core.local_stack.postgres import ensure_database

    name = f"test_{next(_database_numbers)}"
    ensure_database(postgres_url, name)
    return postgres_url.rsplit("/", 1)[0] + f"/{name}"
