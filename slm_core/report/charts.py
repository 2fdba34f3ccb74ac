"""Charts as SVG and HTML that fit any width: words stay words, only shapes are drawn.

Shapes sit at per-cent positions, so a chart is as sharp and as readable on a phone as in
print. Colours come from the page's style sheet by arm, and each arm has a shape of its own, so
that a grey print can be read too. Every mark says its numbers when pointed at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape as e

from slm_core.records import ARMS, ArmName, Metric, Track
from slm_core.report.document import Difference, LossSample, TrackReport
from slm_core.report.words import (
    ARM_NAMES,
    HEADLINE,
    MISSING,
    compared,
    count,
    failure_classes,
    in_order,
    interval,
    metric_name,
    metrics_of,
    percent,
    score_of,
    seconds,
    signed,
    usd,
)

ROW = 12
"""Height of one arm's line in a row of the score chart, in pixels."""
PADDING = 5
"""Above the first and below the last line of a row, in pixels."""
MOST_POINTS = 300
"""Points of the loss curve; longer curves are averaged."""
MOST_CLASSES = 12
"""Failure classes shown; the rest is summed."""


def legend(arms: Sequence[ArmName]) -> str:
    """Return the arms with their marks, and in words those that did not run."""
    marks = "".join(
        f'<span class="key"><svg width="14" height="14" aria-hidden="true">{_mark(arm, "50%", 7)}'
        f"</svg>{e(ARM_NAMES[arm])}</span>"
        for arm in arms
    )
    absent = ", ".join(ARM_NAMES[arm] for arm in ARMS if arm not in arms)
    note = f'<span class="missing">did not run: {e(absent)}</span>' if absent else ""
    return f'<div class="legend">{marks}{note}</div>'


def scores(track: Track, report: TrackReport, challenger: ArmName) -> str:
    """Return one row a metric: each arm's score on its 95 % interval, the challenger's in words."""
    rows = "".join(_score_row(track, report, metric, challenger) for metric in metrics_of(report))
    return f'<div class="plot">{rows}<i></i>{_axis("0 25 50 75 100".split())}<i></i></div>'


def _score_row(track: Track, report: TrackReport, metric: str, challenger: ArmName) -> str:
    lines: list[str] = []
    for line, arm in enumerate(ARMS):
        score = score_of(report, arm, metric)
        if score is not None:
            told = f"{ARM_NAMES[arm]}, {metric_name(metric)}: {percent(score.value)}"
            told += f" ({interval(score)}), n = {score.n}"
            lines.append(_whisker(arm, score, PADDING + ROW * line + ROW / 2, told))
    best = " headline" if metric == HEADLINE[track] else ""
    shown = score_of(report, challenger, metric)
    return (
        f'<div class="name{best}">{e(metric_name(metric))}</div>'
        f'<svg class="strip{best}" height="{ROW * len(ARMS) + 2 * PADDING}" role="img" '
        f'aria-label="{e(metric_name(metric))}">{_grid()}{"".join(lines)}</svg>'
        f'<div class="value{best}">{e(percent(shown.value) if shown else MISSING)}</div>'
    )


def _whisker(arm: ArmName, score: Metric, y: float, told: str) -> str:
    low, high, at = (_share(x) for x in (score.low, score.high, score.value))
    return (
        f'<g class="{arm}"><title>{e(told)}</title>'
        f'<line x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>{_mark(arm, at, y)}</g>'
    )


def _mark(arm: ArmName, x: str, y: float) -> str:
    """Return the arm's shape at ``x`` (with unit) and ``y`` (pixels)."""
    if arm == "teacher":
        shape = '<path d="M0 -5.5L5.5 0L0 5.5L-5.5 0Z"/>'
    elif arm == "student":
        shape = '<circle r="4" class="hollow"/>'
    elif arm == "student_cep":
        shape = '<rect x="-4" y="-4" width="8" height="8"/>'
    else:
        shape = '<circle r="5.5"/>'
    # A nested svg is the only shape holder that takes a per-cent position.
    return f'<svg x="{x}" y="{y}" class="mark {arm}" overflow="visible">{shape}</svg>'


def differences(metrics: Mapping[str, Difference]) -> str:
    """Return one row a metric: the paired difference on its interval, beside zero."""
    bounds = [abs(x) for d in metrics.values() for x in (d.difference.low, d.difference.high)]
    reach = _nice(max(bounds, default=0.01) or 0.01)

    def at(value: float) -> str:
        return f"{50 + 50 * max(-1.0, min(1.0, value / reach)):.2f}%"

    rows: list[str] = []
    for metric in in_order(metrics):
        pair = metrics[metric]
        d = pair.difference
        kind = _JUDGED[compared(metric, pair).better]
        told = f"{metric_name(metric)}: {signed(d.value)} points "
        told += f"({signed(d.low)} to {signed(d.high)}), n = {d.n}"
        rows.append(
            f'<div class="name">{e(metric_name(metric))}</div>'
            f'<svg class="strip plain" height="24" role="img" aria-label="{e(told)}">'
            '<line class="zero" x1="50%" x2="50%" y1="0" y2="24"/>'
            f'<g class="{kind}"><title>{e(told)}</title>'
            f'<line class="bar" x1="{at(d.low)}" x2="{at(d.high)}" y1="12" y2="12"/>'
            f'<circle cx="{at(d.value)}" cy="12" r="5"/></g></svg>'
            f'<div class="value {kind}">{e(signed(d.value))}</div>'
        )
    axis = _axis([signed(x) for x in (-reach, 0.0, reach)])
    return f'<div class="plot">{"".join(rows)}<i></i>{axis}<i></i></div>'


def failures(report: TrackReport, arms: Sequence[ArmName]) -> str:
    """Return a table: failure class by arm, rows counted and drawn as bars."""
    classes = failure_classes(report)
    shown, rest = classes[:MOST_CLASSES], classes[MOST_CLASSES:]
    most = max(
        (n for counts in report.failures.values() for n in (counts or {}).values()), default=1
    )

    def row(name: str, kinds: Sequence[str], total: bool = False) -> str:
        cells = ""
        for arm in arms:
            counts = report.failures.get(arm)
            if counts is None:
                cells += f'<td class="missing">{MISSING}</td>'
                continue
            n = sum(counts.get(kind, 0) for kind in kinds)
            bar = "" if total else f'<i class="{arm}" style="width:{100 * n / most:.1f}%"></i>'
            cells += f'<td class="{"none" if n == 0 else "some"}">{bar}<b>{count(n)}</b></td>'
        return f'<tr{" class=total" if total else ""}><th scope="row">{e(name)}</th>{cells}</tr>'

    body = "".join(row(kind, [kind]) for kind in shown)
    if rest:
        body += row(f"{len(rest)} other classes", rest)
    heads = "".join(f'<th scope="col">{e(ARM_NAMES[arm])}</th>' for arm in arms)
    return (
        f'<table class="failures"><thead><tr><th scope="col">First thing wrong</th>{heads}</tr>'
        f"</thead><tbody>{body}{row('Rows not exact', classes, total=True)}</tbody></table>"
    )


def latencies(report: TrackReport) -> str:
    """Return one bar an arm: the median, and a thinner one to the 95th percentile."""
    known = [latency.p95_seconds for latency in report.latency.values() if latency]
    most = max(known, default=0.0) or 1.0
    rows = ""
    for arm in ARMS:
        latency = report.latency.get(arm)
        if latency is None:
            rows += _bar_row(arm, "", MISSING)
            continue
        p50, p95 = latency.p50_seconds, latency.p95_seconds
        told = f"{ARM_NAMES[arm]}: half within {seconds(p50)}, 95 of 100 within {seconds(p95)}"
        bars = (
            f"<title>{e(told)}</title>"
            f'<rect class="tail" x="0" y="8" height="6" width="{100 * p95 / most:.2f}%"/>'
            f'<rect x="0" y="4" height="14" rx="2" width="{100 * p50 / most:.2f}%"/>'
        )
        rows += _bar_row(arm, bars, f"{seconds(p50)} · {seconds(p95)}")
    return f'<div class="plot bars">{rows}</div>'


def costs(report: TrackReport) -> str:
    """Return one bar an arm: dollars for 1,000 calls."""
    most = max((c for c in report.cost_per_1000_usd.values() if c is not None), default=0.0) or 1.0
    rows = ""
    for arm in ARMS:
        cost = report.cost_per_1000_usd.get(arm)
        bars = ""
        if cost is not None:
            bars = (
                f"<title>{e(f'{ARM_NAMES[arm]}: {usd(cost)} for 1,000 calls')}</title>"
                f'<rect x="0" y="4" height="14" rx="2" width="{100 * cost / most:.2f}%"/>'
            )
        rows += _bar_row(arm, bars, usd(cost))
    return f'<div class="plot bars">{rows}</div>'


def _bar_row(arm: ArmName, bars: str, value: str) -> str:
    missing = "" if bars else " missing"
    return (
        f'<div class="name">{e(ARM_NAMES[arm])}</div>'
        f'<svg class="strip plain" height="22" role="img" aria-label="{e(value)}">'
        f'<g class="{arm}">{bars}</g></svg><div class="value{missing}">{e(value)}</div>'
    )


def losses(points: Sequence[LossSample]) -> str:
    """Return the training loss as a line and the validation loss as dots on a line."""
    train = [(p.step, p.loss) for p in points if p.loss is not None]
    val = [(p.step, p.val_loss) for p in points if p.val_loss is not None]
    every = max(1, math.ceil(len(train) / MOST_POINTS))
    train = _averaged(train, every)
    last = max((step for step, _ in [*train, *val]), default=0)
    first = min((step for step, _ in [*train, *val]), default=0)
    top = _nice(max((loss for _, loss in [*train, *val]), default=1.0) or 1.0)

    def x(step: int) -> float:
        return 100 * (step - first) / (last - first) if last > first else 50.0

    def y(loss: float) -> float:
        return 100 - 100 * loss / top

    def line(series: Sequence[tuple[int, float]], kind: str) -> str:
        corners = " ".join(f"{x(step):.2f},{y(loss):.2f}" for step, loss in series)
        return f'<polyline class="{kind}" points="{corners}"/>'

    dots = "".join(
        f'<circle class="val" cx="{x(step):.2f}%" cy="{y(loss):.2f}%" r="3.5">'
        f"<title>validation loss {loss:.4f} at step {step}</title></circle>"
        for step, loss in (val if len(val) <= 60 else [])
    )
    ticks = 5 if f"{top:e}"[0] in "15" or f"{top:e}".startswith("2.5") else 4
    levels = [number / ticks for number in range(ticks, -1, -1)]
    grid = "".join(
        f'<line x1="0" x2="100%" y1="{100 - 100 * level:g}%" y2="{100 - 100 * level:g}%"/>'
        for level in levels
    )
    marks = "".join(f"<span>{top * level:.3g}</span>" for level in levels)
    averaged = f", each point the mean of {every} steps" if every > 1 else ""
    keys = f'<span class="key line train">training{averaged}</span>' if train else ""
    keys += (
        '<span class="key line val">validation</span>'
        if val
        else ('<span class="key missing">no validation loss</span>')
    )
    return (
        f'<div class="legend">{keys}</div><div class="losses"><div class="marks">{marks}</div>'
        f'<svg class="curve" role="img" aria-label="loss by step"><g class="grid">{grid}</g>'
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" overflow="visible">'
        f"{line(train, 'train')}{line(val, 'val')}</svg>{dots}</svg>"
        f'<i></i><div class="ends"><span>step {first}</span><span>step {last}</span></div></div>'
    )


_JUDGED = {True: "good", False: "bad", None: "open"}


def _averaged(series: list[tuple[int, float]], every: int) -> list[tuple[int, float]]:
    groups = [series[at : at + every] for at in range(0, len(series), every)]
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]


def _axis(ticks: Sequence[str]) -> str:
    """Return labels at equal distances, the first and last at the ends."""
    at = "".join(
        f'<span style="left:{100 * number / (len(ticks) - 1):.4g}%">{e(tick)}</span>'
        for number, tick in enumerate(ticks)
    )
    return f'<div class="axis">{at}</div>'


def _grid() -> str:
    lines = "".join(
        f'<line x1="{at}%" x2="{at}%" y1="0" y2="100%"/>' for at in (0, 25, 50, 75, 100)
    )
    return f'<g class="grid">{lines}</g>'


def _share(value: float) -> str:
    return f"{100 * max(0.0, min(1.0, value)):.2f}%"


def _nice(value: float) -> float:
    """Return the next of 1, 2, 2.5, 5 times a power of ten that is not below ``value``."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * (1 - 1e-9))
