"""Every flow is watched for silence, but those that wait for a person and send no heartbeats."""

from __future__ import annotations

import re
from pathlib import Path

from tasks.resuming import WATCHED

FLOWS = Path(__file__).parents[2] / "flows"
NOT_DEPLOYED = {"demo"}


def test_flows_are_watched_unless_they_suspend_themselves() -> None:
    names: dict[str, bool] = {}
    for file in FLOWS.glob("*.py"):
        text = file.read_text()
        for name in re.findall(r'@flow\(\s*name="([^"]+)"', text):
            names[name] = "suspend_flow_run(" in text
    assert any(names.values())
    assert set(WATCHED) == {name for name, waits in names.items() if not waits} - NOT_DEPLOYED
