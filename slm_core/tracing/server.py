"""A Langfuse project as seen from here: is it there, what does it hold, take these scores.

One boundary for the package's REST client: every foreign error becomes TracingUnavailable
with a sentence. Imports langfuse: load this file only to talk to a server.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx
from langfuse import __version__ as langfuse_version
from langfuse.api import CreateScoreBatchResults, CreateScoreRequest, LangfuseAPI, ScoreDataType
from langfuse.api.core import ApiError

from slm_core.errors import TracingUnavailable
from slm_core.tracing.config import LangfuseConfig
from slm_core.tracing.delivery import probe
from slm_core.tracing.ids import score_id

log = logging.getLogger(__name__)

OLDEST_SERVER = (4, 59)
"""The first self-hosted server that the Langfuse package's version 5 works with."""
SCORES_PER_REQUEST = 100
_T = TypeVar("_T")


class LangfuseServer:
    """The REST side of one Langfuse project; a context manager."""

    def __init__(self, config: LangfuseConfig) -> None:
        self._config = config
        self._http = httpx.Client(timeout=config.timeout_seconds)
        self._api = LangfuseAPI(
            base_url=config.base_url.rstrip("/"),
            username=config.public_key,
            password=config.secret_key.get_secret_value(),
            x_langfuse_sdk_name="python",
            x_langfuse_sdk_version=langfuse_version,
            x_langfuse_public_key=config.public_key,
            httpx_client=self._http,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _where: TracebackType | None,
    ) -> None:
        self._http.close()

    def check(self) -> None:
        """Pass when spans sent now would be taken.

        Raises:
            TracingUnavailable: the host does not answer, the keys are refused, the server is
                too old, or the address for spans does not take them.
        """
        projects = self._ask(lambda: self._api.projects.get(request_options={"max_retries": 0}))
        if not projects.data:
            raise TracingUnavailable(
                f"Langfuse at {self._config.base_url} knows no project for these keys. "
                "Use the keys of a project, not of an organization."
            )
        self._check_version()
        outcome = probe(self._config)
        if outcome.state != "accepted":
            raise TracingUnavailable(
                f"Langfuse at {self._config.base_url} knows the keys but does not take spans: "
                f"{outcome.reason}. Something between here and it may block "
                "/api/public/otel/v1/traces."
            )

    def span_ids(self, trace_id: str) -> frozenset[str] | None:
        """Return the ids of the trace's spans that Langfuse shows; None when it cannot say."""
        found: set[str] = set()
        cursor: str | None = None
        while True:
            page = cursor
            try:
                answer = self._ask(
                    lambda: self._api.observations.get_many(
                        trace_id=trace_id,
                        fields="core",
                        limit=1000,
                        cursor=page,  # noqa: B023 - called before the next round
                        request_options={"max_retries": 0},
                    )
                )
            except TracingUnavailable as error:
                if error.context.get("status") in (200, 404, 405):
                    log.warning("spans cannot be read back status=%s", error.context["status"])
                    return None
                raise
            found.update(observation.id for observation in answer.data)
            cursor = answer.meta.cursor
            if not cursor:
                return frozenset(found)

    def add_scores(self, spans: Sequence[dict[str, Any]]) -> list[str]:
        """Send the metrics of ``spans`` as scores; sending one again updates it.

        The spans need not be there yet: Langfuse does not look for them (its pull request 2477).

        Returns:
            What was refused for good, in words. The numbers are in the span's metadata too.

        Raises:
            TracingUnavailable: the scores may be taken later.
        """
        scores = [score for span in spans for score in _scores(span, self._config.environment)]
        notes: list[str] = []
        for first in range(0, len(scores), SCORES_PER_REQUEST):
            batch = scores[first : first + SCORES_PER_REQUEST]
            try:
                answer = self._ask(
                    lambda: self._api.scores.create(
                        request=batch,  # noqa: B023 - called before the next round
                        request_options={"max_retries": 0},
                    )
                )
            except TracingUnavailable as error:
                status = error.context.get("status", 0)
                if status in (401, 403, 408, 429) or not 200 <= status < 500:
                    raise
                if status >= 300:
                    notes.append(f"{len(batch)} scores refused: HTTP {status}")
                continue
            if isinstance(answer, CreateScoreBatchResults) and answer.rejected:
                notes.append(f"{answer.rejected} of {len(batch)} scores refused")
        return notes

    def _check_version(self) -> None:
        if (urlsplit(self._config.base_url).hostname or "").endswith("langfuse.com"):
            return  # the hosted service is always new enough
        try:
            health = self._ask(lambda: self._api.health.health(request_options={"max_retries": 0}))
        except TracingUnavailable as error:
            if error.context.get("status") in (200, 404):
                return  # no health page: let the spans themselves tell
            raise
        version = re.match(r"v?(\d+)\.(\d+)", health.version)
        if version and (int(version[1]), int(version[2])) < OLDEST_SERVER:
            raise TracingUnavailable(
                f"Langfuse at {self._config.base_url} is version {health.version}; the Langfuse "
                f"package {langfuse_version} needs {OLDEST_SERVER[0]}.{OLDEST_SERVER[1]} or newer. "
                "Upgrade the server."
            )

    def _ask(self, question: Callable[[], _T]) -> _T:
        where = f"Langfuse at {self._config.base_url}"
        try:
            return question()
        except ApiError as error:
            status = error.status_code or 0
            if status in (401, 403):
                raise TracingUnavailable(
                    f"{where} refuses the keys. Check that LANGFUSE_PUBLIC_KEY and "
                    "LANGFUSE_SECRET_KEY are of one project on that host.",
                    status=status,
                ) from error
            raise TracingUnavailable(f"{where} answered HTTP {status}", status=status) from error
        except ValueError as error:  # 2xx with a body that is not what it should be
            raise TracingUnavailable(f"{where} gave an unreadable answer", status=200) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise TracingUnavailable(
                f"{where} does not answer ({type(error).__name__}). Is it running, and is "
                "LANGFUSE_BASE_URL right?"
            ) from error


def _scores(span: dict[str, Any], environment: str) -> list[CreateScoreRequest]:
    return [
        CreateScoreRequest(
            id=score_id(span["id"], name),
            trace_id=span["trace_id"],
            observation_id=span["id"],
            name=name,
            value=float(metric["value"]),
            data_type=ScoreDataType.NUMERIC,
            comment=_evidence(metric),
            environment=environment,
            # Langfuse updates a score on the same id and the same time.
            timestamp=datetime.fromisoformat(span["ended_at"]),
        )
        for name, metric in span["metrics"].items()
    ]


def _evidence(metric: dict[str, Any]) -> str | None:
    if "n" not in metric:
        return None
    return f"n={metric['n']}, 95 % interval {metric['low']:.4f} to {metric['high']:.4f}"
