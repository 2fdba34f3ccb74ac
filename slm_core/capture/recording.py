"""One request of a wrapped client on its way: collects the answer, captures the call once.

Whatever ends it first wins: the answer, an error, the end of a stream, closing it, leaving
it, or its death. Nothing here raises into the application, except where the spec is strict.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from slm_core.capture.scope import current_scope
from slm_core.capture.wire import read_answer, read_messages, read_tools
from slm_core.records import Track
from slm_core.records.capture import STUDENT_FINGERPRINT

if TYPE_CHECKING:
    from slm_core.capture.tracer import WorkflowTracer

_LONGEST_ERROR = 2000


class Agent(NamedTuple):
    """Whose calls a wrapped client makes."""

    agent_type: str
    agent_name: str
    track: Track | None
    conversation_id: str | None
    tags: Mapping[str, str]


class Recording:
    """A chat completion between its request and its record."""

    def __init__(self, tracer: WorkflowTracer, agent: Agent, request: Mapping[str, Any]) -> None:
        """Note the request as it is now; the application may change its lists later."""
        scope = current_scope()
        self._tracer = tracer
        self._agent = agent
        self._conversation_id = scope.conversation_id or agent.conversation_id
        self._tags = {**agent.tags, **scope.tags}
        self._messages = read_messages(request.get("messages") or ())
        self._tools = read_tools([*(request.get("tools") or ()), *(request.get("functions") or ())])
        self._model = str(request.get("model"))
        self._streamed = bool(request.get("stream"))
        self._answered = False
        self._texts: list[str] = []
        self._calls: dict[int, tuple[list[str], list[str]]] = {}
        self._finish_reason: str | None = None
        self._usage: Any = None
        self._source = "llm"
        self._generation = tracer.generation
        self._begun = self._latest = time.perf_counter()
        tracer.open_recordings.add(self)

    def answer(self, completion: Any) -> None:
        """Capture the call with the whole answer."""
        self._latest = time.perf_counter()
        try:
            choice = completion.choices[0]
            self._answered = True
            self._finish_reason = choice.finish_reason
            self._usage = completion.usage
            self._note_model(completion)
            message = choice.message
            text = message.content if message.content is not None else message.refusal
            self._add(text, message.tool_calls, message.function_call)
        except Exception:
            what = TypeError(f"the answer is no chat completion but {type(completion).__name__}")
            self.finish(what)
        else:
            self.finish()

    def note_answered(self) -> None:
        """Note that the provider took the request; the answer itself is still to come."""
        self._answered = True

    def take(self, chunk: Any) -> bool:
        """Add a chunk of a stream; return whether it holds nothing but the token counts."""
        self._latest = time.perf_counter()
        try:
            choices = chunk.choices
            if chunk.usage is not None:
                self._usage = chunk.usage
            self._note_model(chunk)
            for choice in choices or ():
                if choice.index == 0:
                    delta = choice.delta
                    text = delta.content if delta.content is not None else delta.refusal
                    self._add(text, delta.tool_calls, delta.function_call)
                    self._finish_reason = choice.finish_reason or self._finish_reason
            return not choices and chunk.usage is not None
        except Exception as problem:
            self._tracer.refuse(problem)
            return False

    def finish(self, error: BaseException | None = None) -> None:
        """Capture the call with what has come so far; only the first time."""
        try:
            self._tracer.open_recordings.remove(self)  # atomic: one thread wins
        except KeyError:
            return
        if self._generation != self._tracer.generation:
            return  # a forked child holds a copy; the request is the parent's
        self._capture(error)

    def _note_model(self, answer: Any) -> None:
        self._model = answer.model or self._model
        if (answer.system_fingerprint or "").startswith(STUDENT_FINGERPRINT):
            self._source = "slm"

    def _add(self, text: str | None, tool_calls: Any, function_call: Any) -> None:
        if text is not None:
            self._texts.append(text)
        for position, call in enumerate(tool_calls or ()):
            # Chunks number the call they go on with; whole answers have them in order.
            function = getattr(call, "function", None) or getattr(call, "custom", None)
            if function is not None:
                self._add_call(getattr(call, "index", position), function)
        if function_call is not None:
            self._add_call(0, function_call)

    def _add_call(self, index: int, function: Any) -> None:
        names, arguments = self._calls.setdefault(index, ([], []))
        names.append(function.name or "")
        arguments.append(getattr(function, "arguments", None) or getattr(function, "input", ""))

    def _capture(self, error: BaseException | None) -> None:
        usage = self._usage
        try:
            answer = read_answer(
                "".join(self._texts) if self._texts else None,
                [
                    {"name": "".join(names), "arguments": "".join(arguments)}
                    for _, (names, arguments) in sorted(self._calls.items())
                ],
            )
            texts: dict[str, Any] = {
                "messages": self._messages,
                "tools": self._tools,
                "response": answer.text,
                "tool_calls": answer.tool_calls,
            }
            if error is not None:
                texts["error"] = f"{type(error).__name__}: {error}"[:_LONGEST_ERROR]
            facts = {
                "agent_type": self._agent.agent_type,
                "agent_name": self._agent.agent_name,
                "track": self._agent.track,
                "model": self._model,
                "conversation_id": self._conversation_id,
                "finish_reason": self._finish_reason,
                # Leaving a stream (GeneratorExit, CancelledError) is no failure of the provider.
                "success": self._answered and not isinstance(error, Exception),
                "complete": not self._streamed or self._finish_reason is not None,
                "source": self._source,
                "prompt_tokens": usage and usage.prompt_tokens,
                "completion_tokens": usage and usage.completion_tokens,
                "seconds": self._latest - self._begun,
            }
        except Exception as problem:
            self._tracer.refuse(problem)
        else:
            self._tracer.put(facts, texts, self._tags)
