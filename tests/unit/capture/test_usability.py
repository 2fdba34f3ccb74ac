import pytest

from slm_core.capture import usable
from slm_core.records import Call, DropReason, Message, ToolUse

GOOD = Call(
    id="1",
    agent_type="sub-agent",
    agent_name="booking",
    model="m",
    conversation_id="c",
    messages=(Message(role="user", content="book"),),
    response="done",
    success=True,
)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"response": None, "tool_calls": (ToolUse(name="f", arguments={}),)}, None),
        ({"success": False}, DropReason.FAILED),
        ({"complete": False}, DropReason.INCOMPLETE),
        ({"response": None}, DropReason.NO_RESPONSE),
        ({"response": " \n"}, DropReason.NO_RESPONSE),
        ({"source": "slm"}, DropReason.SLM_ANSWER),
        ({"messages": ()}, DropReason.NO_PROMPT),
        ({"messages": (Message(role="user", content=""),)}, DropReason.NO_PROMPT),
        ({"finish_reason": "length"}, DropReason.TRUNCATED),
        ({"finish_reason": "content_filter"}, DropReason.TRUNCATED),
    ],
)
def test_reasons(change: dict[str, object], reason: DropReason | None) -> None:
    assert usable(GOOD.model_copy(update=change)) == (reason and reason.value)
