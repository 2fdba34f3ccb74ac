"""The table of error numbers, and addresses in one spelling."""

from __future__ import annotations

import pytest

from slm_core.health import xids
from slm_core.health.pci import normal_bdf
from slm_core.records import Health


def test_every_row_is_whole_and_every_action_is_explained() -> None:
    rows = list(xids._table().values())
    assert len(rows) > 100
    assert [row.code for row in rows] == sorted({row.code for row in rows})
    for row in rows:
        assert row.name
        assert row.meaning
        assert row.action in xids.WHAT_TO_DO


@pytest.mark.parametrize(
    ("code", "action", "health"),
    [
        (79, "reboot_node", Health.FAIL),
        (48, "reset_gpu", Health.FAIL),
        (119, "reset_gpu", Health.FAIL),
        (31, "restart_app", Health.WARN),
        (63, "ignore", Health.WARN),
        (45, "follow_other_xid", Health.WARN),
        (154, "obey_message", Health.WARN),
        (54, "check_power", Health.FAIL),
    ],
)
def test_what_some_ask_for(code: int, action: str, health: Health) -> None:
    row = xids.get(code)
    assert (row.action, row.health) == (action, health)


def test_an_unknown_number_is_a_warning_for_the_vendor() -> None:
    row = xids.get(4711)
    assert (row.code, row.action, row.important) == (4711, "contact_vendor", True)
    assert row.health is Health.WARN


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("00000000:41:00.0", "0000:41:00.0"),
        ("0000:41:00", "0000:41:00.0"),
        ("41:00.1", "0000:41:00.1"),
        ("0018:01:00", "0018:01:00.0"),
        ("00000000:AF:00.0", "0000:af:00.0"),
        ("00010000:01:00.0", "10000:01:00.0"),
        ("GPU-abc", "gpu-abc"),
    ],
)
def test_addresses(given: str, expected: str) -> None:
    assert normal_bdf(given) == expected
    assert normal_bdf(expected) == expected
