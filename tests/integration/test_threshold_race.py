"""Ingests that race while the Prefect server dies start one retraining for each full batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.threshold_race import race

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def test_every_batch_becomes_one_claim_and_one_run(tmp_path: Path, postgres_url: str) -> None:
    outcome = race(tmp_path, postgres_url, ingests=3, calls=43, threshold=10, restarts=1)
    assert (outcome.calls, outcome.waiting) == (43, 3)
    assert outcome.calls_per_claim == (10, 10, 10, 10)
    assert (outcome.runs, outcome.claims_with_a_run) == (4, 4)
    assert outcome.killed_ingests > 0
