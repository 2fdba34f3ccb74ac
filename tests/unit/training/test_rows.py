from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

import pytest

from slm_core.errors import DatasetError
from slm_core.prompting.render import Tokenized
from slm_core.records import TRACKS, Example
from slm_core.testing.records import make_example
from slm_core.training.rows import Row, Rows, read_examples, shorten, tokenize, verify_files


def write_split(folder: Path, split: str, examples: list[Example]) -> Path:
    path = folder / f"{split}.jsonl"
    path.write_text("".join(example.model_dump_json() + "\n" for example in examples))
    return path


def write_manifest(folder: Path, *names: str) -> None:
    hashes = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names}
    (folder / "manifest.json").write_text(json.dumps({"files": hashes}))


def render(example: Example) -> Tokenized:
    """Stand-in for the renderer: four prompt tokens, then one per character."""
    answer = [ord(character) for character in example.completion]
    return Tokenized([0] * 4 + answer, [False] * 4 + [True] * len(answer))


def tokenize_all(
    examples: list[Example], *, max_length: int = 1000, too_long: Literal["refuse", "drop"]
) -> Rows:
    return tokenize(examples, render, tracks=TRACKS, max_length=max_length, too_long=too_long)


def test_examples_come_back_in_order(tmp_path: Path) -> None:
    examples = [make_example(number, "structured") for number in (3, 1, 2)]
    write_split(tmp_path, "train", examples)
    assert read_examples(tmp_path, "train") == examples
    assert read_examples(tmp_path, "val") == []


def test_a_line_that_is_no_example_is_named_and_not_quoted(tmp_path: Path) -> None:
    path = write_split(tmp_path, "train", [make_example()])
    path.write_text(path.read_text() + '{"id": "x", "prompt": "my secret"}\n')
    with pytest.raises(DatasetError, match=r"train\.jsonl, line 2") as caught:
        read_examples(tmp_path, "train")
    assert "secret" not in str(caught.value)


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(DatasetError, match="line 1"):
        read_examples(tmp_path, "train")


def test_files_are_compared_with_the_manifest(tmp_path: Path) -> None:
    path = write_split(tmp_path, "train", [make_example()])
    write_split(tmp_path, "val", [make_example(1)])
    write_manifest(tmp_path, "train.jsonl", "val.jsonl")
    assert set(verify_files(tmp_path)) == {"train.jsonl", "val.jsonl"}
    write_split(tmp_path, "train", [make_example(2)])
    with pytest.raises(DatasetError, match="differs") as caught:
        verify_files(tmp_path)
    assert caught.value.context["found"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_listed_split_that_is_missing_is_refused(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [make_example()])
    val = write_split(tmp_path, "val", [make_example(1)])
    write_manifest(tmp_path, "train.jsonl", "val.jsonl")
    val.unlink()
    with pytest.raises(DatasetError, match=r"val\.jsonl differs"):
        verify_files(tmp_path)


def test_a_dataset_without_train_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no train\.jsonl"):
        verify_files(tmp_path)


@pytest.mark.parametrize("text", ["not json", "[]", '{"rows": 3}'])
def test_a_manifest_without_files_is_refused(tmp_path: Path, text: str) -> None:
    write_split(tmp_path, "train", [make_example()])
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DatasetError, match="manifest"):
        verify_files(tmp_path)


def test_too_long_rows_stop_the_run_and_are_named() -> None:
    examples = [make_example(0, completion="ab"), make_example(1, completion="a" * 30)]
    with pytest.raises(DatasetError, match="1 of 2 rows are longer than max_length=10") as caught:
        tokenize_all(examples, max_length=10, too_long="refuse")
    assert f"{examples[1].id} (34)" in str(caught.value)
    assert caught.value.context["longest"] == 34


def test_too_long_rows_can_be_dropped_and_are_counted_never_cut() -> None:
    examples = [make_example(0, completion="abcdef"), make_example(1, completion="abcdefg")]
    rows = tokenize_all(examples, max_length=10, too_long="drop")
    assert [row.id for row in rows.rows] == [examples[0].id]
    assert rows.too_long == [examples[1].id]
    assert len(rows.rows[0].ids) == 10
    assert rows.supervised_tokens == 6


def test_other_tracks_stay_out_and_are_counted() -> None:
    examples = [make_example(0, "structured"), make_example(1, "toolcall")]
    rows = tokenize(examples, render, tracks=("toolcall",), max_length=1000, too_long="refuse")
    assert [row.id for row in rows.rows] == [examples[1].id]
    assert rows.other_track == 1


@pytest.mark.parametrize("tokens", [Tokenized([1, 2], [False, False]), Tokenized([1], [True])])
def test_a_row_that_supervises_nothing_is_refused(tokens: Tokenized) -> None:
    with pytest.raises(DatasetError, match="supervises no token"):
        tokenize([make_example()], lambda _: tokens, tracks=TRACKS, max_length=9, too_long="refuse")


def make_row(prompt: int, answer: int, after: int = 0) -> Row:
    """Tokens that say where they stood."""
    length = prompt + answer + after
    learned = [False] * prompt + [True] * answer + [False] * after
    return Row("r", list(range(length)), learned)


def test_a_prompt_is_cut_in_its_middle() -> None:
    assert shorten(make_row(10, 3), 9) == Row(
        "r", [0, 1, 2, 7, 8, 9, 10, 11, 12], [False] * 6 + [True] * 3, cut=4
    )


@pytest.mark.parametrize("max_length", range(7, 22))
def test_no_learned_token_is_ever_cut(max_length: int) -> None:
    row = make_row(14, 3, after=2)
    short = shorten(row, max_length)
    assert short is not None
    assert (len(short.ids), short.cut) == (min(19, max_length), max(0, 19 - max_length))
    assert short.ids[-5:] == row.ids[-5:]
    assert sum(short.supervised) == 3
    assert short.ids == sorted(short.ids)
    assert (short.ids[0], short.ids[-6]) == (0, 13)


def test_turns_between_learned_ones_are_not_touched() -> None:
    learned = [False] * 6 + [True] * 2 + [False] * 8 + [True] * 2
    row = Row("r", list(range(18)), learned)
    short = shorten(row, 15)
    assert short is not None
    assert short.ids == [0, *range(4, 18)]
    assert shorten(row, 13) is None


def test_what_cannot_be_cut_is_no_row() -> None:
    assert shorten(make_row(10, 5), 7) is not None
    assert shorten(make_row(10, 5), 6) is None


def test_what_was_cut_and_dropped_is_counted() -> None:
    examples = [
        make_example(0, completion="ab"),
        make_example(1, completion="abcde"),
        make_example(2, completion="abcdefg"),
    ]
    rows = tokenize(examples, render, tracks=TRACKS, max_length=10, too_long="drop", shorten_to=8)
    assert [len(row.ids) for row in rows.rows] == [6, 8]
    assert (rows.cut_rows, rows.cut_tokens) == (1, 1)
    assert (rows.too_long, rows.uncuttable) == ([examples[2].id], ())
    again = tokenize(
        examples, render, tracks=TRACKS, max_length=100, too_long="refuse", shorten_to=7
    )
    assert [len(row.ids) for row in again.kept] == [6, 7]
    assert (again.cut_rows, again.cut_tokens) == (1, 2)
    assert (again.too_long, again.uncuttable) == ([], (examples[2].id,))


def test_every_row_keeps_its_place_and_its_planned_length() -> None:
    """The schedule is made from these: a plan with shorter rows must not change it."""
    examples = [make_example(n, completion=text) for n, text in enumerate(("ab", "abcde", "a" * 9))]
    whole, short = (
        tokenize(
            examples, render, tracks=TRACKS, max_length=100, too_long="refuse", shorten_to=length
        )
        for length in (None, 7)
    )
    assert [row.planned for row in short.rows] == [row.planned for row in whole.rows] == [6, 9, 13]
    assert [row.id for row in short.rows] == [example.id for example in examples]
    assert (short.rows[2].ids, short.rows[2].supervised) == ([], [])
    assert short.supervised_tokens == 7
