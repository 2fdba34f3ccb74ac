"""What is in a dataset, counted: for ``statistics.json`` and, for people, ``statistics.md``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from slm_core.records import SPLITS, Drop, Example, Split

NO_CALL = "(no call)"


def count_rows(
    splits: Mapping[Split, Sequence[Example]],
    drops: Sequence[Drop],
    count_tokens: Callable[[Example], int] | None,
) -> dict[str, Any]:
    """Return rows per split, track, tool and domain, lengths, and drops per reason.

    Lengths are those of prompt and completion together: in tokens with ``count_tokens``, in
    characters of message text without.
    """
    rows = {split: len(splits[split]) for split in SPLITS}
    length = count_tokens or _characters
    return {
        "calls": sum(rows.values()) + len(drops),
        "rows": rows,
        "conversations": {s: len({e.conversation_id for e in splits[s]}) for s in SPLITS},
        "tracks": _tally(splits, lambda e: [e.track]),
        "tools": _tally(splits, lambda e: {c.name for c in e.calls} or {NO_CALL}),
        "domains": _tally(splits, lambda e: [e.domain] if e.domain else []),
        "length_unit": "tokens" if count_tokens else "characters",
        "lengths": {s: _spread([length(e) for e in splits[s]]) for s in SPLITS},
        "drops": count_drops(drops),
    }


def count_drops(drops: Sequence[Drop]) -> dict[str, int]:
    """Return reason to count, in alphabetical order."""
    return dict(sorted(Counter(str(drop.reason) for drop in drops).items()))


def to_markdown(dataset_id: str, counts: Mapping[str, Any]) -> str:
    """Return the counts as tables."""
    lines = [f"# Dataset {dataset_id}", ""]
    dropped = sum(counts["drops"].values())
    lines += [f"{counts['calls']} calls: {sum(counts['rows'].values())} rows, {dropped} dropped."]
    lines += _table("", {"rows": counts["rows"], "conversations": counts["conversations"]})
    for title in ("tracks", "tools", "domains"):
        if counts[title]:
            lines += _table(f"Rows by {title}", counts[title])
    lines += ["", f"## Length in {counts['length_unit']}", ""]
    lines += ["| | median | p95 | longest |", "|---|---|---|---|"]
    lines += [
        f"| {split} | {spread['p50']} | {spread['p95']} | {spread['max']} |"
        for split, spread in counts["lengths"].items()
    ]
    if dropped:
        lines += ["", "## Dropped", "", "| reason | calls |", "|---|---|"]
        lines += [f"| {reason} | {count} |" for reason, count in counts["drops"].items()]
    return "\n".join(lines) + "\n"


def _table(title: str, counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    head = ["", f"## {title}"] if title else []
    head += ["", f"| | {' | '.join(SPLITS)} |", "|---" * (len(SPLITS) + 1) + "|"]
    return head + [
        f"| {_cell(name)} | {' | '.join(str(row[split]) for split in SPLITS)} |"
        for name, row in counts.items()
    ]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _tally(
    splits: Mapping[Split, Sequence[Example]], labels: Callable[[Example], Iterable[str]]
) -> dict[str, dict[str, int]]:
    counters = {s: Counter(name for e in splits[s] for name in labels(e)) for s in SPLITS}
    names = sorted({name for counter in counters.values() for name in counter})
    return {name: {split: counters[split][name] for split in SPLITS} for name in names}


def _characters(example: Example) -> int:
    return sum(len(message.content) for message in example.prompt) + len(example.completion)


def _spread(lengths: list[int]) -> dict[str, int]:
    """Return median, 95th percentile (nearest rank) and maximum."""
    ordered = sorted(lengths)
    last = len(ordered) - 1
    return {"p50": ordered[last // 2], "p95": ordered[last * 95 // 100], "max": ordered[last]}
