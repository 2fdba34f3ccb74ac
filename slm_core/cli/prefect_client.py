"""The few questions that the commands have for a Prefect server, over its REST API.

The library never imports Prefect; these commands also work where it is not installed. Every
failure becomes ``PrefectUnavailable`` with a sentence, and no request waits long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote
from uuid import UUID

import httpx

from slm_core.errors import ConfigError, PrefectUnavailable, RunBusy
from slm_core.settings import Settings

PAGE = 200
"""Most rows that the server returns for one request."""
AWAITING_RETRY = "AwaitingRetry"
ENDED = ("CRASHED", "FAILED", "CANCELLED")
"""States that a run can be retried from."""


class LogLine(NamedTuple):
    """One line that a flow run logged."""

    id: str
    when: datetime
    level: int
    text: str


class PrefectClient:
    """One server; a context manager."""

    def __init__(
        self,
        api_url: str,
        auth: str | None = None,
        *,
        dashboard: str | None = None,
        seconds: float = 5.0,
    ) -> None:
        """Prepare to ask; nothing is sent yet.

        Args:
            api_url: such as ``http://127.0.0.1:4200/api``.
            auth: ``user:password``, if the server asks for it.
            dashboard: address for people; None means the API's without ``/api``.
            seconds: longest wait for one answer.
        """
        self.api_url = api_url
        self.dashboard = (dashboard or api_url.removesuffix("/api")).rstrip("/")
        """Address for people."""
        user, _, password = (auth or "").partition(":")
        self._http = httpx.Client(
            base_url=api_url, auth=(user, password) if auth else None, timeout=seconds
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

    def get(self, path: str) -> Any:
        """Return the answer to GET ``path``.

        Raises:
            PrefectUnavailable: there is no answer, or it is a refusal.
        """
        return self._ask("GET", path, None)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the answer to POST ``path``.

        Raises:
            PrefectUnavailable: there is no answer, or it is a refusal.
        """
        return self._ask("POST", path, body or {})

    def every(self, path: str, body: dict[str, Any] | None = None) -> list[Any]:
        """Return all rows of a filter, page after page."""
        found: list[Any] = []
        while True:
            page = self.post(path, {**(body or {}), "limit": PAGE, "offset": len(found)})
            found += page
            if len(page) < PAGE:
                return found

    def flow_run(self, run_id: str) -> dict[str, Any] | None:
        """Return a flow run; None when the server knows none of that id."""
        if not _is_uuid(run_id):
            return None
        try:
            return self.get(f"/flow_runs/{run_id}")
        except PrefectUnavailable as error:
            if error.context.get("status") == 404:
                return None
            raise

    def attempts(self, run_id: str) -> int:
        """Return how often a run was begun; 0 for an unknown one.

        The server counts a run when its flow begins; one that died before that counts here too.
        ``resume/run`` counts the same, but for the times when only its worker was stopped.
        """
        run = self.flow_run(run_id)
        if run is None:
            return 0
        states = self.get(f"/flow_run_states/?flow_run_id={run_id}")
        return max(run["run_count"], 1 + sum(one["name"] == AWAITING_RETRY for one in states))

    def logs(self, run_ids: Sequence[str], *, skip: int = 0) -> Iterator[LogLine]:
        """Yield what the flow runs logged, oldest first, without the first ``skip`` lines."""
        ids = [run_id for run_id in run_ids if _is_uuid(run_id)]
        while ids:
            asked = {"logs": {"flow_run_id": {"any_": ids}}, "sort": "TIMESTAMP_ASC"}
            page = self.post("/logs/filter", {**asked, "limit": PAGE, "offset": skip})
            for row in page:
                when = datetime.fromisoformat(row["timestamp"])
                yield LogLine(row["id"], when, row["level"], row["message"])
            skip += len(page)
            if len(page) < PAGE:
                return

    def deployment(self, name: str) -> dict[str, Any]:
        """Return the deployment ``FLOW/NAME``.

        Raises:
            PrefectUnavailable: the server knows no such deployment, or does not answer.
        """
        flow, _, own = name.partition("/")
        return self.get(f"/deployments/name/{quote(flow)}/{quote(own)}")

    def start(self, deployment_id: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Start a run of a deployment; return the flow run.

        Raises:
            PrefectUnavailable: the server refuses, or does not answer.
        """
        return self.post(
            f"/deployments/{deployment_id}/create_flow_run", {"parameters": parameters}
        )

    def retry(self, run_id: str) -> None:
        """Let a flow run that ended begin again under the same id, as Retry in the dashboard.

        Raises:
            RunBusy: it has not ended; Prefect itself would let a second process begin it.
            PrefectUnavailable: the server does not know it, or refuses: it has no deployment.
        """
        run = self.flow_run(run_id)
        if run is None:
            raise PrefectUnavailable(f"Prefect at {self.api_url} knows no run {run_id}.")
        if run["state_type"] not in ENDED:
            raise RunBusy(
                f"Run {run_id} is {run['state_name']} in Prefect; only one that failed, crashed or "
                f"was cancelled begins again. If it is dead: prefect flow-run cancel {run_id}"
            )
        state = {"type": "SCHEDULED", "name": AWAITING_RETRY}
        answer = self.post(f"/flow_runs/{run_id}/set_state", {"state": state})
        if answer["status"] != "ACCEPT":
            why = (answer.get("details") or {}).get("reason") or answer["status"]
            raise PrefectUnavailable(f"Prefect does not take run {run_id} up again: {why}")

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        try:
            answer = self._http.request(method, path, json=body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise PrefectUnavailable(
                f"Prefect at {self.api_url} does not answer ({type(error).__name__}). Is the "
                "server up, and is PREFECT_API_URL right?"
            ) from error
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise PrefectUnavailable(
                f"Prefect at {self.api_url} wants a login: set PREFECT_API_AUTH_STRING.",
                status=answer.status_code,
            )
        if not answer.is_success:
            raise PrefectUnavailable(
                f"Prefect refused {path}: HTTP {answer.status_code}.", status=answer.status_code
            )
        try:
            return answer.json() if answer.content else None
        except ValueError as error:
            raise PrefectUnavailable(
                f"What answers at {self.api_url} is no Prefect API. PREFECT_API_URL ends in /api."
            ) from error


def prefect_client(settings: Settings, *, seconds: float = 5.0) -> PrefectClient:
    """Return a client of the server that the settings name.

    Raises:
        ConfigError: they name none.
    """
    if settings.prefect_api_url is None:
        raise ConfigError(no_server(settings))
    login = settings.prefect_api_auth_string
    auth = login.get_secret_value() if login else None
    return PrefectClient(
        settings.prefect_api_url, auth, dashboard=settings.prefect_ui_url, seconds=seconds
    )


def no_server(settings: Settings) -> str:
    """Return what to do where no server is named."""
    shell = settings.home / "stack" / "environment.sh"
    if shell.is_file():
        return f"PREFECT_API_URL is not set. Run: source {shell}"
    return "PREFECT_API_URL is not set: this shell knows of no Prefect server."


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
