"""Flow ``ingest``: spool to store, then one retraining per full batch of usable calls."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from slm_core.records import ClaimState, IngestReport
from tasks._artifacts import showing
from tasks._events import announce
from tasks._wiring import opened_store
from tasks.capture import ingest_spool

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

log = logging.getLogger(__name__)

RETRAIN = "retrain/on-threshold"


@flow(name="ingest")
def ingest_calls(submit: bool = True) -> IngestReport:
    """Take captured calls into the store and start a retraining for each claim.

    Args:
        submit: start ``retrain/on-threshold`` for claims that wait; False only makes them.
    """
    report = ingest_spool()
    counts = report.model_dump(exclude={"unusable", "claims"}) | report.unusable
    with showing("ingest"):
        create_table_artifact(
            [{"what": what, "calls": count} for what, count in counts.items()],
            key="ingest",
            description="Calls read, stored and left out, with reasons",
        )
    if submit:
        _start_retrainings()
    return report


def _start_retrainings() -> None:
    """Start one run for each claim that has none yet, also those an earlier ingest left."""
    with opened_store() as store:
        for claim in store.claims.list(ClaimState.NEW):
            try:
                # The same key returns the run that is already there: never two for a claim.
                run = cast(
                    "FlowRun",
                    run_deployment(
                        RETRAIN,
                        parameters={"claim_id": claim.id, "reason": "threshold"},
                        timeout=0,
                        as_subflow=False,
                        idempotency_key=f"retrain-{claim.id}-{claim.attempts}",
                    ),
                )
            except ObjectNotFound:
                log.warning("claim waits: no deployment %s; run `make deploy`", RETRAIN)
                return
            store.claims.submitted(claim.id)
            log.info("retraining started claim=%s run=%s", claim.id, run.id)
            announce(
                "slm.captures.threshold-reached",
                f"slm.claim.{claim.id}",
                claim_id=claim.id,
                calls=claim.size,
            )


if __name__ == "__main__":
    ingest_calls()
