"""``slm calls``: figures, draining, quarantine, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slm_core.capture import WorkflowTracer
from slm_core.dataset.hub_rows import hermes_calls
from slm_core.prompting.parse import parse_output
from slm_core.records import Quarantined
from slm_core.store import Store
from slm_core.testing.records import WEATHER, make_call


def everything(_: object) -> None:
    return None


@pytest.fixture
def spool(slm_home: Path) -> Path:
    """A spool with one good answer, one in a wrong format, and one line that is no call."""
    folder = slm_home / "spool"
    good = make_call(1).response
    with WorkflowTracer(spool_dir=folder) as tracer:
        for question, response in (("ask", good), ("again", "Sure! Here is your call.")):
            tracer.capture_call(
                agent_type="sub-agent",
                agent_name="weather-desk",
                model_used="gpt-4o",
                user_query=question,
                assistant_response=response,
                track="toolcall",
                tools=[WEATHER],
            )
    (folder / "import.jsonl").write_text('{"half": \n')
    return folder


def test_stats_per_agent_and_model(slm: Any, store: Store) -> None:
    desk = [make_call(n, seconds=n / 10) for n in range(1, 21)]
    failed = make_call(30, success=False, cost_nanousd=None, seconds=9.0)
    other = make_call(40, agent_name="[bold]desk[/x]", model="o1")
    store.calls.add([*desk, failed, other], everything)

    shown = slm("calls", "stats").stdout
    assert "95.2" in shown
    assert "(1 unpriced)" in shown
    assert "[bold]desk[/x]" in shown, "an agent's name is no markup"

    (one,) = slm.json("calls", "stats", "--agent", "weather-desk")
    assert (one["calls"], one["succeeded"], one["unpriced"]) == (21, 20, 1)
    assert one["success_rate"] == pytest.approx(20 / 21)
    assert one["cost_nanousd"] == 20 * 765_000
    assert (one["seconds_p50"], one["seconds_p95"]) == pytest.approx((1.1, 2.0), rel=0.02)
    assert one["prompt_tokens"] == 21 * 210


def test_an_unknown_agent_is_told_from_one_that_was_lucky(slm: Any, store: Store) -> None:
    store.calls.add([make_call(1)], everything)
    said = slm.refused("calls", "stats", "--agent", "wether-desk")
    assert "'wether-desk'" in said
    assert "weather-desk" in said


def test_drain_applies_the_whole_filter_and_counts_the_rest(slm: Any, spool: Path) -> None:
    report = slm.json("calls", "drain")
    assert (report["read"], report["stored"], report["usable"]) == (3, 2, 1)
    assert report["unusable"] == {"response is not in the track's exact format": 1}
    assert report["quarantined"] == 1
    assert sum(report["in_quarantine"].values()) == 1
    assert report["waiting"] == 1
    assert slm.json("calls", "drain")["read"] == 0


def test_drain_in_words(slm: Any, spool: Path) -> None:
    facts = [line.rsplit(maxsplit=1) for line in slm("calls", "drain").stdout.splitlines()]
    assert ["usable", "1"] in facts
    assert ["not: response is not in the track's exact format", "1"] in [
        [name.strip(), number] for name, number in facts
    ]


def test_quarantine_lists_reasons_and_says_what_it_left_out(slm: Any, store: Store) -> None:
    assert "empty" in slm("calls", "quarantine").stdout
    store.quarantine.add(
        [Quarantined(source=f"a.jsonl:{n}", reason="not a call: bad", raw="{") for n in range(3)]
    )
    shown = slm("calls", "quarantine", "--limit", 2).stdout
    assert "not a call: bad" in shown
    assert "2 of 3" in shown
    assert len(slm.json("calls", "quarantine")) == 3


def test_export_writes_hermes_rows(slm: Any, spool: Path, tmp_path: Path) -> None:
    file = slm.json("calls", "export", tmp_path / "out")
    assert (file["calls"], file["rows"]) == (2, 1)
    (row,) = map(json.loads, Path(file["path"]).read_text().splitlines())
    assert [turn["from"] for turn in row["conversations"]] == ["system", "human", "gpt"]
    (call,) = hermes_calls(row, "toolcall", "ours")
    assert call.tool_calls == parse_output(make_call(1).response or "", "toolcall").calls
    assert "1 of 2 calls" in slm("calls", "export", tmp_path / "out").stdout


def test_export_to_a_place_that_is_no_folder(slm: Any, spool: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be written" in slm.refused("calls", "export", tmp_path / "file", status=2)
