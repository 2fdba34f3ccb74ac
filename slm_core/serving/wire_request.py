"""Reads a chat request in OpenAI's form, strictly.

What it refuses, with a reason: unknown fields, content other than text, and options that
would change an answer in ways that a greedy model cannot honour (a temperature above 0,
several choices, log probabilities, penalties). Options that change nothing under greedy
decoding (``seed``, ``top_p``, ``user``) are accepted. ``response_format`` may ask for
``json_object``: the model's training decides the format, nothing enforces it.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from slm_core.backends.base import Request
from slm_core.errors import BadRequest
from slm_core.records import Message, Tool, ToolUse

_MOST_PROBLEMS = 10
"""Told of one request; a wrong message list would otherwise repeat itself at length."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Open(BaseModel):
    """Fields that do not concern the answer are let through."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


def _only(allowed: Any) -> BeforeValidator:
    """Refuse a value that would change the answer in a way that is not supported."""

    def check(value: Any) -> Any:
        if value is not None and value != allowed:
            shown = json.dumps(allowed)
            raise ValueError(f"only {shown} is supported: answers are greedy, one at a time")
        return value

    return BeforeValidator(check)


class _TextPart(_Strict):
    type: Literal["text"]
    text: str


class _Function(_Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _ToolOffer(_Strict):
    type: Literal["function"]
    function: _Function


class _FunctionCall(_Open):
    name: str
    arguments: str


class _ToolCall(_Open):
    type: Literal["function"] = "function"
    function: _FunctionCall


class _Turn(_Open):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_TextPart] | None = None
    tool_calls: list[_ToolCall] | None = None


class _NamedFunction(_Strict):
    name: str


class _NamedTool(_Strict):
    type: Literal["function"]
    function: _NamedFunction


class _StreamOptions(_Open):
    include_usage: bool = False


class _ResponseFormat(_Open):
    type: Literal["text", "json_object"]


class ChatBody(_Strict):
    """Body of ``POST /v1/chat/completions``."""

    model: str = ""
    messages: list[_Turn] = Field(min_length=1)
    tools: list[_ToolOffer] | None = None
    tool_choice: Literal["auto", "none", "required"] | _NamedTool | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    response_format: _ResponseFormat | None = None
    temperature: Annotated[float | None, _only(0)] = None
    n: Annotated[int | None, _only(1)] = None
    presence_penalty: Annotated[float | None, _only(0)] = None
    frequency_penalty: Annotated[float | None, _only(0)] = None
    logprobs: Annotated[bool | None, _only(False)] = None
    top_logprobs: Annotated[int | None, _only(0)] = None
    logit_bias: Annotated[dict[str, float] | None, _only({})] = None
    # Without effect on a greedy answer.
    top_p: float | None = None
    seed: int | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    parallel_tool_calls: bool | None = None

    @property
    def limit(self) -> int | None:
        """Longest answer in tokens, by the newer name or the older."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings before which an answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def native(self) -> bool:
        """Whether tool calls in the answer are returned as such, not as text."""
        return bool(self.tools) and self.tool_choice != "none"

    def request(self) -> Request:
        """Return the question as our backends take it.

        A ``tool_choice`` that names a function offers that function alone. ``required`` is
        the same as ``auto``: a model cannot be made to call.

        Raises:
            BadRequest: a field's content cannot be put into a prompt.
        """
        tools = [_tool(offer.function) for offer in self.tools or ()]
        if isinstance(self.tool_choice, _NamedTool):
            wanted = self.tool_choice.function.name
            tools = [tool for tool in tools if tool.name == wanted]
            if not tools:
                raise BadRequest(
                    f"tool_choice names {wanted!r}, which is not in tools", param="tool_choice"
                )
        turns = tuple(_message(turn) for turn in self.messages)
        return Request(turns, tuple(tools), native_tools=self.native)


def read_body(raw: bytes) -> ChatBody:
    """Return the request.

    Raises:
        BadRequest: it is not JSON, or has wrong, missing or unknown fields; all are listed.
    """
    try:
        body = ChatBody.model_validate_json(raw)
    except ValidationError as error:
        found = error.errors(include_url=False)
        problems = [_place(p["loc"]) + p["msg"].removeprefix("Value error, ") for p in found]
        place = found[0]["loc"]
        param = str(place[0]) if place else None
        raise BadRequest("; ".join(problems[:_MOST_PROBLEMS]), param=param) from None
    if any(not stop for stop in body.stops) or len(body.stops) > 4:
        raise BadRequest("stop takes up to four strings, none empty", param="stop")
    return body


def _tool(function: _Function) -> Tool:
    try:
        json.dumps(function.parameters, allow_nan=False)
    except ValueError:
        raise BadRequest(
            f"the parameters of {function.name!r} hold a number that JSON cannot say",
            param="tools",
        ) from None
    given = {"parameters": function.parameters} if function.parameters is not None else {}
    return Tool(name=function.name, description=function.description or "", **given)


def _message(turn: _Turn) -> Message:
    content = turn.content or ""
    if not isinstance(content, str):
        content = "\n".join(part.text for part in content)
    return Message(
        role="system" if turn.role == "developer" else turn.role,
        content=content,
        tool_calls=tuple(_tool_use(call.function) for call in turn.tool_calls or ()),
    )


def _tool_use(call: _FunctionCall) -> ToolUse:
    try:
        return ToolUse(name=call.name, arguments=json.loads(call.arguments or "{}"))
    except (ValueError, RecursionError):
        raise BadRequest(
            f"the arguments of the call of {call.name!r} are not a JSON object", param="messages"
        ) from None


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location)) + ": " if location else ""
