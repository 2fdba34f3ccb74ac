"""The report as one HTML file that needs nothing else: no script, no request, no font.

Its content security policy forbids scripts and requests, and every text of a record or a
model is escaped: an output that is itself HTML is shown, not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape as e
from importlib.resources import files

from slm_core.records import ArmName
from slm_core.report import sections
from slm_core.report.document import Document
from slm_core.report.shown_cases import ShownCase
from slm_core.report.words import (
    HEADLINE,
    MISSING,
    OUTCOME_MARKS,
    count,
    meaning,
    metric_name,
    percent,
    score_of,
    seconds,
    usd,
    verdict,
)

FOOTER = (
    "Scores are strict unless they say otherwise: an output that does not parse counts as wrong. "
    "Lines are 95&nbsp;% intervals."
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"


def to_page(document: Document, cases: Sequence[ShownCase], case_characters: int) -> str:
    """Return the page. Equal documents and cases give equal bytes."""
    style = files("slm_core.report").joinpath("page.css").read_text(encoding="utf-8")
    parts = [
        _hero(document),
        _tiles(document),
        sections.scores(document),
        sections.differences(document),
        sections.gates(document),
        sections.failures(document),
        sections.speed(document),
        sections.training(document),
        sections.data(document),
        sections.cases(document, cases, case_characters),
        sections.live_answer(document),
        sections.lineage(document),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="robots" content="noindex"><meta name="referrer" content="no-referrer">'
        f"<title>{e(document.outcome)}: {e(document.title)}</title>\n"
        f"<style>{style}</style></head>\n"
        f'<body class="{document.outcome}"><main>\n{body}\n<footer>{FOOTER}</footer></main></body>'
        "</html>\n"
    )


def _hero(document: Document) -> str:
    actions = "".join(f"<li>{sections.with_code(action)}</li>" for action in document.next_actions)
    meanings = "".join(f"<p>{e(sentence)}</p>" for sentence in meaning(document))
    facts = [
        f'<span class="pill">{OUTCOME_MARKS[document.outcome]} {document.outcome}</span>',
        f"<span>{e(document.title)}</span>",
        f"<span>{document.created_at:%Y-%m-%d %H:%M} UTC</span>",
    ]
    return (
        f'<header class="hero"><div class="top">{"".join(facts)}</div>'
        f"<h1>{e(verdict(document))}</h1>{meanings}"
        f"{f'<ul>{actions}</ul>' if actions else ''}</header>"
    )


def _tiles(document: Document) -> str:
    arm = document.challenger
    tiles = [
        _tile("Calls captured", count(document.calls_captured), _left_out(document)),
        _tile("Examples", count(document.examples), _splits(document)),
    ]
    for track, report in document.tracks.items():
        score = score_of(report, arm, HEADLINE[track])
        teacher = score_of(report, "teacher", HEADLINE[track])
        tiles.append(
            _tile(
                f"{metric_name(HEADLINE[track])}, {track}",
                percent(score.value) if score else MISSING,
                f"teacher {percent(teacher.value if teacher else None)}",
            )
        )
    tiles += [
        _compared_tile(
            "Median answer time", _slowest(document, arm), _slowest(document, "teacher")
        ),
        _compared_tile(
            "Cost per 1,000 calls",
            _dearest(document, arm),
            _dearest(document, "teacher"),
            money=True,
        ),
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _tile(label: str, number: str, note: str) -> str:
    return (
        f'<div class="tile"><div class="label">{e(label)}</div>'
        f'<div class="number">{e(number)}</div><div class="note">{e(note)}</div></div>'
    )


def _compared_tile(
    label: str, ours: float | None, teachers: float | None, *, money: bool = False
) -> str:
    say = usd if money else seconds
    note = f"teacher {say(teachers)}"
    if ours and teachers:
        more, less = ("dearer", "cheaper") if money else ("slower", "faster")
        times = max(teachers / ours, ours / teachers)
        word = less if teachers > ours else more
        note = f"{times:.1f}× {word} than the teacher's {say(teachers)}"
    return _tile(label, say(ours), note)


def _slowest(document: Document, arm: ArmName) -> float | None:
    """Return the arm's median latency on its slower track."""
    known = [latency.p50_seconds for r in document.tracks.values() if (latency := r.latency[arm])]
    return max(known, default=None)


def _dearest(document: Document, arm: ArmName) -> float | None:
    """Return the arm's cost on its dearer track; None when the price is unknown on any."""
    costs = [r.cost_per_1000_usd[arm] for r in document.tracks.values() if r.latency[arm]]
    known = [cost for cost in costs if cost is not None]
    return max(known) if known and len(known) == len(costs) else None


def _left_out(document: Document) -> str:
    if document.drops is None:
        return "drops not known"
    return f"{count(sum(document.drops.values()))} left out of the dataset"


def _splits(document: Document) -> str:
    if document.rows is None:
        return "splits not known"
    return " · ".join(f"{count(n)} {split}" for split, n in document.rows.items())
