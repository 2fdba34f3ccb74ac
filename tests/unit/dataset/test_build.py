"""From calls to a dataset on disk: what is counted, what is promised, what is refused."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from slm_core.dataset import DatasetSpec, build, read_split
from slm_core.dataset.files import read_dataset
from slm_core.dataset.test_sets import write_test_set
from slm_core.errors import ConfigError, DatasetError, NotEnoughCalls
from slm_core.prompting.parse import parse_output
from slm_core.prompting.prefix import PREFIXES
from slm_core.records import SPLITS, Dataset, Message, ToolUse

SPEC = DatasetSpec()


def lines(dataset: Dataset, name: str) -> list[dict]:
    return [json.loads(line) for line in (Path(dataset.path) / name).read_bytes().splitlines()]


def calls_to(city: str, name: str = "get_weather") -> tuple[ToolUse, ...]:
    return (ToolUse(name=name, arguments={"city": city}),)


def test_every_call_is_a_row_or_a_drop_with_a_reason(make_call, make_calls, tmp_path):
    calls = make_calls(120)
    calls += [make_call(900, success=False), make_call(901, response="Sure!")]
    calls += [make_call(0, id="again"), make_call(0, id="again too")]

    dataset = build(calls, SPEC, tmp_path)

    drops = lines(dataset, "drops.jsonl")
    assert dataset.calls == len(calls) == sum(dataset.rows.values()) + len(drops)
    assert dataset.drops == Counter(drop["reason"] for drop in drops)
    # "again" sorts before "call-0000", so it is the one that stays.
    dropped = {drop["call_id"] for drop in drops}
    assert dropped == {"call-0900", "call-0901", "again too", "call-0000"}
    rows = [example for split in SPLITS for example in read_split(dataset.path, split)]
    kept = {example.source_call_id for example in rows}
    assert kept | dropped == {call.id for call in calls}


def test_the_rows_do_not_depend_on_the_order_of_the_calls(make_call, make_calls, tmp_path):
    calls = [*make_calls(150), make_call(3, id="copy"), make_call(7, id="copy too")]
    calls += [make_call(n, success=False) for n in range(200, 210)]
    shuffled = random.Random(1).sample(calls, len(calls))

    one = build(calls, SPEC, tmp_path / "a")
    other = build(shuffled, SPEC, tmp_path / "b")

    assert one.id == other.id
    assert one.files == other.files
    assert Path(one.path).name == Path(other.path).name


def test_building_the_same_again_uses_the_folder_that_is_there(make_calls, tmp_path):
    first = build(make_calls(), SPEC, tmp_path)
    again = build(make_calls(), SPEC, tmp_path)

    assert again == first
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [Path(first.path).name]


def test_an_altered_folder_is_not_used_again(make_calls, tmp_path):
    dataset = build(make_calls(), SPEC, tmp_path)
    (Path(dataset.path) / "hermes/val.jsonl").write_text("{}\n")

    with pytest.raises(DatasetError, match=r"hermes/val.jsonl was altered"):
        build(make_calls(), SPEC, tmp_path)


def test_the_same_rows_with_other_drops_keep_their_id_and_overwrite_nothing(
    make_call, make_calls, tmp_path
):
    first = build(make_calls(), SPEC, tmp_path)
    second = build([*make_calls(), make_call(900, success=False)], SPEC, tmp_path)

    assert second.id == first.id
    assert second.path != first.path
    assert second.drops == {"call failed": 1}
    assert read_dataset(first.path).drops == {}


def test_another_seed_gives_another_split(make_calls, tmp_path):
    one = build(make_calls(), SPEC, tmp_path)
    other = build(make_calls(), DatasetSpec(seed=7), tmp_path)

    assert one.id != other.id
    assert one.rows == other.rows


def test_calls_may_come_from_a_generator_and_progress_is_told(make_calls, tmp_path):
    told: list[tuple[int, int, str]] = []

    build(iter(make_calls()), SPEC, tmp_path, on_progress=lambda *what: told.append(what))
    build(make_calls(), SPEC, tmp_path, on_progress=lambda *what: told.append(what))

    assert told[119] == (120, 0, "calls filtered")
    assert told[-1] == (120, 120, "calls filtered")


def test_too_few_examples_say_how_many_are_missing_and_where_the_rest_went(
    make_call, make_calls, tmp_path
):
    calls = [*make_calls(37), *(make_call(n, complete=False) for n in range(50, 63))]

    with pytest.raises(NotEnoughCalls, match="63 more are missing") as caught:
        build(calls, SPEC, tmp_path)

    assert "37 of 50 calls" in str(caught.value)
    assert "13 stream left before its end" in str(caught.value)
    assert caught.value.context == {"have": 37, "need": 100, "missing": 63}
    assert list(tmp_path.glob("ds-*")) == []


def test_no_calls_at_all_are_too_few(tmp_path):
    with pytest.raises(NotEnoughCalls, match="100 more are missing"):
        build([], SPEC, tmp_path)


def test_one_conversation_with_everything_cannot_be_split(make_call, tmp_path):
    calls = [make_call(n, conversation_id="the only one") for n in range(120)]

    with pytest.raises(DatasetError, match="they form 1 group") as caught:
        build(calls, SPEC, tmp_path)

    assert "conversation_id" in str(caught.value)


def test_one_user_turn_for_all_needs_near_duplicates_ignored(make_call, tmp_path):
    calls = [
        make_call(
            n,
            messages=(
                Message(role="system", content=f"Ticket {n}"),
                Message(role="user", content="Begin!"),
            ),
        )
        for n in range(120)
    ]
    with pytest.raises(DatasetError, match="near_duplicates"):
        build(calls, SPEC, tmp_path)

    dataset = build(calls, DatasetSpec(near_duplicates="ignore"), tmp_path)
    assert dataset.rows == {"train": 96, "val": 12, "test": 12}


def test_a_majority_answer_wins_and_a_tie_is_dropped(make_call, make_calls, tmp_path):
    other = make_call(0, tool_calls=calls_to("Elsewhere"))
    calls = make_calls(120)
    calls += [make_call(0, id=f"same-{n}") for n in range(2)]  # three votes for City 0
    calls += [other.model_copy(update={"id": "minority"})]
    calls += [make_call(1, id="tie", tool_calls=calls_to("Elsewhere", "get_time"))]

    dataset = build(calls, SPEC, tmp_path)

    reasons = {drop["call_id"]: drop["reason"] for drop in lines(dataset, "drops.jsonl")}
    details = {drop["call_id"]: drop["detail"] for drop in lines(dataset, "drops.jsonl")}
    assert details["minority"] == "2 answers, in 3/1 of the calls read"
    assert reasons == {
        "same-0": "exact duplicate",
        "same-1": "exact duplicate",
        "minority": "same question, different answer",
        "tie": "same question, different answer",
        "call-0001": "same question, different answer",
    }


def test_parallel_calls_in_another_order_are_the_same_answer(make_call, make_calls, tmp_path):
    oslo, rio = calls_to("Oslo"), calls_to("Rio")
    one = make_call(900, tool_calls=oslo + rio)
    other = make_call(900, id="other order", tool_calls=rio + oslo)

    dataset = build([*make_calls(), one, other], SPEC, tmp_path)

    assert dataset.drops == {"exact duplicate": 1}


def test_frozen_questions_and_conversations_train_nothing(make_call, make_calls, tmp_path):
    old = build(make_calls(120), SPEC, tmp_path)
    tested = read_split(old.path, "test")
    first = tested[0]
    again = make_call(
        800, messages=(Message(role="user", content=f"  {first.prompt[-1].content.upper()}!"),)
    )
    sibling = make_call(801, conversation_id=tested[1].conversation_id)

    new = build(
        [*make_calls(120), *make_calls(120, first=200), again, sibling],
        SPEC,
        tmp_path,
        frozen=[old],
    )

    drops = {d["call_id"]: d for d in lines(new, "drops.jsonl")}
    assert set(drops) == {"call-0800", "call-0801"}
    assert {d["reason"] for d in drops.values()} == {"in a frozen test split"}
    assert drops["call-0800"]["detail"] == f"same question as {first.id} of {old.id}"
    assert drops["call-0801"]["detail"].startswith("same conversation as")
    assert new.parent_test_ids == (old.id,)
    assert new.rows == {"train": 192, "val": 24, "test": 24}
    assert {e.id for e in tested} < {e.id for e in read_split(new.path, "test")}


def test_ten_rounds_each_train_on_more_and_never_on_what_was_tested(make_calls, tmp_path):
    frozen: list[Dataset] = []
    tested: set[str] = set()
    trained = 0
    for number in range(1, 11):
        calls = make_calls(100 * number)
        dataset = build(calls, SPEC, tmp_path, frozen=frozen)
        again = build(calls[::-1], SPEC, tmp_path / "again", frozen=frozen)

        rows = {split: {e.id for e in read_split(dataset.path, split)} for split in SPLITS}
        assert again.files == dataset.files
        assert (dataset.calls, dataset.drops) == (100 * number, {})
        assert tested <= rows["test"]
        assert not tested & (rows["train"] | rows["val"])
        assert len(rows["train"]) - trained >= 75
        assert abs(len(rows["test"]) - 10 * number) <= 1
        tested, trained = rows["test"], len(rows["train"])
        frozen.append(dataset)


def test_a_tested_row_keeps_its_conversation_and_its_answer(make_call, make_calls, tmp_path):
    old = build(make_calls(120), SPEC, tmp_path)
    row = read_split(old.path, "test")[0]
    number = int(row.conversation_id.removeprefix("conversation-"))
    moved = make_call(number, id="a", track=row.track, conversation_id="another")
    changed = make_call(
        number, id="b", track=row.track, conversation_id="b", tool_calls=calls_to("Elsewhere"),
        response=None,
    )  # fmt: skip
    # Tied to the first copy, which would take it to the test split.
    friend = make_call(900, conversation_id="another")

    new = build([*make_calls(120), moved, changed, friend], SPEC, tmp_path, frozen=[old])

    drops = [(d["call_id"], d["detail"]) for d in lines(new, "drops.jsonl")]
    assert drops == [(name, f"same prompt as {row.id} of {old.id}") for name in "ab"]
    assert row in read_split(new.path, "test")
    assert "call-0900" not in {e.source_call_id for e in read_split(new.path, "test")}


def test_of_a_test_set_file_no_row_stays_even_if_it_was_tested_on(make_calls, tmp_path):
    old = build(make_calls(120), SPEC, tmp_path)
    tested = read_split(old.path, "test")
    write_test_set(tested[:3], tmp_path / "gold.jsonl")

    new = build(make_calls(240), SPEC, tmp_path, frozen=[old, tmp_path / "gold.jsonl"])

    assert new.drops == {"in a frozen test split": 3}
    assert {e.id for e in tested[3:]} < {e.id for e in read_split(new.path, "test")}


def test_equal_text_outside_the_frozen_conversation_is_judged_by_itself(
    make_call, make_calls, tmp_path
):
    old = build(make_calls(120), SPEC, tmp_path)
    conversation = read_split(old.path, "test")[0].conversation_id
    twins = [make_call(900, conversation_id=conversation), make_call(900, id="free")]

    new = build([*make_calls(120, first=300), *twins], SPEC, tmp_path, frozen=[old.path])

    assert [d["call_id"] for d in lines(new, "drops.jsonl")] == ["call-0900"]


def test_calls_of_other_tracks_and_long_ones_are_dropped(make_call, make_calls, tmp_path):
    spec = DatasetSpec(tracks=("toolcall",), max_tokens=50, min_examples=10)
    long = make_call(900, messages=(Message(role="user", content="word " * 60),))

    dataset = build(
        [*make_calls(40), long],
        spec,
        tmp_path,
        count_tokens=lambda e: sum(len(m.content.split()) for m in e.prompt),
    )

    assert dataset.drops == {
        "longer than the model's context": 1,
        "response belongs to no track": 20,
    }
    statistics = json.loads((Path(dataset.path) / "statistics.json").read_text())
    assert statistics["length_unit"] == "tokens"
    assert statistics["lengths"]["train"]["max"] == 8


def test_max_tokens_without_a_tokenizer_is_refused(make_calls, tmp_path):
    with pytest.raises(ConfigError, match="count_tokens"):
        build(make_calls(), DatasetSpec(max_tokens=10), tmp_path)


def test_exact_sizes_are_met_and_the_rest_is_counted(make_calls, tmp_path):
    spec = DatasetSpec(rows={"train": 100, "val": 50, "test": 50})

    dataset = build(make_calls(300), spec, tmp_path)

    assert dataset.rows == {"train": 100, "val": 50, "test": 50}
    assert dataset.drops == {"beyond the rows asked for": 100}
    tracks = Counter(example.track for example in read_split(dataset.path, "test"))
    assert abs(tracks["toolcall"] - tracks["structured"]) <= 2


def test_exactly_enough_rows_suffice_and_one_less_does_not(make_calls, tmp_path):
    spec = DatasetSpec(rows={"train": 100, "val": 50, "test": 50})

    assert build(make_calls(200), spec, tmp_path).drops == {}
    with pytest.raises(NotEnoughCalls, match="1 are missing"):
        build(make_calls(199), spec, tmp_path)


def test_the_other_formats_say_the_same(make_call, make_calls, tmp_path):
    spec = DatasetSpec(export_prefix="universal")
    both = make_call(500, tool_calls=calls_to("Oslo") + calls_to("Rio", "get_time"))
    dataset = build([*make_calls(), both], spec, tmp_path)

    for split in SPLITS:
        rows = read_split(dataset.path, split)
        hermes = lines(dataset, f"hermes/{split}.jsonl")
        pairs = lines(dataset, f"prompt_completion/{split}.jsonl")
        assert len(rows) == len(hermes) == len(pairs) == dataset.rows[split]
        for example, pair in zip(rows, pairs, strict=True):
            assert PREFIXES["universal"].text in pair["prompt"][0]["content"]
            assert PREFIXES["universal"].text not in example.prompt[0].content
            answer = pair["completion"][0]
            assert answer["role"] == "assistant"
            assert parse_output(answer["content"], example.track).calls == example.calls


def test_the_spec_refuses_what_cannot_be_split():
    with pytest.raises(ValueError, match="nothing to train on"):
        DatasetSpec(val_fraction=0.5, test_fraction=0.5)
    with pytest.raises(ValueError, match="train, val and test"):
        DatasetSpec(rows={"train": 100, "val": 0, "test": 50})
    with pytest.raises(ValueError, match="train, val and test"):
        DatasetSpec(rows={"train": 100})
    with pytest.raises(ValueError, match="extra"):
        DatasetSpec.model_validate({"test_fractoin": 0.2})
