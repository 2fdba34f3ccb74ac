"""The sections of the page, one function each; a section without data is left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape as e

from slm_core.records import ARMS, ArmName, Verdict
from slm_core.report import charts
from slm_core.report.document import Document, Scores, TrackReport
from slm_core.report.shown_cases import ShownCase, ShownOutput
from slm_core.report.words import (
    ARM_NAMES,
    MISSING,
    NARROW,
    arm_in_words,
    compared,
    count,
    evidence,
    fact,
    gate_number,
    in_order,
    interval,
    metric_name,
    metrics_of,
    percent,
    rows_scored,
    seconds,
    usd,
)

_VERDICTS: Mapping[Verdict, tuple[str, str]] = {
    "pass": ("good", "✓ pass"),
    "fail": ("bad", "✕ fail"),
    "inconclusive": ("open", "? open"),
}


def scores(document: Document) -> str:
    """Every arm on every metric: charts, then the same as tables."""
    cards = "".join(
        _card(
            track,
            charts.scores(track, report, document.challenger),
            sub=f"n = {count(rows_scored(report))} rows",
        )
        for track, report in document.tracks.items()
    )
    tables = "".join(
        f"<h3>{e(track)}, {view}</h3>{_score_table(by_arm, metrics_of(report), report)}"
        for track, report in document.tracks.items()
        for view, by_arm in (("strict", report.arms), ("lenient", report.arms_lenient))
    )
    return _section(
        "Scores",
        f"Each mark is a score in per cent, each line its 95{NARROW}% interval. The number is the "
        f"{arm_in_words(document.challenger)}'s.",
        f'{charts.legend(_ran(document))}<div class="grid2">{cards}</div>'
        f"<details><summary>All scores as tables, strict and lenient</summary>"
        f'<div class="card">{tables}</div></details>',
    )


def _ran(document: Document) -> list[ArmName]:
    return [arm for arm in ARMS if any(track.arms.get(arm) for track in document.tracks.values())]


def _score_table(
    by_arm: Mapping[ArmName, Scores | None], metrics: Sequence[str], report: TrackReport
) -> str:
    def cell(arm: ArmName, metric: str) -> str:
        score = (by_arm.get(arm) or {}).get(metric)
        if score is None:
            return _missing()
        return f"{e(percent(score.value))}<small>{e(interval(score))}</small>"

    heads = [f"{ARM_NAMES[arm]} ({report.models.get(arm) or 'did not run'})" for arm in ARMS]
    rows = ([e(metric_name(m)), *(cell(arm, m) for arm in ARMS)] for m in metrics)
    return _table(["Metric", *heads], rows)


def differences(document: Document) -> str:
    """The challenger against the teacher on the same rows."""
    pair = f"{document.challenger}_vs_teacher"
    cards = ""
    for track, report in document.tracks.items():
        metrics = report.paired.get(pair)
        if metrics:
            cards += _card(track, charts.differences(metrics), sub="points, paired")
    words = "".join(
        f"<li>{e(track)}, {e(metric_name(metric))}: the {e(arm_in_words(a))} is "
        f"{e(compared(metric, metrics[metric]).phrase)} than the {e(arm_in_words(b))} "
        f"{e(evidence(metrics[metric]))}.</li>"
        for track, report in document.tracks.items()
        for key, metrics in report.paired.items()
        for a, b in [key.split("_vs_")]
        for metric in in_order(metrics)
    )
    if not words:
        return ""
    return _section(
        f"{ARM_NAMES[document.challenger]} against teacher",
        "Both arms answered the same rows. Right of the line the "
        f"{arm_in_words(document.challenger)} scores higher; an interval across the line settles "
        "nothing.",
        f'<div class="grid2">{cards}</div><details><summary>All differences in words</summary>'
        f'<div class="card"><ul>{words}</ul></div></details>',
    )


def gates(document: Document) -> str:
    """Every question that the decision asked, with its answer."""
    rows = []
    for gate in document.gates:
        kind, word = _VERDICTS[gate.verdict]
        advice = "" if gate.required else '<small class="text">advice only</small>'
        rows.append(
            [
                f"{e(gate.gate.replace('_', ' '))}{advice}",
                f'<span class="pill {kind}">{word}</span>',
                e(gate.track or "both"),
                with_code(gate.reason),
                e(gate_number(gate.value)),
                e(gate_number(gate.threshold)),
                e(count(gate.n)),
            ]
        )
    if not rows:
        return ""
    heads = ["Gate", "Verdict", "Track", "Why", "Value", "Threshold", "n"]
    return _section(
        "Gates",
        "Missing evidence is never a pass.",
        f'<div class="card">{_table(heads, rows, text=4, kind="stack")}</div>',
    )


def failures(document: Document) -> str:
    """What is wrong with the outputs, before and after."""
    cards = "".join(
        _card(track, f'<div class="scroll">{charts.failures(report, ARMS)}</div>')
        for track, report in document.tracks.items()
        if any(report.failures.values())
    )
    if not cards:
        return ""
    return _section(
        "What goes wrong",
        "The first thing wrong with each output, in rows. Rows the backend failed on are in it.",
        f'<div class="grid2">{cards}</div>',
    )


def speed(document: Document) -> str:
    """Latency and cost of every arm."""
    cards = "".join(
        _card(f"{track}: answer time", charts.latencies(report), sub="median · 95th percentile")
        + _card(f"{track}: cost", charts.costs(report), sub="for 1,000 calls")
        for track, report in document.tracks.items()
    )
    return _section(
        "Latency and cost",
        "As measured during the evaluation. A price that is not known is not drawn.",
        f'<div class="grid2">{cards}</div>',
    )


def training(document: Document) -> str:
    """The loss curve, what was trained, and the attempts."""
    cards = ""
    if document.losses:
        cards += _card("Loss", charts.losses(document.losses), sub="nats per supervised token")
    facts = [
        (key.replace("_", " "), fact(value)) for key, value in (document.training or {}).items()
    ]
    inner = _facts(facts) if facts else ""
    if document.attempts:
        rows = [
            [
                str(attempt.number),
                f"{attempt.first_step}\u2060–\u2060{attempt.last_step}",
                e(", ".join(f"{key} {value}" for key, value in attempt.plan.items()) or MISSING),
                e(f"{attempt.fault.kind}: {attempt.fault.message}" if attempt.fault else "its end"),
            ]
            for attempt in document.attempts
        ]
        inner += _table(["Attempt", "Steps", "Plan", "Ended by"], rows, text=4, kind="stack")
    if inner:
        cards += _card("Run", inner)
    return _section("Training", "", f'<div class="grid2">{cards}</div>') if cards else ""


def data(document: Document) -> str:
    """From captured calls to examples, and what was left out."""
    cards = ""
    if document.rows is not None:
        left = sum((document.drops or {}).values())
        parts = [*document.rows.items(), ("left out", left)]
        total = sum(n for _, n in parts) or 1
        flow = "".join(
            f'<i class="{name.split()[0]}" style="width:{100 * n / total:.2f}%"></i>'
            for name, n in parts
            if n
        )
        words = "".join(
            f'<span class="key {name.split()[0]}">{e(f"{count(n)} {name}")}</span>'
            for name, n in parts
        )
        inner = f'<div class="flow">{flow}</div><div class="legend parts">{words}</div>'
        cards += _card("Where the calls went", inner)
    if document.drops:
        drops = sorted(document.drops.items(), key=lambda drop: (-drop[1], drop[0]))
        rows = [
            [e(reason), f'<i style="width:{100 * n / drops[0][1]:.1f}%"></i>', e(count(n))]
            for reason, n in drops
        ]
        table = _table(["Left out because", "", "Calls"], rows, kind="drops")
        cards += _card("Left out", table)
    if document.capture:
        rows = [
            [
                e(f"{stats.agent_name} ({stats.model})"),
                e(count(stats.calls)),
                e(percent(stats.success_rate)),
                e(seconds(stats.seconds_p50)),
                e(usd(None if stats.cost_nanousd is None else stats.cost_nanousd / 1e9)),
            ]
            for stats in document.capture
        ]
        heads = ["Agent", "Calls", "Succeeded", "p50", "Cost"]
        cards += _card("Captured", _table(heads, rows))
    return _section("Data", "", f'<div class="grid2">{cards}</div>') if cards else ""


def cases(document: Document, shown: Sequence[ShownCase], characters: int) -> str:
    """A few test cases with what the student wrote before and after."""
    after = document.challenger
    arms: list[ArmName] = ["student", after] if after != "student" else ["student"]
    cards = "".join(_case(case, arms, characters) for case in shown)
    if not cards:
        return ""
    return _section(
        "Before and after",
        "Real outputs on test cases, chosen by rule: repaired ones first, and one that is still "
        "wrong if there is one.",
        cards,
    )


def _case(case: ShownCase, arms: Sequence[ArmName], characters: int) -> str:
    question = _cut(case.question, characters) if case.question else "(question not at hand)"
    outputs = "".join(_output(arm, case.outputs.get(arm), characters) for arm in arms)
    return (
        f'<article class="card case"><div class="label"><span>{e(case.track)}</span>'
        f'<span>{e(case.case_id)}</span></div><div class="question">{e(question)}</div>'
        f'<div class="outputs"><div><div class="label">Right answer</div>'
        f"<pre>{e(_cut(case.gold, characters))}</pre></div>{outputs}</div></article>"
    )


def _output(arm: ArmName, output: ShownOutput | None, characters: int) -> str:
    if output is None:
        return f'<div><div class="label">{e(ARM_NAMES[arm])}</div>{_missing()}</div>'
    kind, word = ("good", "✓ right") if output.exact else ("bad", f"✕ {output.failure}")
    text = _cut(output.text, characters) or "(empty)"
    return (
        f'<div><div class="label">{e(ARM_NAMES[arm])} <span class="pill {kind}">{e(word)}</span>'
        f'</div><pre class="{kind}">{e(text)}</pre></div>'
    )


def live_answer(document: Document) -> str:
    """What the promoted student answered to a live question."""
    answer = document.live_answer
    if answer is None:
        return ""
    sub = f"{answer.model}, {seconds(answer.seconds)}"
    inner = f'<div class="question">{e(answer.question)}</div><pre>{e(answer.answer)}</pre>'
    return _section(
        "Live answer",
        "",
        f'<div class="case">{_card("Asked after promotion", inner, sub=sub)}</div>',
    )


def lineage(document: Document) -> str:
    """Ids of everything that went into the numbers, and how long it took."""
    ids = [
        (key.replace("_", " "), str(value))
        for key, value in document.lineage.model_dump().items()
        if value is not None
    ]
    cards = _card("Made from", _facts([*ids, ("seed", str(document.seed))], kind="id"))
    if document.timings:
        total = sum(document.timings.values())
        times = [(stage, seconds(time)) for stage, time in document.timings.items()]
        cards += _card("Time", _facts([*times, ("together", seconds(total))]))
    return _section("Lineage", "", f'<div class="grid2">{cards}</div>')


def with_code(text: str) -> str:
    """Return ``text`` escaped, with what stands between two backticks as code."""
    parts = e(text).split("`")
    if len(parts) % 2 == 0:
        return e(text)
    return "".join(f"<code>{part}</code>" if n % 2 else part for n, part in enumerate(parts))


def _section(title: str, lede: str, inner: str) -> str:
    lede = f'<p class="lede">{e(lede)}</p>' if lede else ""
    return f"<section><h2>{e(title)}</h2>{lede}{inner}</section>"


def _card(title: str, inner: str, *, sub: str = "") -> str:
    sub = f' <span class="sub">{e(sub)}</span>' if sub else ""
    return f'<div class="card"><h3>{e(title)}{sub}</h3><div>{inner}</div></div>'


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], text: int = 1, kind: str = ""
) -> str:
    """Return a table of cells that are HTML already; the first ``text`` columns are words.

    A table of kind ``stack`` turns each row into a block on a narrow screen.
    """

    def attributes(column: int) -> str:
        return ' class="text"' if column < text else ""

    def row(cells: Sequence[str]) -> str:
        return "".join(
            f'<td{attributes(column)} data-head="{e(heads[column])}">{cell}</td>'
            for column, cell in enumerate(cells)
        )

    head = "".join(f"<th{attributes(column)}>{e(name)}</th>" for column, name in enumerate(heads))
    body = "".join(f"<tr>{row(cells)}</tr>" for cells in rows)
    table = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{table}</table></div>'


def _facts(facts: Iterable[tuple[str, str]], kind: str = "") -> str:
    pairs = "".join(f'<dt>{e(key)}</dt><dd class="{kind}">{e(value)}</dd>' for key, value in facts)
    return f"<dl>{pairs}</dl>"


def _cut(text: str, characters: int) -> str:
    if len(text) <= characters:
        return text
    return f"{text[:characters]}… ({count(len(text) - characters)} more characters)"


def _missing() -> str:
    return f'<span class="missing" title="not measured">{MISSING}</span>'
