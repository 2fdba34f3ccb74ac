"""``slm serve`` and ``slm ask``: what is refused before any model is loaded."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from slm_core.store import Store

ASK = ("ask", "--agent", "weather-desk", "--track", "toolcall", "Rain in Bern?")
OFFER = '{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}'


def test_no_live_route(slm: Any, store: Store, tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text(f"[{OFFER}]")
    said = slm.refused(*ASK, "--tools", tmp_path / "tools.json")
    assert "No adapter is live for weather-desk/toolcall" in said


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "No such file"),
        ("[{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        (OFFER, "tools"),
        ('[{"name": "f"}]', "tools.0"),
        (f"[{OFFER.replace('{}', 'NaN')}, 7]", "tools.1"),
        ('[{"type": "function", "function": {"name": "a b"}}]', "name"),
    ],
    ids=["missing", "half", "deep", "no list", "no function", "number", "name"],
)
def test_a_bad_tools_file(
    slm: Any, store: Store, tmp_path: Path, text: str | None, problem: str
) -> None:
    file = tmp_path / "tools.json"
    if text is not None:
        file.write_text(text)
    said = slm.refused(*ASK, "--tools", file, status=2)
    assert said.startswith("ConfigError")
    assert str(file) in said
    assert problem in said


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--routes", "--adapter", "x"),
        ("--routes", "--cep", "none"),
        ("--model", "m", "--port", "70000"),
        ("--model", "m", "--workers", "0"),
        ("--model", "m", "--cep", "tiny"),
    ],
)
def test_serve_refuses_what_contradicts_itself(slm: Any, words: tuple[str, ...]) -> None:
    assert "Usage" in slm.refused("serve", *words, status=2)


def test_a_port_in_use_shows_before_a_model_is_looked_for(slm: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = slm.refused("serve", "--model", "/no/such/model", "--port", port, status=2)
    assert f"Port {port} of 127.0.0.1 is in use" in said


def test_an_open_door_is_pointed_out(slm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        words = ("serve", "--model", "m", "--host", "0.0.0.0", "--port", taken.getsockname()[1])
        assert "SLM_SERVER_API_KEY is not set" in slm.refused(*words, status=2)
        monkeypatch.setenv("SLM_SERVER_API_KEY", "secret")
        assert "SLM_SERVER_API_KEY" not in slm.refused(*words, status=2)
