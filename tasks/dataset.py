"""Claimed calls to a dataset; test cases that every arm is scored on."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.artifacts import create_table_artifact

from slm_core.dataset import DatasetSpec, build
from slm_core.dataset.files import replace_file
from slm_core.presets import TestSetSpec, TrainSpec
from slm_core.records import TRACKS, Call, Claim, ClaimState, Dataset, Example
from tasks._progress import progress
from tasks._wiring import current_settings, opened_store, run_folder, step

if TYPE_CHECKING:
    from slm_core.dataset.berkeley import BerkeleyRows

log = logging.getLogger(__name__)


@step("build the dataset")
def build_dataset(spec: DatasetSpec, claim: Claim, run_id: str, keep_out: Path) -> Dataset:
    """Build the dataset of a run from its claim and all claims trained on before.

    A resumed run gets the dataset it began with, whatever was claimed since. ``keep_out`` is
    the test set: its questions never train. Neither do the test rows of finished runs; a run
    that failed froze nothing, or its claim would shrink with every try.
    """
    begun = run_folder(run_id) / "dataset.json"
    with opened_store() as store:
        if begun.exists():
            return store.datasets.save(Dataset.model_validate_json(begun.read_bytes()))
        done = store.claims.list(ClaimState.DONE)
        calls: list[Call] = [
            call for one in (*done, claim) for call in store.calls.select(claim_id=one.id)
        ]
        owners = {one.owner for one in done}
        finished = {run.dataset_id for run in store.runs.list() if run.id in owners}
        frozen = [one for one in store.datasets.frozen_tests() if one.id in finished]
        with progress("dataset") as on_progress:
            dataset = build(
                calls,
                spec,
                current_settings().home / "datasets",
                frozen=[keep_out, *frozen],
                on_progress=on_progress,
            )
        replace_file(begun, dataset.model_dump_json())
        return store.datasets.save(dataset)


@step("find or build the dataset")
def find_dataset(spec: TrainSpec, dataset_id: str | None, run_id: str) -> Dataset:
    """Return the dataset that a training run learns from.

    It is the one of that id or, without an id, what ``spec.rows_from`` says. A resumed run gets
    the one that it began with.
    """
    begun = run_folder(run_id) / "dataset.json"
    with opened_store() as store:
        if begun.exists():
            return store.datasets.save(Dataset.model_validate_json(begun.read_bytes()))
        known = store.datasets.list()
        if dataset_id is not None:
            dataset = store.datasets.get(dataset_id)
        elif spec.rows_from == "newest" and known:
            dataset = max(known, key=lambda one: one.created_at)
        else:
            calls = _hermes(spec) if spec.rows_from == "hermes" else list(store.calls.select())
            folder = current_settings().home / "datasets"
            with progress("dataset") as on_progress:
                dataset = build(calls, spec.dataset, folder, on_progress=on_progress)
        dataset = store.datasets.save(dataset)
        replace_file(begun, dataset.model_dump_json())
        return dataset


def _hermes(spec: TrainSpec) -> list[Call]:
    """Return the calls of the public set, on every track that is trained."""
    from slm_core.dataset.hub import load_hermes

    cache = current_settings().home / "hub-datasets"
    return [
        call
        for track in spec.training.tracks
        for call in load_hermes(track, data_files=spec.hermes_file, cache_dir=cache).calls
    ]


@step("make the test set")
def make_test_set(spec: TestSetSpec) -> Path:
    """Return the file of the test set; the same seed and size write the same synthetic one."""
    from slm_core.dataset.test_sets import write_test_set
    from slm_core.testing.workload import generate

    if spec.path is not None:
        return Path(spec.path)
    folder = current_settings().home / "test-sets"
    folder.mkdir(parents=True, exist_ok=True)
    if spec.berkeley is not None:
        return _berkeley(spec.berkeley, folder)
    path = folder / f"synthetic-{spec.seed}-{spec.rows_per_track}.jsonl"
    cases: list[Example] = [
        case for track in TRACKS for case in generate(spec.seed, spec.rows_per_track, "test", track)
    ]
    write_test_set(cases, path)
    return path


def _berkeley(source: str, folder: Path) -> Path:
    """Write the test set that the leaderboard's files give, and show what they do not."""
    from slm_core.dataset.berkeley import load_berkeley
    from slm_core.dataset.test_sets import gold_id, write_test_set
    from slm_core.testing.berkeley_sample import SAMPLE

    rows = load_berkeley(SAMPLE if source == "sample" else source)
    path = folder / f"berkeley-{gold_id(rows.examples)}.jsonl"
    write_test_set(rows.examples, path)
    reasons = Counter(one.reason.value for one in rows.left_out)
    replace_file(_left_out_file(path), json.dumps(reasons))
    log.info("berkeley rows read used=%d left_out=%d", len(rows.examples), len(rows.left_out))
    try:
        what = "our own sample, not the leaderboard" if source == "sample" else source
        create_table_artifact(
            _berkeley_table(rows), key="berkeley-rows", description=f"Rows of {what}"
        )
    except Exception as error:
        # The test set is written; not showing what it lacks undoes nothing.
        log.warning("berkeley rows not shown error=%s", type(error).__name__)
    return path


def _berkeley_table(rows: BerkeleyRows) -> list[dict[str, object]]:
    counts = Counter((one.domain, one.track, "used") for one in rows.examples)
    counts += Counter((one.category, one.track, one.reason.value) for one in rows.left_out)
    examples = {
        (one.category, one.track, one.reason.value): f"{one.row_id} {one.detail}".strip()
        for one in reversed(rows.left_out)
    }
    return [
        {
            "category": category,
            "track": track,
            "what": what,
            "rows": count,
            "for example": examples.get((category, track, what), ""),
        }
        for (category, track, what), count in sorted(counts.items())
    ]


def _left_out_file(test_set: Path) -> Path:
    return test_set.with_suffix(".left-out.json")


def read_left_out(test_set: Path) -> dict[str, int] | None:
    """Return reason to count of the rows that were not usable; None where all were made here."""
    file = _left_out_file(test_set)
    return json.loads(file.read_bytes()) if file.exists() else None


def read_questions(test_set: Path) -> dict[str, str]:
    """Return each case's last user turn, for the cases that a report shows."""
    from slm_core.dataset.test_sets import read_test_set

    return {case.id: case.prompt[-1].content for case in read_test_set(test_set)}
