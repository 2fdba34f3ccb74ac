"""From the dataset's files to token rows with an assistant-only mask.

What it refuses: a file that differs from the dataset's manifest, a line that is no
example, a split without a row, a row that teaches nothing, and any row that would have to
be cut. Only when memory is short may prompts be cut, and never a token that is learned:
see ``shorten``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from slm_core.backends.model_folder import file_sha256
from slm_core.errors import DatasetError
from slm_core.prompting.render import Tokenized
from slm_core.records import Example, Split, Track

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_NAMED_AT_MOST = 5
_KEPT_AT_LEAST = 2


class Row(NamedTuple):
    """One tokenized example."""

    id: str
    ids: list[int]
    supervised: list[bool]
    """Same length as ``ids``: True where the model learns to write that token."""
    cut: int = 0
    """Prompt tokens taken out of it. A row that could not be cut is empty, and all of it is."""

    @property
    def planned(self) -> int:
        """Length as the dataset has it: the schedule must not change with what a plan cuts."""
        return len(self.ids) + self.cut


class Rows(NamedTuple):
    """The rows of one split, and how many examples are not among them."""

    rows: list[Row]
    """An example that could not be cut keeps its place as an empty row: see ``Row.planned``."""
    too_long: list[str]
    """Ids of the examples dropped for their length."""
    other_track: int
    """Examples of tracks that the spec leaves out."""
    cut_rows: int = 0
    """Rows whose prompt was shortened."""
    cut_tokens: int = 0
    """Prompt tokens taken out of those rows."""
    uncuttable: tuple[str, ...] = ()
    """Ids of the examples dropped because what they teach alone does not fit."""

    @property
    def kept(self) -> list[Row]:
        """The rows that are read, without the empty ones."""
        return [row for row in self.rows if row.ids]

    @property
    def supervised_tokens(self) -> int:
        """Tokens that carry loss."""
        return sum(sum(row.supervised) for row in self.rows)


def verify_files(dataset_path: Path) -> dict[str, str]:
    """Return name to SHA-256 of the split files that training reads.

    Raises:
        DatasetError: no ``train.jsonl``, or a file differs from the manifest.
    """
    files = [dataset_path / f"{split}.jsonl" for split in ("train", "val")]
    if not files[0].is_file():
        raise DatasetError(f"The dataset {dataset_path} has no train.jsonl.")
    found = {file.name: file_sha256(file) for file in files if file.is_file()}
    expected = _manifest_hashes(dataset_path / MANIFEST)
    for name in ("train.jsonl", "val.jsonl"):
        if name in expected and expected[name] != found.get(name):
            raise DatasetError(
                f"{dataset_path / name} differs from the dataset's manifest; build it again.",
                expected=expected[name],
                found=found.get(name),
            )
    return found


def read_examples(dataset_path: Path, split: Split) -> list[Example]:
    """Return the examples of ``split`` in file order; an absent file has none.

    Raises:
        DatasetError: a line is no example; file and line are named.
    """
    path = dataset_path / f"{split}.jsonl"
    if not path.is_file():
        return []
    examples: list[Example] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                examples.append(Example.model_validate_json(line))
            except ValidationError as error:
                # Where and what kind only: the message itself would quote prompt text.
                first = error.errors(include_url=False, include_input=False)[0]
                raise DatasetError(
                    f"{path}, line {number} is not an example.",
                    field=".".join(str(part) for part in first["loc"]),
                    problem=first["type"],
                ) from None
    return examples


def tokenize(
    examples: Sequence[Example],
    render: Callable[[Example], Tokenized],
    *,
    tracks: Sequence[Track],
    max_length: int,
    too_long: Literal["refuse", "drop"],
    shorten_to: int | None = None,
) -> Rows:
    """Return the examples of ``tracks`` as token rows of at most ``max_length`` tokens.

    With ``shorten_to``, rows that ``max_length`` allows are then cut to that many tokens.

    Raises:
        DatasetError: a row supervises no token, or rows are too long and may not be dropped.
    """
    rows: list[Row] = []
    over: list[Row] = []
    wanted = [example for example in examples if example.track in tracks]
    for example in wanted:
        row = Row(example.id, *render(example))
        if not any(row.supervised[1:]):
            raise DatasetError(f"Example {row.id} supervises no token; it would teach nothing.")
        (over if len(row.ids) > max_length else rows).append(row)
    if over and too_long == "refuse":
        named = ", ".join(f"{row.id} ({len(row.ids)})" for row in over[:_NAMED_AT_MOST])
        raise DatasetError(
            f"{len(over)} of {len(wanted)} rows are longer than max_length={max_length} tokens: "
            f"{named}{', ...' if len(over) > _NAMED_AT_MOST else ''}. Cutting them would lose the "
            "answer. Raise max_length, or leave them out with too_long='drop'.",
            longest=max(len(row.ids) for row in over),
        )
    for row in over:
        log.warning("row dropped id=%s tokens=%d max_length=%d", row.id, len(row.ids), max_length)
    found = Rows(rows, [row.id for row in over], len(examples) - len(wanted))
    return found if shorten_to is None else _shorten_all(found, shorten_to)


def shorten(row: Row, max_length: int) -> Row | None:
    """Return ``row`` cut to ``max_length`` tokens; None if it cannot be.

    Only tokens before the first supervised one go, out of their middle: the instructions at
    the beginning and the question at the end stay.
    """
    cut = len(row.ids) - max_length
    if cut <= 0:
        return row
    prompt = row.supervised.index(True) if True in row.supervised else len(row.ids)
    kept = prompt - cut
    # Something must be left that predicts the first supervised token.
    if kept < _KEPT_AT_LEAST:
        return None
    head = kept // 2
    gap = slice(head, head + cut)
    ids, supervised = list(row.ids), list(row.supervised)
    del ids[gap], supervised[gap]
    return Row(row.id, ids, supervised, cut=cut)


def _shorten_all(rows: Rows, max_length: int) -> Rows:
    """Cut what is longer than ``max_length``; empty, and name, what cannot be cut."""
    after: list[Row] = []
    lost: list[str] = []
    cut_rows = cut_tokens = 0
    for row in rows.rows:
        shorter = shorten(row, max_length)
        if shorter is None:
            lost.append(row.id)
            after.append(Row(row.id, [], [], cut=len(row.ids)))
            log.warning(
                "row dropped, its supervised part does not fit id=%s tokens=%d shorten_to=%d",
                row.id,
                len(row.ids),
                max_length,
            )
            continue
        after.append(shorter)
        cut_rows += shorter.cut > 0
        cut_tokens += shorter.cut
    if cut_rows or lost:
        log.warning(
            "prompts cut rows=%d tokens=%d dropped=%d shorten_to=%d",
            cut_rows,
            cut_tokens,
            len(lost),
            max_length,
        )
    return rows._replace(
        rows=after, cut_rows=cut_rows, cut_tokens=cut_tokens, uncuttable=tuple(lost)
    )


def _manifest_hashes(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is not a manifest with a table of files.") from error
