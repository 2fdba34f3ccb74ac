"""Settings to open resources: what every task needs before it can call a stage.

Settings are read once per process, from the environment unless ``configure`` gave others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import State, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun

from slm_core.errors import SlmError, StoreError
from slm_core.settings import Settings
from slm_core.tracing import RunTrace, check_langfuse, push_pending
from slm_core.training.orders import OrderBook

if TYPE_CHECKING:
    from slm_core.store import Store

log = logging.getLogger(__name__)

_settings: list[Settings] = []


def configure(settings: Settings) -> None:
    """Use ``settings`` in this process in place of the environment."""
    _settings[:] = [settings]


def current_settings() -> Settings:
    """Return this process's settings.

    Raises:
        ConfigError: the environment does not hold usable settings.
    """
    if not _settings:
        configure(Settings.from_env())
        # Log lines of ours reach the Prefect UI only from this level on.
        for name in ("slm_core", "tasks", "flows"):
            logging.getLogger(name).setLevel(_settings[0].log_level)
    return _settings[0]


def own_student() -> str | None:
    """Return the base model that ``SLM_STUDENT_MODEL`` names; None when it is not set."""
    settings = current_settings()
    return settings.student_model if "student_model" in settings.model_fields_set else None


@contextmanager
def opened_store() -> Iterator[Store]:
    """Open the store that the settings name."""
    # SQLAlchemy takes a third of a second, which listing deployments need not wait for.
    from slm_core.store import open_store

    with open_store(current_settings().database_url) as store:
        yield store


def run_folder(run_id: str) -> Path:
    """Return the folder of a run; a resumed run finds its files there."""
    folder = current_settings().home / "runs" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def order_book() -> OrderBook:
    """Return what every run was told, for whoever goes on with one."""
    return OrderBook(current_settings().home / "runs")


def is_retryable(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether doing the same again may help: only errors that say so of themselves."""
    # Not raised: that would add frames of Prefect's to the traceback that people read.
    error = state.result(raise_on_failure=False)
    return isinstance(error, SlmError) and error.retryable


def step(name: str) -> Callable[[Callable[..., Any]], Task[..., Any]]:
    """Make a task of one stage: never cached, since each stage resumes by its own files."""
    return task(
        name=name,
        task_run_name=name,
        cache_policy=NO_CACHE,
        retries=2,
        retry_delay_seconds=[2, 10],
        retry_condition_fn=is_retryable,
    )


def require_tracing() -> None:
    """Pass when this run may begin: Langfuse answers, or nobody insists on it.

    Raises:
        TracingUnavailable: Langfuse is required and does not answer.
    """
    settings = current_settings()
    if settings.require_langfuse:
        check_langfuse(settings.langfuse())


@contextmanager
def traced(name: str, run_id: str, **metadata: Any) -> Iterator[RunTrace]:
    """Trace one run: kept in the store at once, sent to Langfuse at the end if keys are set."""
    with opened_store() as store:
        try:
            with RunTrace(name, run_id, sink=store.spans, metadata=metadata) as trace:
                yield trace
        except Exception:
            _send_spans(store)  # failed runs are those that people look for
            raise
        _send_spans(store)


def _send_spans(store: Store) -> None:
    settings = current_settings()
    config = settings.langfuse()
    if config.problems():
        return
    # Every run that ends sends the spans of all; the lock in their home lets one at a time.
    try:
        result = push_pending(store.spans, config, folder=settings.home)
    except StoreError as error:  # must not hide how the run itself ended
        log.warning("spans kept for later: %s", error.message)
        return
    if not result.ok:
        log.warning("spans kept for later count=%d reason=%s", len(result.failed), result.reason)
