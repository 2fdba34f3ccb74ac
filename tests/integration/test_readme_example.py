"""The README's Python example runs as it stands, against a server that speaks the wire format."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from slm_core.capture import drain_spool
from slm_core.dataset import why_unusable
from slm_core.store import open_store
from slm_core.testing.provider import TEXT, FakeProvider

pytestmark = pytest.mark.integration

README = Path(__file__).parents[2] / "README.md"
ADDRESS = "http://127.0.0.1:8000"


def test_the_example_captures_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert ADDRESS in example
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with FakeProvider() as provider:
        exec(example.replace(ADDRESS, provider.base_url), names)
        names["client"].close()  # type: ignore[attr-defined]
        names["tracer"].close()  # type: ignore[attr-defined]
    assert "written=1" in capsys.readouterr().out
    with open_store(f"sqlite:///{tmp_path / 'slm.db'}") as store:
        drain_spool(tmp_path / ".slm/spool", store, usable=why_unusable)
        (call,) = store.calls.select()
    assert (call.response, call.agent_name, call.conversation_id) == (TEXT, "booking", "session-17")
    assert call.tags == {"domain": "travel"}
