"""What a check may answer, and how all checks are run: side by side, each with its deadline.

A check that does not answer in time, or that breaks, is UNKNOWN: never PASS. Its thread is left
behind, so that nothing it waits for can hold up the others or the end of the command.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from slm_core.errors import SlmError
from slm_core.records import Health, Record
from slm_core.settings import Settings


class Finding(Record):
    """One check, its answer, what was seen, and how to mend it."""

    check: str
    health: Health
    seen: str
    """In one sentence, with numbers."""
    mend: tuple[str, ...] = ()
    """What to do, or to type; empty where nothing is to be mended."""
    seconds: float = 0.0


class Answer(NamedTuple):
    """What one check says."""

    health: Health
    seen: str
    mend: tuple[str, ...] = ()


class Check(NamedTuple):
    """One row of the table."""

    name: str
    ask: Callable[[Settings], Answer]
    seconds: float = 6.0
    """Deadline."""


def passed(seen: str) -> Answer:
    """All is well."""
    return Answer(Health.PASS, seen)


def warned(seen: str, *mend: str) -> Answer:
    """It works, and somebody should look at it by day."""
    return Answer(Health.WARN, seen, mend)


def failed(seen: str, *mend: str) -> Answer:
    """It does not work."""
    return Answer(Health.FAIL, seen, mend)


def unknown(seen: str, *mend: str) -> Answer:
    """It could not be asked."""
    return Answer(Health.UNKNOWN, seen, mend)


def examine(
    checks: Sequence[Check],
    settings: Settings,
    on_answer: Callable[[int, int, str], None] | None = None,
) -> list[Finding]:
    """Run every check and return the findings in the order of the table.

    Returns within the longest deadline, whatever the checks wait for.

    Args:
        checks: the table.
        settings: given to each.
        on_answer: called with (checks done, checks in all, name).
    """
    found: dict[str, Finding] = {}
    for finding in _as_they_answer(checks, settings):
        found[finding.check] = finding
        if on_answer:
            on_answer(len(found), len(checks), finding.check)
    return [found[check.name] for check in checks]


def _as_they_answer(checks: Sequence[Check], settings: Settings) -> Iterator[Finding]:
    answers: queue.SimpleQueue[Finding] = queue.SimpleQueue()
    began = time.monotonic()
    for check in checks:
        # Daemons: a thread that hangs must not keep the process from ending.
        threading.Thread(
            target=_ask, args=(check, settings, answers), name=check.name, daemon=True
        ).start()
    waiting = {check.name: check for check in checks}
    while waiting:
        now = time.monotonic() - began
        for name in [name for name, check in waiting.items() if check.seconds <= now]:
            limit = waiting.pop(name).seconds
            seen = f"No answer within {limit:.0f} s."
            yield Finding(check=name, health=Health.UNKNOWN, seen=seen, seconds=round(now, 3))
        if not waiting:
            return
        nearest = min(check.seconds for check in waiting.values()) - now
        try:
            finding = answers.get(timeout=max(0.01, nearest))
        except queue.Empty:
            continue
        if waiting.pop(finding.check, None):
            yield finding


def _ask(check: Check, settings: Settings, answers: queue.SimpleQueue[Finding]) -> None:
    began = time.monotonic()
    try:
        health, seen, mend = check.ask(settings)
    except SlmError as error:
        health, seen, mend = Health.UNKNOWN, str(error), ()
    except Exception as error:
        # A broken check must not hide what the others found.
        health, seen, mend = Health.UNKNOWN, f"The check broke: {type(error).__name__}", ()
    answers.put(
        Finding(
            check=check.name,
            health=health,
            seen=seen,
            mend=mend,
            seconds=round(time.monotonic() - began, 3),
        )
    )
