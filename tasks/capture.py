"""Spool to store, and store to claims."""

from __future__ import annotations

from slm_core.capture import drain_spool
from slm_core.dataset import drop_reason
from slm_core.records import Call, Claim, IngestReport
from tasks._progress import progress
from tasks._wiring import current_settings, opened_store, step


@step("drain the capture spool")
def ingest_spool() -> IngestReport:
    """Bring captured calls into the store and claim each full batch of usable ones."""
    settings = current_settings()
    with opened_store() as store, progress("ingest") as on_progress:
        report = drain_spool(
            settings.spool_dir, store, usable=_why_unusable, on_progress=on_progress
        )
        # Also when nothing new came: an ingest that was killed may have left calls unclaimed.
        claims = store.claims.make(settings.retrain_threshold)
        return report.model_copy(
            update={"claims": tuple(c.id for c in claims), "waiting": store.calls.waiting()}
        )


@step("take a claim")
def take_claim(claim_id: str | None, owner: str) -> Claim | None:
    """Return the claim that ``owner`` may train on, or None when there is none for it."""
    with opened_store() as store:
        if claim_id is None:
            return store.claims.take_next(owner)
        return store.claims.take(claim_id, owner)


@step("give a claim back")
def release_claim(claim: Claim, owner: str) -> None:
    """Return a claim to the pool, for another run to take."""
    with opened_store() as store:
        store.claims.release(claim.id, owner)


@step("close a claim")
def finish_claim(claim: Claim, owner: str) -> None:
    """Mark a claim as trained on."""
    with opened_store() as store:
        store.claims.done(claim.id, owner)


def _why_unusable(call: Call) -> str | None:
    dropped = drop_reason(call)
    return dropped[0].value if dropped else None
