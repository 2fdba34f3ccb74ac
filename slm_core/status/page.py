"""The status as one HTML file in the style of the report: no script, no request, no font.

A browser that has it open loads it anew each minute.
"""

from __future__ import annotations

from html import escape as e
from importlib.resources import files

from slm_core.report.page import POLICY
from slm_core.status.concerns import Concern, concerns
from slm_core.status.sections import Section, sections
from slm_core.status.snapshot import Status

_RELOAD_SECONDS = 60
# An address is one long word, and would push the columns after it out of its card.
_NARROW = ".stack td{overflow-wrap:anywhere;min-width:6em}"


def headline(found: tuple[Concern, ...]) -> str:
    """Return the whole status in a few words."""
    if not found:
        return "All is well"
    return "1 thing needs a person" if len(found) == 1 else f"{len(found)} things need a person"


def to_page(status: Status) -> str:
    """Return the page. Equal statuses give equal bytes."""
    style = files("slm_core.report").joinpath("page.css").read_text(encoding="utf-8")
    found, parts = concerns(status), sections(status)
    tiles = "".join(_tile(part) for part in parts[:-1])  # the last is no single number
    cards = "\n".join(_card(part) for part in parts if part.rows)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta http-equiv="refresh" content="{_RELOAD_SECONDS}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="robots" content="noindex"><meta name="referrer" content="no-referrer">'
        f"<title>{e(headline(found))}: SLM Swap</title>\n<style>{style}{_NARROW}</style></head>\n"
        f'<body class="{"FAILURE" if found else "SUCCESS"}"><main>\n'
        f'{_hero(status, found)}\n<div class="tiles">{tiles}</div>\n'
        f'<div class="grid2 below">\n{cards}\n</div>\n'
        "<footer>Written by the flow status/now, every hour and whenever it is run. `slm status` "
        "shows the same in a terminal.</footer></main></body></html>\n"
    )


def _hero(status: Status, found: tuple[Concern, ...]) -> str:
    pill = "✗ needs a person" if found else "✓ all is well"
    reasons = "".join(
        f"<li>{e(one.why)} See <code>{e(one.runbook)}</code> in RUNBOOK.md.</li>" for one in found
    )
    return (
        f'<header class="hero"><div class="top"><span class="pill">{pill}</span>'
        f"<span>{e(status.host)}</span><span>{status.at:%Y-%m-%d %H:%M:%S} UTC</span></div>"
        f"<h1>{headline(found)}</h1>{f'<ul>{reasons}</ul>' if reasons else ''}</header>"
    )


def _tile(part: Section) -> str:
    return (
        f'<div class="tile"><div class="label">{e(part.title)}</div>'
        f'<div class="number">{e(part.short)}</div><div class="note">{e(part.summary)}</div></div>'
    )


def _card(part: Section) -> str:
    columns = "".join(f'<th class="text">{e(column)}</th>' for column in part.columns)
    rows = "".join(
        "<tr>"
        + "".join(
            f'<td class="text" data-head="{e(column)}">{e(cell)}</td>'
            for column, cell in zip(part.columns, row, strict=True)
        )
        + "</tr>"
        for row in part.rows
    )
    return (
        f'<div class="card"><h3>{e(part.title)}</h3><p class="sub">{e(part.summary)}</p>'
        f'<div class="scroll"><table class="stack"><thead><tr>{columns}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></div>"
    )
