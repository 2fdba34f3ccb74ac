"""Claimed calls to a dataset; test cases that every arm is scored on."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.artifacts import create_table_artifact

from slm_core.dataset import build
from slm_core.dataset.files import replace_file
from slm_core.presets import RetrainSpec, TestSetSpec, TrainSpec
from slm_core.records import TRACKS, Call, Claim, ClaimState, Dataset, Example
from tasks._artifacts import showing
from tasks._progress import progress
from tasks._wiring import current_settings, opened_store, run_folder, step

if TYPE_CHECKING:
    from collections.abc import Callable

    from slm_core.dataset.berkeley import BerkeleyRows
    from slm_core.store import Store

log = logging.getLogger(__name__)


@step("build the dataset")
def build_dataset(spec: RetrainSpec, claim: Claim, run_id: str, keep_out: Path) -> Dataset:
    """Build the dataset of a run from its claim and all claims trained on before.

    A resumed run gets the dataset it began with, whatever was claimed since. ``keep_out`` is
    the test set: its questions never train. Neither do the test rows of finished runs, which
    are test rows again.
    """
    begun = run_folder(run_id) / "dataset.json"
    with opened_store() as store:
        if begun.exists():
            return store.datasets.save(Dataset.model_validate_json(begun.read_bytes()))
        done = store.claims.list(ClaimState.DONE)
        calls: list[Call] = [
            call for one in (*done, claim) for call in store.calls.select(claim_id=one.id)
        ]
        with progress("dataset") as on_progress:
            dataset = build(
                calls,
                spec.dataset,
                current_settings().home / "datasets",
                frozen=[keep_out, *_frozen(store)],
                count_tokens=_count_tokens(spec),
                on_progress=on_progress,
            )
        replace_file(begun, dataset.model_dump_json())
        return store.datasets.save(dataset)


@step("find or build the dataset")
def find_dataset(spec: TrainSpec, dataset_id: str | None, run_id: str) -> Dataset:
    """Return the dataset that a training run learns from.

    It is the one of that id or, without an id, what ``spec.rows_from`` says. In one that is
    built here no test row of a finished retraining trains. A resumed run gets the one that it
    began with.
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
                dataset = build(
                    calls,
                    spec.dataset,
                    folder,
                    frozen=_frozen(store),
                    count_tokens=_count_tokens(spec),
                    on_progress=on_progress,
                )
        dataset = store.datasets.save(dataset)
        replace_file(begun, dataset.model_dump_json())
        return dataset


def _frozen(store: Store) -> list[Dataset]:
    """Return the datasets of finished retrainings, oldest first: their test rows never train.

    A run that failed froze nothing, or its claim would have fewer rows to train on with every try.
    """
    owners = {one.owner for one in store.claims.list(ClaimState.DONE)}
    finished = {run.dataset_id for run in store.runs.list() if run.id in owners}
    return [one for one in store.datasets.frozen_tests() if one.id in finished]


def _count_tokens(spec: RetrainSpec | TrainSpec) -> Callable[[Example], int] | None:
    """Return what counts an example's tokens, where the plan asks for it: a tokenizer is slow."""
    if spec.dataset.max_tokens is None:
        return None
    from slm_core.backends.token_lengths import token_counter

    return token_counter(spec.training.base_model, spec.training.cep)


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
    with showing("berkeley rows"):
        what = "our own sample, not the leaderboard" if source == "sample" else source
        create_table_artifact(
            _berkeley_table(rows), key="berkeley-rows", description=f"Rows of {what}"
        )
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
