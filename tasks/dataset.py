"""Claimed calls to a dataset; test cases that every arm is scored on."""

from __future__ import annotations

from pathlib import Path

from slm_core.dataset import DatasetSpec, build
from slm_core.dataset.files import replace_file
from slm_core.presets import TestSetSpec, TrainSpec
from slm_core.records import TRACKS, Call, Claim, ClaimState, Dataset, Example
from tasks._progress import progress
from tasks._wiring import current_settings, opened_store, run_folder, step


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
    path = folder / f"synthetic-{spec.seed}-{spec.rows_per_track}.jsonl"
    cases: list[Example] = [
        case for track in TRACKS for case in generate(spec.seed, spec.rows_per_track, "test", track)
    ]
    write_test_set(cases, path)
    return path


def read_questions(test_set: Path) -> dict[str, str]:
    """Return each case's last user turn, for the cases that a report shows."""
    from slm_core.dataset.test_sets import read_test_set

    return {case.id: case.prompt[-1].content for case in read_test_set(test_set)}
