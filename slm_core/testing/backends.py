"""A backend that answers from a script and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from slm_core.backends.base import Completion, Request
from slm_core.errors import BackendError

Answer = str | Completion | BaseException


class ScriptedBackend:
    """Answers from a queue, or by a function of the request.

    Text becomes a ``Completion`` that took no time and cost nothing; an exception is raised in
    place of the answer.
    """

    def __init__(
        self, answers: Iterable[Answer] | Callable[[Request], Answer], *, model: str = "scripted"
    ) -> None:
        self._model = model
        if callable(answers):
            self._answer = answers
        else:
            queue = iter(answers)
            self._answer = lambda _: next(queue, BackendError("The script has no more answers."))
        self.asked: list[Request] = []
        """Every request so far, in order."""
        self.max_tokens: int | None = None
        """Limit of the last call."""
        self.closed = False

    @property
    def model(self) -> str:
        """Name for reports."""
        return self._model

    def complete(self, requests: Sequence[Request], *, max_tokens: int) -> Iterator[Completion]:
        """Yield the scripted answers, one per request."""
        if self.closed:
            raise BackendError("This backend is closed.")
        self.max_tokens = max_tokens
        for request in requests:
            self.asked.append(request)
            answer = self._answer(request)
            if isinstance(answer, BaseException):
                raise answer
            yield as_completion(answer) if isinstance(answer, str) else answer

    def close(self) -> None:
        """Refuse further questions."""
        self.closed = True


def as_completion(text: str) -> Completion:
    """Return ``text`` as an answer that stopped by itself, free and instant."""
    return Completion(text, "stop", 0, len(text.split()), 0.0, cost_nanousd=0)


def failed(error: str, *, permanent: bool = False) -> Completion:
    """Return an answer that says that the backend failed on this request, or refused it."""
    return Completion("", "error", 0, 0, 0.0, error=error, permanent=permanent)
