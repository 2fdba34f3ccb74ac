"""The scripted backend keeps the promises of a backend."""

from __future__ import annotations

import pytest

from slm_core.backends.base import Backend, Completion, Request
from slm_core.errors import BackendError
from slm_core.records import Message
from slm_core.testing.backends import ScriptedBackend, failed


def ask(text: str) -> Request:
    return Request((Message(role="user", content=text),))


def test_a_queue_is_answered_in_order_and_remembered():
    backend = ScriptedBackend(["one two", Completion("three", "length", 1, 2, 3.0), failed("no")])
    assert isinstance(backend, Backend)
    first, second, third = backend.complete([ask("a"), ask("b"), ask("c")], max_tokens=9)
    assert (first.text, first.finish_reason, first.completion_tokens) == ("one two", "stop", 2)
    assert second.seconds == 3.0
    assert (third.error, third.text) == ("no", "")
    assert [r.prompt[0].content for r in backend.asked] == ["a", "b", "c"]
    assert backend.max_tokens == 9


def test_a_function_answers_what_it_is_asked():
    backend = ScriptedBackend(lambda request: request.prompt[0].content.upper(), model="echo")
    assert [c.text for c in backend.complete([ask("a"), ask("b")], max_tokens=1)] == ["A", "B"]
    assert backend.model == "echo"


def test_exceptions_are_raised_after_the_answers_before_them():
    answers = ScriptedBackend(["one", BackendError("down")]).complete([ask("")] * 2, max_tokens=1)
    assert next(answers).text == "one"
    with pytest.raises(BackendError, match="down"):
        next(answers)


def test_an_empty_script_and_a_closed_backend_refuse():
    backend = ScriptedBackend([])
    with pytest.raises(BackendError, match="no more answers"):
        list(backend.complete([ask("a")], max_tokens=1))
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        list(backend.complete([ask("a")], max_tokens=1))
