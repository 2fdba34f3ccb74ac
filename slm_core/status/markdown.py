"""The status as Markdown, for an artifact in the dashboard."""

from __future__ import annotations

from collections.abc import Sequence

from slm_core.report.markdown import escape
from slm_core.status.concerns import concerns
from slm_core.status.page import headline
from slm_core.status.sections import sections
from slm_core.status.snapshot import Status


def to_markdown(status: Status) -> str:
    """Return what needs a person, then every part."""
    found = concerns(status)
    reasons = [f"- {escape(one.why)} RUNBOOK.md: **{one.runbook}**" for one in found]
    mark = "✗" if found else "✓"
    head = [f"# {mark} {headline(found)}", f"{status.host}, {status.at:%Y-%m-%d %H:%M:%S} UTC"]
    parts = sections(status)
    answers = _table(("what", "now", ""), [(p.title, p.short, p.summary) for p in parts])
    details = [f"## {escape(p.title)}\n\n{_table(p.columns, p.rows)}" for p in parts if p.rows]
    why = ["\n".join(reasons)] if reasons else []
    return "\n\n".join([*head, *why, answers, *details]) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([*map(escape, row)] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
