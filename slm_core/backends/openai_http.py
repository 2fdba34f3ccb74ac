"""A model behind an OpenAI-compatible or Azure OpenAI endpoint, asked at temperature 0.

Reasoning models refuse a temperature and ``max_tokens``; once the server says so, requests go
without the one, and with ``max_completion_tokens`` for the other. Rate limits, server errors
and timeouts are retried with backoff by the ``openai`` client; what still fails is that row's
error. A wrong key, address or model would fail every row alike, so it raises at once and names
the setting to check.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

from slm_core.backends.base import Completion, Request
from slm_core.errors import BackendUnavailable, ConfigError, SlmError
from slm_core.prompting.formats import render_completion
from slm_core.records import Message, ToolUse

log = logging.getLogger(__name__)

_SHORTEST_SECRET = 8
_UNSUPPORTED = ("unsupported_parameter", "unsupported_value")
_REFUSED_STATUS = (400, 413, 422)
"""HTTP statuses of a server that is up, and will never take this request: malformed, too long,
against a content filter."""

FailureKind = Literal["key", "address", "model", "unreachable", "busy", "row"]

FAILURES: dict[str, FailureKind] = {
    # Every request would fail alike.
    "AuthenticationError": "key",
    "PermissionDeniedError": "key",
    "SubjectTokenProviderError": "key",
    "NotFoundError": "model",
    "InvalidURL": "address",
    "UnsupportedProtocol": "address",
    "LocalProtocolError": "key",  # a header that cannot be sent: line ends in a key
    "_AmbiguousModuleClientUsageError": "address",
    # Retried; then this row's error.
    "APIConnectionError": "unreachable",
    "TransportError": "unreachable",
    "APITimeoutError": "busy",
    "TimeoutException": "busy",
    "RateLimitError": "busy",
    "InternalServerError": "busy",
    "ConflictError": "busy",
    # This row's error: the server read the request and would not have it.
    "OpenAIError": "row",
    "HTTPError": "row",
    "StreamError": "row",
    "CookieConflict": "row",
    "InvalidWebhookSignatureError": "row",
    "JSONDecodeError": "row",
}
"""Foreign exception class to what it means, by name: the ``openai`` package has changed its
HTTP library between versions. The nearest base class that is listed counts."""


class Wording(NamedTuple):
    """How a request says what not every model lets it say."""

    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: bool = True
    """Whether it says temperature 0."""

    def fields(self, max_tokens: int) -> dict[str, Any]:
        """Return the fields of the request."""
        fields: dict[str, Any] = {self.limit: max_tokens}
        return fields | {"temperature": 0} if self.temperature else fields

    def without(self, refused: str | None) -> Wording:
        """Return the wording that also avoids the field ``refused``, if there is one."""
        if refused == "max_tokens":
            return self._replace(limit="max_completion_tokens")
        return self._replace(temperature=False) if refused == "temperature" else self


class OpenAiBackend:
    """Asks one hosted model, several requests at a time, and answers in order."""

    def __init__(
        self,
        model: str,
        *,
        api_key: str,
        base_url: str | None = None,
        azure_endpoint: str | None = None,
        api_version: str | None = None,
        usd_per_million: tuple[float, float] | None = None,
        concurrency: int = 8,
        timeout_seconds: float = 60.0,
        max_retries: int = 4,
    ) -> None:
        """Prepare the client; nothing is sent yet.

        Args:
            model: model name, or deployment on Azure.
            api_key: key of the endpoint.
            base_url: address of an OpenAI-compatible server; None is OpenAI's own.
            azure_endpoint: address of an Azure OpenAI resource; needs ``api_version``.
            api_version: of the Azure API, such as ``2024-10-21``.
            usd_per_million: price of a million tokens, read and written; None leaves costs
                unknown.
            concurrency: requests in flight at once.
            timeout_seconds: longest wait for one try.
            max_retries: tries after the first, for what may pass.

        Raises:
            ConfigError: a value is missing, or two contradict each other; all are listed.
        """
        self._azure = azure_endpoint is not None
        problems = []
        if not api_key:
            problems.append(f"no API key: set {self._setting('key')}")
        if self._azure and base_url:
            problems.append("base_url and azure_endpoint exclude each other")
        if self._azure and not api_version:
            problems.append("Azure OpenAI needs api_version: set AZURE_API_VERSION")
        if concurrency < 1:
            problems.append(f"concurrency must be at least 1, got {concurrency}")
        if problems:
            raise ConfigError(f"The model {model!r} cannot be asked.", problems=tuple(problems))
        from openai import AzureOpenAI, OpenAI

        common: dict[str, Any] = {
            "api_key": api_key,
            "timeout": timeout_seconds,
            "max_retries": max_retries,
        }
        if azure_endpoint is not None:
            self._client: OpenAI = AzureOpenAI(
                azure_endpoint=azure_endpoint, api_version=api_version, **common
            )
        else:
            self._client = OpenAI(base_url=base_url, **common)
        self._model = model
        # Servers that need no key are given a word such as "key", which is no secret.
        self._secret = api_key if len(api_key) >= _SHORTEST_SECRET else None
        self._price = usd_per_million
        self._concurrency = concurrency
        self._wording = Wording()
        self._wording_lock = threading.Lock()

    @property
    def model(self) -> str:
        """Name for reports: the model, or the deployment."""
        return self._model

    def complete(self, requests: Sequence[Request], *, max_tokens: int) -> Iterator[Completion]:
        """Yield one answer per request, in order; see ``Backend.complete``.

        Raises:
            ConfigError: the server refuses the key, or knows no such model or address.
            BackendUnavailable: the server cannot be reached, and has not answered once.
        """
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="openai")
        waiting: deque[Future[Completion]] = deque()
        todo = iter(requests)
        answered = False
        try:
            while True:
                # Two rounds ahead: enough to keep every thread busy behind one slow answer.
                while len(waiting) < 2 * self._concurrency:
                    request = next(todo, None)
                    if request is None:
                        break
                    waiting.append(pool.submit(self._ask, request, max_tokens))
                if not waiting:
                    return
                try:
                    answer = waiting.popleft().result()
                except _Unreachable as gone:
                    if not answered:
                        raise self._unavailable(gone.cause) from self._tellable(gone.cause)
                    answer = gone.answer
                answered = True
                yield answer
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask(self, request: Request, max_tokens: int) -> Completion:
        options: dict[str, Any] = {}
        if request.tools:
            options["tools"] = [
                {"type": "function", "function": tool.model_dump(mode="json")}
                for tool in request.tools
            ]
            options["tool_choice"] = "auto" if request.native_tools else "none"
        while True:
            wording, began = self._wording, time.monotonic()
            try:
                response = self._client.chat.completions.create(
                    model=self._model,
                    messages=_messages(request.prompt),  # type: ignore[arg-type]
                    **wording.fields(max_tokens),
                    **options,
                )
                break
            except Exception as error:
                if not self._reworded(wording, error):
                    return self._failed(error, time.monotonic() - began)
        try:
            return self._answer(response, time.monotonic() - began)
        except (AttributeError, TypeError) as error:
            # The client builds its objects from whatever came, without checking.
            reason = f"The server's answer is no chat completion ({self._shown(error)})."
            return Completion("", "error", 0, 0, time.monotonic() - began, error=reason)

    def _reworded(self, sent: Wording, error: Exception) -> bool:
        """Return whether what was ``sent`` is worth sending again in other words.

        It says yes at most once for each field: a field that was not sent cannot be avoided.
        """
        refused = _unsupported_field(error)
        if sent.without(refused) == sent:
            return False
        # Other threads were refused at the same time; one of them tells.
        with self._wording_lock:
            wording = self._wording.without(refused)
            news, self._wording = wording != self._wording, wording
        if news and refused == "temperature":
            log.warning(
                "model takes no temperature: its answers are not deterministic model=%s",
                self._model,
            )
        elif news:
            log.warning(
                "model takes max_completion_tokens: its reasoning counts in the limit model=%s",
                self._model,
            )
        return True

    def _answer(self, response: Any, seconds: float) -> Completion:
        usage = response.usage
        read, written = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        cost = None
        if self._price and usage:
            # 1 USD per 10^6 tokens is 1000 nano-dollars per token.
            cost = round(1000 * (read * self._price[0] + written * self._price[1]))
        if not response.choices:
            reason = "The server answered without a choice."
            return Completion("", "error", read, written, seconds, cost, error=reason)
        choice = response.choices[0]
        message = choice.message
        calls = message.tool_calls or ()
        text = _call_text(calls) if calls else message.content or message.refusal or ""
        return Completion(text, choice.finish_reason or "stop", read, written, seconds, cost)

    def _failed(self, error: Exception, seconds: float) -> Completion:
        """Return the row's error, or raise what every other row would meet too."""
        kind = failure_kind(error)
        if kind is None:
            raise error
        if getattr(error, "code", None) == "insufficient_quota":
            kind = "key"  # answered with 429, but no waiting helps
        if kind in ("key", "address", "model"):
            raise ConfigError(
                f"The model server refuses every request ({self._shown(error)}). "
                f"Check {self._setting(kind)}.",
                model=self._model,
            ) from self._tellable(error)
        refused = kind == "row" and getattr(error, "status_code", None) in _REFUSED_STATUS
        answer = Completion("", "error", 0, 0, seconds, error=self._shown(error), permanent=refused)
        log.warning("request failed model=%s kind=%s seconds=%.1f", self._model, kind, seconds)
        if kind == "unreachable":
            raise _Unreachable(answer, error)
        return answer

    def _unavailable(self, cause: Exception) -> SlmError:
        return BackendUnavailable(
            f"The model server cannot be reached ({self._shown(cause)}). Check that it runs, and "
            f"{self._setting('address')}.",
            address=str(self._client.base_url),
            model=self._model,
        )

    def _shown(self, error: Exception) -> str:
        """Return the class and at most the first 300 characters of what it says.

        Some servers repeat the key that they refuse, and errors end in databases and reports.
        """
        said = str(error)
        if self._secret is not None:
            said = said.replace(self._secret, "[key]")
        return f"{type(error).__name__}: {said[:300]}"

    def _tellable(self, error: Exception) -> Exception | None:
        """Return the error as a cause to be shown; None when it would tell the key."""
        tells = self._secret is not None and self._secret in str(error)
        return None if tells else error

    def _setting(self, kind: FailureKind) -> str:
        azure, openai = {
            "key": ("AZURE_API_KEY", "OPENAI_API_KEY"),
            "address": ("AZURE_ENDPOINT", "OPENAI_BASE_URL"),
            "model": (
                "SLM_TEACHER_MODEL (the deployment's name), AZURE_ENDPOINT and AZURE_API_VERSION",
                "SLM_TEACHER_MODEL and OPENAI_BASE_URL",
            ),
        }[kind]
        return azure if self._azure else openai


class _Unreachable(Exception):
    """Carries a row's error together with its cause out of a worker thread."""

    def __init__(self, answer: Completion, cause: Exception) -> None:
        super().__init__()
        self.answer = answer
        self.cause = cause


def failure_kind(error: BaseException) -> FailureKind | None:
    """Return what a foreign exception means; None when it is not the HTTP client's."""
    # The client wraps what its HTTP library raised, and the cause says more.
    classes = [*type(error.__cause__).__mro__, *type(error).__mro__]
    return next((FAILURES[c.__name__] for c in classes if c.__name__ in FAILURES), None)


def _unsupported_field(error: Exception) -> str | None:
    """Return the field that the model does not take at all, or not with this value.

    Not one whose value is out of range: a limit above the model's own stays an error.
    """
    if getattr(error, "status_code", None) != 400:
        return None
    code = getattr(error, "code", None)
    return getattr(error, "param", None) if code in _UNSUPPORTED else None


def _messages(prompt: Iterable[Message]) -> list[dict[str, Any]]:
    """Return the turns in the wire form; results are matched to calls by their order."""
    turns: list[dict[str, Any]] = []
    open_calls: deque[str] = deque()
    for number, message in enumerate(prompt):
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            ids = [f"call_{number}_{at}" for at in range(len(message.tool_calls))]
            open_calls = deque(ids)
            turn["tool_calls"] = [
                {
                    "id": id_,
                    "type": "function",
                    "function": {"name": use.name, "arguments": json.dumps(use.arguments)},
                }
                for id_, use in zip(ids, message.tool_calls, strict=True)
            ]
        elif message.role == "tool":
            if open_calls:
                turn["tool_call_id"] = open_calls.popleft()
            else:
                # Servers refuse a result of no call; the call stands in the text before it.
                turn["role"] = "user"
        turns.append(turn)
    return turns


def _call_text(calls: Iterable[Any]) -> str:
    """Return native tool calls in the ``toolcall`` format; broken arguments stay as they are."""
    lines = []
    for call in calls:
        name, raw = call.function.name, call.function.arguments
        try:
            use = ToolUse(name=name, arguments=json.loads(raw or "{}"))
            lines.append(render_completion("toolcall", [use]))
        except (ValueError, RecursionError):
            lines.append(f'<tool_call name="{name}">{raw}</tool_call>')
    return "\n".join(lines)
