"""The split keeps what belongs together, and gives every split its share of everything."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slm_core.dataset.examples import examine
from slm_core.dataset.leaks import prove_no_leak
from slm_core.dataset.spec import DatasetSpec
from slm_core.dataset.split import split_examples
from slm_core.errors import DatasetError
from slm_core.records import SPLITS, Message, Tool, ToolUse


def test_fractions_hold_for_every_track_and_tool(make_calls):
    examples = [examine(call) for call in make_calls(400)]

    splits, drops = split_examples(examples, DatasetSpec())

    assert {split: len(rows) for split, rows in splits.items()} == {
        "train": 320,
        "val": 40,
        "test": 40,
    }
    assert drops == []
    for split, share in (("train", 80), ("val", 10), ("test", 10)):
        strata = Counter((e.track, e.calls[0].name) for e in splits[split])
        assert len(strata) == 4
        assert all(abs(count - share) <= 1 for count in strata.values())


def test_the_same_question_on_two_tracks_or_with_other_tools_stays_together(make_call):
    pairs = []
    for n in range(60):
        one = make_call(n)
        question = f"  QUESTION {n} about   ｃｉｔｙ {n}, please.."  # noqa: RUF001
        other = make_call(
            n,
            track="structured",
            id=f"twin-{n}",
            conversation_id=f"twin-{n}",
            messages=(Message(role="user", content=question),),
            tools=one.tools[:1] if n % 2 == 0 else one.tools,
        )
        pairs += [examine(one), examine(other)]

    splits, _ = split_examples(pairs, DatasetSpec())

    for rows in splits.values():
        turns = Counter(e.prompt[-1].content.split()[1] for e in rows)
        assert set(turns.values()) == {2}


def test_a_rare_track_reaches_every_split(make_calls, make_call):
    rare = [examine(make_call(n, track="structured")) for n in range(1000, 1015)]
    common = [examine(make_call(n)) for n in range(300)]

    splits, _ = split_examples(rare + common, DatasetSpec(min_split_rows=3))

    counts = {s: sum(e.track == "structured" for e in splits[s]) for s in SPLITS}
    assert counts["val"] >= 3
    assert counts["test"] >= 3
    assert counts["train"] >= max(counts["val"], counts["test"])


def test_three_conversations_fill_three_splits(make_call):
    examples = [examine(make_call(n, conversation_id=f"conversation {n % 3}")) for n in range(100)]

    splits, _ = split_examples(examples, DatasetSpec())

    assert sorted(len(rows) for rows in splits.values()) == [33, 33, 34]


def test_exact_sizes_are_met_with_conversations_of_any_length(make_call):
    """Dealt by share alone, splits of uneven groups miss their sizes by a few rows."""
    lengths = [1, 1, 2, 5] * 16
    conversations = [f"c{i}" for i, length in enumerate(lengths) for _ in range(length)]
    examples = [examine(make_call(2 * n, conversation_id=c)) for n, c in enumerate(conversations)]
    sizes = {"train": 88, "val": 28, "test": 28}

    splits, drops = split_examples(examples, DatasetSpec(rows=sizes))

    assert {split: len(rows) for split, rows in splits.items()} == sizes
    assert drops == []


def test_a_new_tool_is_tested_though_the_others_have_their_test_rows(make_calls, make_call):
    examples = [examine(call) for call in make_calls(400)]
    tested = {e.id for e in split_examples(examples, DatasetSpec())[0]["test"]}
    use = (ToolUse(name="get_tide", arguments={}),)
    tool = Tool(name="get_tide", parameters={"type": "object"})
    examples += [
        examine(make_call(n, tools=(tool,), tool_calls=use, response=None)) for n in range(500, 600)
    ]

    splits, _ = split_examples(examples, DatasetSpec(), tested)

    assert {s: len(rows) for s, rows in splits.items()} == {"train": 400, "val": 50, "test": 50}
    tools = Counter(e.calls[0].name for e in splits["test"] if e.id not in tested)
    assert tools == {"get_tide": 10}


def test_many_tools_with_few_rows_get_no_more_test_rows_with_every_round(make_call):
    """Dealt by stratum alone, each tool without a test row would ask for one each time."""
    tested: set[str] = set()
    for rows in range(300, 900, 100):
        examples = []
        for n in range(rows):
            use = (ToolUse(name=f"tool_{n % 150}", arguments={}),)
            tool = Tool(name=use[0].name, parameters={"type": "object"})
            call = make_call(n, tools=(tool,), tool_calls=use, response=None)
            examples.append(examine(call))
        splits, _ = split_examples(examples, DatasetSpec(), tested)
        assert tested <= {e.id for e in splits["test"]}
        tested = {e.id for e in splits["test"]}
        assert abs(len(tested) - rows / 10) <= 2


def test_exact_sizes_take_no_row_out_of_the_test_split(make_calls):
    examples = [examine(call) for call in make_calls(150)]
    tested = {e.id for e in examples[:60]}
    sizes = {"train": 60, "val": 30, "test": 50}

    splits, drops = split_examples(examples, DatasetSpec(rows=sizes), tested)

    assert {split: len(rows) for split, rows in splits.items()} == sizes
    assert len(drops) == 10
    assert {e.id for e in splits["test"]} < tested
    assert not tested & {e.id for split in ("train", "val") for e in splits[split]}


def test_what_is_tied_to_a_tested_row_is_tested(make_call):
    examples = [examine(make_call(n, conversation_id=f"c{n // 2}")) for n in range(100)]

    splits, _ = split_examples(examples, DatasetSpec(), {examples[10].id})

    assert examples[11] in splits["test"]


def test_two_conversations_cannot_fill_three_splits(make_call):
    examples = [examine(make_call(n, conversation_id=f"conversation {n % 2}")) for n in range(100)]

    with pytest.raises(DatasetError, match="2 group"):
        split_examples(examples, DatasetSpec())


def test_a_track_without_enough_conversations_is_warned_about(make_call, caplog):
    alone = examine(make_call(999, track="structured"))

    split_examples([alone, *(examine(make_call(n)) for n in range(100))], DatasetSpec())

    assert "track structured has no rows in" in caplog.text


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 25), st.integers(0, 40), st.sampled_from(["toolcall", "structured"])
        ),
        min_size=10,
        max_size=120,
        unique_by=lambda row: (row[1], row[2]),
    ),
    seed=st.integers(0, 5),
)
def test_any_workload_splits_without_a_leak_or_not_at_all(make_call, rows, seed):
    examples = [
        examine(
            make_call(
                question,
                id=f"{question}-{track}",
                conversation_id=f"c{conversation}",
                track=track,
                response=None,
                tool_calls=(ToolUse(name="get_time", arguments={"n": conversation}),),
            )
        )
        for conversation, question, track in rows
    ]
    spec = DatasetSpec(seed=seed)
    try:
        splits, drops = split_examples(examples, spec)
    except DatasetError:
        return

    prove_no_leak(splits, [], spec.near_duplicates)
    kept = sorted(e.id for rows in splits.values() for e in rows)
    assert kept == sorted(e.id for e in examples)
    assert drops == []
    assert splits == split_examples(examples[::-1], spec)[0]
