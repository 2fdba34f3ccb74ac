"""The split: by group, seeded, stratified by track and tool.

A group is everything tied together by a shared conversation or question; it never straddles
two splits. Groups are ordered by track and tool and dealt out along that order, each to the
split that is furthest behind its share, so that every split gets its part of each tool.

What an earlier dataset tested on is a test row again and counts toward the share of ``test``,
or the rows to train on would stop growing: each dataset would freeze its share of what is left.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple

from slm_core.dataset.questions import same_question_keys
from slm_core.dataset.spec import DatasetSpec, NearDuplicates
from slm_core.errors import DatasetError, NotEnoughCalls
from slm_core.records import SPLITS, TRACKS, Drop, DropReason, Example, Split, Track, sha256_hex

log = logging.getLogger(__name__)

Splits = dict[Split, list[Example]]


class Group(NamedTuple):
    """Examples that must stay together."""

    stratum: tuple[str, ...]
    """Tracks, then tools: neighbours in this order are alike."""
    order: str
    """Seeded hash of the content: the shuffle within a stratum, and the tie-break."""
    examples: tuple[Example, ...]
    frozen: bool = False
    """Holds a row that an earlier dataset tested on: it goes to ``test`` and nowhere else."""

    def rows(self, track: Track) -> int:
        """Return how many rows of ``track`` the group holds."""
        return sum(example.track == track for example in self.examples)


def split_examples(
    examples: Sequence[Example], spec: DatasetSpec, tested: Collection[str] = ()
) -> tuple[Splits, list[Drop]]:
    """Return the examples of each split, and drops for those beyond ``spec.rows``.

    Args:
        examples: Of different ids.
        spec: Shares or sizes, and what ties rows together.
        tested: Ids of the examples that earlier datasets tested on.

    Raises:
        DatasetError: the groups are too few to fill all three splits.
        NotEnoughCalls: a split has fewer rows than ``spec.rows`` asks for.
    """
    groups = group_examples(examples, spec.near_duplicates, spec.seed, tested)
    dealt = _deal(groups, spec.fractions)
    for track in TRACKS:
        _top_up(dealt, track, spec.min_split_rows)
    if spec.rows is not None:
        _fill(dealt, spec.rows)
    empty = [split for split in SPLITS if not dealt[split]]
    if empty:
        largest = max((len(group.examples) for group in groups), default=0)
        raise DatasetError(
            f"Cannot split {len(examples)} examples: they form {len(groups)} group(s) tied by "
            f"conversation or question, the largest of {largest} rows, and nothing is left for "
            f"{', '.join(empty)}. Capture more conversations, give each its own "
            "conversation_id, or set near_duplicates to 'ignore' if all share one user turn.",
            groups=len(groups),
        )
    rows: Splits = {
        split: sorted((e for g in dealt[split] for e in g.examples), key=lambda e: e.id)
        for split in SPLITS
    }
    _warn_of_gaps(rows)
    return (rows, []) if spec.rows is None else _cut(rows, spec.rows, spec.seed)


def group_examples(
    examples: Sequence[Example],
    near_duplicates: NearDuplicates,
    seed: int,
    tested: Collection[str] = (),
) -> list[Group]:
    """Return the examples in groups that share no conversation and no question.

    A group with one of the ids ``tested`` is frozen.
    """
    parent = list(range(len(examples)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[str, int] = {}
    for index, example in enumerate(examples):
        for key in same_question_keys(example, near_duplicates):
            parent[root(index)] = root(first.setdefault(key, index))
    members: dict[int, list[Example]] = defaultdict(list)
    for index, example in enumerate(examples):
        members[root(index)].append(example)
    return sorted((_group(found, seed, tested) for found in members.values()), key=_position)


def _group(examples: list[Example], seed: int, tested: Collection[str] = ()) -> Group:
    examples = sorted(examples, key=lambda e: e.id)
    tracks = sorted({e.track for e in examples})
    tools = sorted({call.name for e in examples for call in e.calls})
    order = sha256_hex(f"{seed} {examples[0].id}")
    frozen = any(e.id in tested for e in examples)
    return Group((*tracks, *tools), order, tuple(examples), frozen)


def _position(group: Group) -> tuple[tuple[str, ...], str]:
    return group.stratum, group.order


def _deal(groups: Sequence[Group], fractions: dict[Split, float]) -> dict[Split, list[Group]]:
    dealt: dict[Split, list[Group]] = {split: [] for split in SPLITS}
    owed = dict.fromkeys(SPLITS, 0.0)
    shares = _shares(groups, fractions)
    for group in groups:
        if group.frozen:
            dealt["test"].append(group)
            continue
        size = len(group.examples)
        for split in SPLITS:
            owed[split] += shares[group.stratum][split] * size
        chosen = max(SPLITS, key=lambda split: owed[split])
        owed[chosen] -= size
        dealt[chosen].append(group)
    return dealt


def _shares(
    groups: Sequence[Group], fractions: dict[Split, float]
) -> dict[tuple[str, ...], dict[Split, float]]:
    """Return, for each stratum, how its groups that are not frozen are shared out.

    ``test`` gets what it lacks beside the frozen rows, from the strata that lack some.
    """
    frozen, free = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for group in groups:
        (frozen if group.frozen else free)[group.stratum] += len(group.examples)
    if not frozen:
        return dict.fromkeys(free, fractions)
    lacks = {
        stratum: fractions["test"] * (free[stratum] + frozen[stratum]) - frozen[stratum]
        for stratum in sorted(free.keys() | frozen.keys())
    }
    # Strata with too many test rows make up for those with too few. Without that, each dataset
    # would test on more than its share, for no stratum gives a row back.
    asked = sum(max(0.0, lack) for lack in lacks.values())
    granted = max(0.0, sum(lacks.values())) / asked if asked else 0.0
    shares: dict[tuple[str, ...], dict[Split, float]] = {}
    for stratum, rows in free.items():
        test = granted * max(0.0, lacks[stratum]) / rows
        rest = (1 - test) / (fractions["train"] + fractions["val"])
        shares[stratum] = {
            "train": fractions["train"] * rest,
            "val": fractions["val"] * rest,
            "test": test,
        }
    return shares


def _top_up(dealt: dict[Split, list[Group]], track: Track, minimum: int) -> None:
    """Move the smallest groups of ``track`` out of train until val and test have ``minimum``.

    Train keeps at least as many rows of the track as the split that receives.
    """

    def rows(split: Split) -> int:
        return sum(group.rows(track) for group in dealt[split])

    candidates = sorted(
        (g for g in dealt["train"] if g.rows(track)), key=lambda g: (len(g.examples), g.order)
    )
    for group in candidates:
        needy = min(("test", "val"), key=rows)
        after = rows(needy) + group.rows(track)
        if rows(needy) >= minimum or rows("train") - group.rows(track) < after:
            return
        dealt["train"].remove(group)
        dealt[needy].append(group)


def _fill(dealt: dict[Split, list[Group]], wanted: dict[Split, int]) -> None:
    """Move the smallest spare groups to splits that have fewer rows than ``wanted``."""

    def spare(split: Split) -> int:
        return sum(len(group.examples) for group in dealt[split]) - wanted[split]

    for short in SPLITS:
        for split in SPLITS:
            free = [group for group in dealt[split] if not group.frozen]
            for group in sorted(free, key=lambda g: (len(g.examples), g.order)):
                if spare(short) >= 0 or len(group.examples) > spare(split):
                    break
                dealt[split].remove(group)
                dealt[short].append(group)


def _cut(rows: Splits, wanted: dict[Split, int], seed: int) -> tuple[Splits, list[Drop]]:
    """Keep exactly the rows asked for, evenly spaced along track and tool."""
    kept: Splits = {}
    drops: list[Drop] = []
    for split in SPLITS:
        have, want = len(rows[split]), wanted[split]
        if have < want:
            raise NotEnoughCalls(
                f"The {split} split has {have} rows of the {want} asked for: {want - have} are "
                "missing. Capture more calls or ask for fewer rows.",
                have=have,
                need=want,
                missing=want - have,
            )
        ordered = sorted(rows[split], key=lambda e: _position(_group([e], seed)))
        chosen = {ordered[i * have // want].id for i in range(want)}
        kept[split] = [e for e in rows[split] if e.id in chosen]
        drops += [
            Drop(
                call_id=e.source_call_id or e.id,
                reason=DropReason.SURPLUS,
                detail=f"{split} holds {want} rows",
            )
            for e in rows[split]
            if e.id not in chosen
        ]
    return kept, drops


def _warn_of_gaps(rows: Splits) -> None:
    for track in TRACKS:
        present = [split for split in SPLITS if any(e.track == track for e in rows[split])]
        missing = [split for split in SPLITS if split not in present]
        if present and missing:
            log.warning("track %s has no rows in %s", track, ", ".join(missing))
