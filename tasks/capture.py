"""Spool to store, and store to claims."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from slm_core.capture import drain_spool
from slm_core.dataset import why_unusable
from slm_core.errors import StoreError
from slm_core.records import Claim, ClaimState, IngestReport
from tasks._progress import progress
from tasks._wiring import current_settings, opened_store, step
from tasks.resuming import is_gone_for_good

if TYPE_CHECKING:
    from slm_core.store import Store


@step("drain the capture spool")
def ingest_spool() -> IngestReport:
    """Bring captured calls into the store and claim each full batch of usable ones."""
    settings = current_settings()
    with opened_store() as store, progress("ingest") as on_progress:
        report = drain_spool(
            settings.spool_dir, store, usable=why_unusable, on_progress=on_progress
        )
        # Also when nothing new came: an ingest that was killed may have left calls unclaimed.
        claims = store.claims.make(settings.retrain_threshold)
        return report.model_copy(
            update={"claims": tuple(c.id for c in claims), "waiting": store.calls.waiting()}
        )


@step("take a claim")
def take_claim(claim_id: str | None, owner: str) -> Claim | None:
    """Return the claim that ``owner`` may train on, or None when there is none for it.

    Without an id it is the oldest that is free, or else that of a run which is gone for good.
    """
    with opened_store() as store:
        if claim_id is not None:
            return store.claims.take(claim_id, owner)
        free = store.claims.take_next(owner)
        return free or _take_over(store, owner)


def _take_over(store: Store, owner: str) -> Claim | None:
    for claim in store.claims.list(ClaimState.RUNNING):
        if claim.owner is None or not is_gone_for_good(claim.owner):
            continue
        with suppress(StoreError):  # another run was quicker
            store.claims.force_release(claim.id, f"run {owner}", owner=claim.owner)
            if (taken := store.claims.take(claim.id, owner)) is not None:
                return taken
    return None


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
