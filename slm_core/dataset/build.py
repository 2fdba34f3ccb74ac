"""Calls to a frozen dataset: filter, settle duplicates, split, prove, write.

Every call ends as a row or as a drop with a reason; the two add up to the calls that came in.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence, Sized
from pathlib import Path

from slm_core.dataset.counts import count_drops, count_rows, to_markdown
from slm_core.dataset.dedupe import dedupe
from slm_core.dataset.examples import examine
from slm_core.dataset.exports import hermes_row, prompt_completion_row
from slm_core.dataset.files import dataset_id, split_file, to_jsonl, write_dataset
from slm_core.dataset.leaks import Frozen, KnownRows, prove_no_leak, read_frozen
from slm_core.dataset.schemas import Objection
from slm_core.dataset.spec import DatasetSpec
from slm_core.dataset.split import Splits, split_examples
from slm_core.errors import ConfigError, NotEnoughCalls
from slm_core.prompting.prefix import get_prefix
from slm_core.records import (
    SPLITS,
    Call,
    Dataset,
    Drop,
    DropReason,
    Example,
    canonical_json,
    sha256_hex,
)

log = logging.getLogger(__name__)

CountTokens = Callable[[Example], int]
OnProgress = Callable[[int, int, str], None]


def build(
    calls: Iterable[Call],
    spec: DatasetSpec,
    out_dir: Path | str,
    *,
    frozen: Sequence[Path | str | Dataset] = (),
    count_tokens: CountTokens | None = None,
    on_progress: OnProgress | None = None,
) -> Dataset:
    """Build the dataset of ``calls`` in a folder of its own under ``out_dir``.

    Rows do not depend on the order of ``calls``. The same rows give the same id; a folder that
    is already there is verified and used again.

    Args:
        calls: Captured calls; each becomes a row or a drop.
        spec: Filters and split.
        out_dir: Parent folder; the dataset's own folder is named after its content.
        frozen: Earlier datasets (records or folders) and test-set files. A row that an earlier
            dataset tested on is a test row again, and counts toward ``spec.test_fraction``.
            Other calls that repeat a question or conversation of their test rows are dropped.
        count_tokens: Length of an example in tokens, prompt and completion together.
        on_progress: Told (done, total, what); total is 0 when ``calls`` has no length.

    Raises:
        ConfigError: ``spec.max_tokens`` is set without ``count_tokens``.
        NotEnoughCalls: fewer than ``spec.min_examples`` examples are left; says how many
            are missing and where the others went.
        DatasetError: the examples cannot be split, or the folder cannot be written.
        LeakFound: the final proof failed; nothing was written.
    """
    if spec.max_tokens is not None and count_tokens is None:
        raise ConfigError(
            "max_tokens needs a tokenizer: pass count_tokens to build, or set max_tokens to None.",
            max_tokens=spec.max_tokens,
        )
    sources = [read_frozen(source) for source in frozen]
    examples, drops = _filter(calls, spec, count_tokens, on_progress)
    examples, repeated, tested = _keep_out(examples, sources, spec)
    examples, surplus = dedupe(examples)
    drops += repeated + surplus
    _require(len(examples), spec, drops)
    splits, unasked = split_examples(examples, spec, tested)
    drops = sorted(drops + unasked, key=lambda drop: (drop.call_id, drop.reason, drop.detail))
    prove_no_leak(splits, sources, spec.near_duplicates)
    dataset = _write(splits, drops, spec, out_dir, sources, count_tokens)
    log.info("dataset built id=%s rows=%s dropped=%s", dataset.id, dataset.rows, dataset.drops)
    return dataset


def _filter(
    calls: Iterable[Call],
    spec: DatasetSpec,
    count_tokens: CountTokens | None,
    on_progress: OnProgress | None,
) -> tuple[list[Example], list[Drop]]:
    examples: list[Example] = []
    drops: list[Drop] = []
    total = len(calls) if isinstance(calls, Sized) else 0
    for done, call in enumerate(calls, start=1):
        found = examine(call)
        if isinstance(found, Example):
            found = _outside(found, spec, count_tokens) or found
        if isinstance(found, Objection):
            detail = _printable(found.detail)
            drops.append(Drop(call_id=_printable(call.id), reason=found.reason, detail=detail))
        else:
            examples.append(found)
        if on_progress is not None:
            on_progress(done, total, "calls filtered")
    return examples, drops


def _printable(text: str) -> str:
    """Return ``text`` short enough for a list and without lone surrogates."""
    return text[:300].encode("utf-8", "replace").decode("utf-8")


def _outside(
    example: Example, spec: DatasetSpec, count_tokens: CountTokens | None
) -> Objection | None:
    """Object to examples that the spec leaves out."""
    if example.track not in spec.tracks:
        return Objection(DropReason.NO_TRACK, f"{example.track} is not among the spec's tracks")
    if spec.max_tokens is not None and count_tokens is not None:
        tokens = count_tokens(example)
        if tokens > spec.max_tokens:
            return Objection(DropReason.TOO_LONG, f"{tokens} tokens of {spec.max_tokens}")
    return None


def _keep_out(
    examples: list[Example], sources: Sequence[Frozen], spec: DatasetSpec
) -> tuple[list[Example], list[Drop], set[str]]:
    """Drop what repeats a question or conversation of a frozen test row, but not such a row.

    Returns the examples left, the drops, and the ids of those left that were test rows before.
    """
    files = [row for source in sources if not source.of_dataset for row in source.examples]
    rows = [row for source in sources if source.of_dataset for row in source.examples]
    in_file = KnownRows(files, spec.near_duplicates)
    in_dataset = KnownRows(rows, spec.near_duplicates)
    # By conversation too: the same row of another one would tie that one to the test split.
    tested = {(row.id, row.conversation_id) for row in rows}
    sources_of: dict[str, str] = {}
    for source in sources:
        for row in source.examples:
            sources_of.setdefault(row.id, source.id)
    kept: list[Example] = []
    drops: list[Drop] = []
    again: set[str] = set()
    for example in examples:
        is_tested = (example.id, example.conversation_id) in tested
        leak = in_file.leak(example) or (None if is_tested else in_dataset.leak(example))
        if leak is None:
            kept.append(example)
            if is_tested:
                again.add(example.id)
            continue
        drops.append(
            Drop(
                call_id=example.source_call_id or example.id,
                reason=DropReason.FROZEN_TEST,
                detail=f"same {leak.key} as {leak.other} of {sources_of[leak.other]}",
            )
        )
    return kept, drops, again


def _require(have: int, spec: DatasetSpec, drops: Sequence[Drop]) -> None:
    if have >= spec.min_examples:
        return
    missing = spec.min_examples - have
    reasons = ", ".join(f"{count} {reason}" for reason, count in count_drops(drops).items())
    raise NotEnoughCalls(
        f"A dataset needs {spec.min_examples} examples and {have} of {have + len(drops)} calls "
        f"qualify: {missing} more are missing. Dropped: {reasons or 'none'}. Capture more calls, "
        "or lower min_examples for a trial.",
        have=have,
        need=spec.min_examples,
        missing=missing,
    )


def _write(
    splits: Splits,
    drops: Sequence[Drop],
    spec: DatasetSpec,
    out_dir: Path | str,
    sources: Sequence[Frozen],
    count_tokens: CountTokens | None,
) -> Dataset:
    prefix = get_prefix(spec.export_prefix)
    files: dict[str, str] = {}
    for split in SPLITS:
        name, rows = split_file(split), splits[split]
        files[name] = to_jsonl(example.model_dump(mode="json") for example in rows)
        files[f"hermes/{name}"] = to_jsonl(map(hermes_row, rows))
        files[f"prompt_completion/{name}"] = to_jsonl(
            prompt_completion_row(example, prefix) for example in rows
        )
    identity = dataset_id({name: sha256_hex(text) for name, text in files.items()})
    counts = count_rows(splits, drops, count_tokens)
    files["drops.jsonl"] = to_jsonl(drop.model_dump(mode="json") for drop in drops)
    files["statistics.json"] = json.dumps(counts, indent=2, ensure_ascii=False) + "\n"
    files["statistics.md"] = to_markdown(identity, counts)

    def describe(path: str, hashes: dict[str, str]) -> Dataset:
        return Dataset(
            id=identity,
            path=path,
            rows=counts["rows"],
            files=hashes,
            calls=counts["calls"],
            drops=counts["drops"],
            spec_digest=sha256_hex(canonical_json(spec)),
            parent_test_ids=tuple(source.id for source in sources),
        )

    return write_dataset(out_dir, files, describe)
