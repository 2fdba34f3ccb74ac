"""The statistics of a dataset add up."""

from __future__ import annotations

from slm_core.dataset.counts import count_rows, to_markdown
from slm_core.dataset.examples import examine
from slm_core.prompting.formats import NO_CALL_TEXT
from slm_core.records import Drop, DropReason


def counts_of(make_call):
    train = [examine(make_call(n, tags={"domain": "a|b"})) for n in range(4)]
    train.append(examine(make_call(8, response=NO_CALL_TEXT, conversation_id="conversation-0")))
    splits = {
        "train": train,
        "val": [examine(make_call(5, track="structured"))],
        "test": [examine(make_call(6))],
    }
    drops = [Drop(call_id="x", reason=DropReason.FAILED), Drop(call_id="y", reason="no response")]
    return count_rows(splits, drops, None)


def test_rows_are_counted_by_track_tool_and_domain(make_call):
    counts = counts_of(make_call)

    assert counts["calls"] == 9
    assert counts["rows"] == {"train": 5, "val": 1, "test": 1}
    assert counts["conversations"] == {"train": 4, "val": 1, "test": 1}
    assert counts["tracks"]["toolcall"] == {"train": 5, "val": 0, "test": 1}
    assert counts["tools"]["get_time"] == {"train": 2, "val": 1, "test": 0}
    assert counts["tools"]["(no call)"] == {"train": 1, "val": 0, "test": 0}
    assert counts["domains"] == {"a|b": {"train": 4, "val": 0, "test": 0}}
    assert counts["drops"] == {"call failed": 1, "no response": 1}


def test_lengths_are_characters_without_a_tokenizer(make_call):
    counts = counts_of(make_call)
    row = examine(make_call(6))

    assert counts["length_unit"] == "characters"
    expected = len("You help.") + len(row.prompt[1].content) + len(row.completion)
    assert counts["lengths"]["test"] == {"p50": expected, "p95": expected, "max": expected}


def test_the_markdown_shows_every_table(make_call):
    text = to_markdown("ds-1", counts_of(make_call))

    assert text.startswith("# Dataset ds-1\n\n9 calls: 7 rows, 2 dropped.\n")
    assert "| get_time | 2 | 1 | 0 |" in text
    assert "| a\\|b | 4 | 0 | 0 |" in text
    assert "| call failed | 1 |" in text
