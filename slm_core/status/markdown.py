"""The status as Markdown, for an artifact in the dashboard."""

from __future__ import annotations

from slm_core.report.markdown import escape
from slm_core.status.concerns import concerns
from slm_core.status.page import headline
from slm_core.status.sections import Section, sections
from slm_core.status.snapshot import Status


def to_markdown(status: Status) -> str:
    """Return what needs a person, then every part."""
    found = concerns(status)
    reasons = [f"- {escape(one.why)} RUNBOOK.md: **{one.runbook}**" for one in found]
    mark = "✗" if found else "✓"
    head = [f"# {mark} {headline(found)}", f"{status.host}, {status.at:%Y-%m-%d %H:%M:%S} UTC"]
    parts = [_section(part) for part in sections(status)]
    return "\n\n".join([*head, *(["\n".join(reasons)] if reasons else []), *parts]) + "\n"


def _section(part: Section) -> str:
    head = f"## {escape(part.title)}\n\n{escape(part.summary)}."
    if not part.rows:
        return head
    lines = [part.columns, ["---"] * len(part.columns), *([*map(escape, r)] for r in part.rows)]
    return head + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
