"""What a person sees who is asked to let an adapter answer, in Markdown: all of it, or in short.

The short form is shown above the fields of a narrow window, so it has lists and no table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from slm_core.records import (
    Adapter,
    Approval,
    Dataset,
    Decision,
    GateResult,
    PlannedMove,
    Stage,
    Verdict,
)
from slm_core.report.markdown import escape, table_lines

_MARKS: dict[Verdict, str] = {"pass": "✓ pass", "fail": "✕ fail", "inconclusive": "? inconclusive"}
_EFFECTS = {
    Stage.SHADOW: "callers still get the answers that they get now; the adapter is asked too, "
    "and compared",
    Stage.CANARY: "answers {share:.0%} of the conversations; the teacher answers where it fails",
    Stage.LIVE: "answers all conversations; the teacher answers where it fails",
}


class Evidence(NamedTuple):
    """A request and all that speaks for it."""

    approval: Approval
    """What is asked."""
    decision: Decision
    """Verdict on the adapter's evaluation, with its gates."""
    adapter: Adapter
    """What would answer."""
    dataset: Dataset | None = None
    """What it was trained on; None when the store does not hold it."""
    report: str | None = None
    """Address of the report; None when there is none any more."""


def approval_markdown(evidence: Evidence) -> str:
    """Return the request with its evidence."""
    approval, decision = evidence.approval, evidence.decision
    traffic = [(move, gate) for move in approval.moves for gate in move.evidence]
    parts = [
        _question(approval),
        _table(
            ("agent/track", "is", "shall be", "what that means", "live now", "risk"),
            [_move_row(move, approval.share) for move in approval.moves],
        ),
        _verdict(decision),
        _table(
            ("gate", "track", "verdict", "value", "threshold", "n", "why"),
            [_gate_row(gate) for gate in decision.gates],
        ),
    ]
    if traffic:
        parts += [
            "**Its own traffic so far**",
            _table(
                ("route", "gate", "verdict", "rate", "limit", "n", "why"),
                [
                    (f"{move.agent_name}/{move.track}", *_gate_row(gate, with_track=False))
                    for move, gate in traffic
                ],
            ),
        ]
    parts += [_origin(evidence), _end(approval)]
    return "\n\n".join(parts) + "\n"


def approval_summary(evidence: Evidence) -> str:
    """Return the same request in short, with the gates that had to be passed."""
    approval, decision = evidence.approval, evidence.decision
    moves = [
        f"* `{move.agent_name}/{move.track}`: {move.from_stage or 'new'} → **{move.to_stage}**, "
        f"risk {move.risk}; live now: {_live(move)}"
        for move in approval.moves
    ]
    effects = [
        f"* *{stage}*: {_EFFECTS[stage].format(share=approval.share)}"
        for stage in sorted({move.to_stage for move in approval.moves})
    ]
    gates = [_gate_line(gate, gate.track or "both") for gate in decision.gates if gate.required]
    traffic = [
        _gate_line(gate, f"{move.agent_name}/{move.track}")
        for move in approval.moves
        for gate in move.evidence
    ]
    parts = [
        _question(approval),
        "\n".join(moves + effects),
        _verdict(decision),
        "\n".join(gates),
        *(["**Its own traffic so far**", "\n".join(traffic)] if traffic else []),
        "**Made from**",
        _origin(evidence),
        "Every gate with its reason: the artifact `promotion` of this run.",
        _end(approval),
    ]
    return "\n\n".join(parts) + "\n"


def _question(approval: Approval) -> str:
    stages = " and ".join(sorted({move.to_stage for move in approval.moves}))
    return f"## {approval.adapter_id}: {stages}?"


def _verdict(decision: Decision) -> str:
    required = [gate for gate in decision.gates if gate.required]
    passed = sum(gate.verdict == "pass" for gate in required)
    return (
        f"**{decision.outcome}** by decision `{decision.id}`: {passed} of {len(required)} required "
        "gates passed. Each judges a whole 95 % interval."
    )


def _end(approval: Approval) -> str:
    return (
        f"Without an answer before {approval.expires_at:%Y-%m-%d %H:%M} UTC it is rejected. "
        "`slm routes roll-back` undoes going live."
    )


def _live(move: PlannedMove) -> str:
    return f"`{move.live_adapter_id}`" if move.live_adapter_id else "the teacher"


def _move_row(move: PlannedMove, share: float) -> tuple[str, ...]:
    return (
        f"`{move.agent_name}/{move.track}`",
        move.from_stage or "new",
        move.to_stage,
        _EFFECTS[move.to_stage].format(share=share),
        _live(move),
        move.risk,
    )


def _gate_row(gate: GateResult, *, with_track: bool = True) -> tuple[str, ...]:
    return (
        f"`{gate.gate}`" + ("" if gate.required else " (for information)"),
        *((gate.track or "both",) if with_track else ()),
        _MARKS[gate.verdict],
        "–" if gate.value is None else f"{gate.value:.3f}",
        "–" if gate.threshold is None else f"{gate.threshold:.3f}",
        str(gate.n),
        gate.reason,
    )


def _gate_line(gate: GateResult, of: str) -> str:
    _, verdict, value, threshold, n, _ = _gate_row(gate, with_track=False)
    return f"* {verdict}: `{gate.gate}` of {of}, {value} against {threshold}, n = {n}"


def _origin(evidence: Evidence) -> str:
    adapter, dataset, report = evidence.adapter, evidence.dataset, evidence.report
    lines = [f"* base model `{adapter.base_model}`, run `{adapter.run_id}`"]
    if dataset is not None:
        rows = ", ".join(f"{count} {split}" for split, count in dataset.rows.items())
        lines.append(f"* dataset `{dataset.id}`: {rows} rows of {dataset.calls} calls")
    else:
        lines.append(f"* dataset `{adapter.dataset_id}`, not in this store")
    lines.append(f"* report: {report}" if report else "* its report is not on this worker")
    return "\n".join(lines)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[escape(cell) for cell in row] for row in rows]
    return "\n".join(table_lines(columns, cells, left=len(columns)))
