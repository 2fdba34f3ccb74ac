"""What a person sees who is asked to let an adapter answer: the whole evidence, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

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


def approval_markdown(
    approval: Approval,
    decision: Decision,
    adapter: Adapter,
    dataset: Dataset | None = None,
    report: str | None = None,
) -> str:
    """Return the request with its evidence.

    Args:
        approval: what is asked.
        decision: verdict on the adapter's evaluation, with its gates.
        adapter: what would answer.
        dataset: what it was trained on; None when the store does not hold it.
        report: address of the report; None when there is none any more.
    """
    required = [gate for gate in decision.gates if gate.required]
    traffic = [(move, gate) for move in approval.moves for gate in move.evidence]
    parts = [
        f"## {adapter.id}: {' and '.join(sorted({m.to_stage for m in approval.moves}))}?",
        _table(
            ("agent/track", "is", "shall be", "what that means", "live now", "risk"),
            [_move_row(move, approval.share) for move in approval.moves],
        ),
        f"**{decision.outcome}** by decision `{decision.id}`: "
        f"{sum(gate.verdict == 'pass' for gate in required)} of {len(required)} required gates "
        "passed. Each judges a whole 95 % interval.",
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
    parts.append(_origin(adapter, dataset, report))
    parts.append(
        f"Without an answer before {approval.expires_at:%Y-%m-%d %H:%M} UTC it is rejected. "
        "`slm routes roll-back` undoes going live."
    )
    return "\n\n".join(parts) + "\n"


def _move_row(move: PlannedMove, share: float) -> tuple[str, ...]:
    return (
        f"`{move.agent_name}/{move.track}`",
        move.from_stage or "new",
        move.to_stage,
        _EFFECTS[move.to_stage].format(share=share),
        f"`{move.live_adapter_id}`" if move.live_adapter_id else "the teacher",
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


def _origin(adapter: Adapter, dataset: Dataset | None, report: str | None) -> str:
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
