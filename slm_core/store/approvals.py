"""Requests for a promotion, and the one answer that each gets."""

from __future__ import annotations

from datetime import datetime

from slm_core.errors import StoreError
from slm_core.records import Approval, ApprovalState, utc_now
from slm_core.store import schema
from slm_core.store.table import RecordTable


class Approvals(RecordTable[Approval]):
    """What was asked, by whom it was answered, when and why; an answer never changes."""

    table = schema.approvals
    record_type = Approval

    def of_run(self, run_id: str) -> Approval | None:
        """Return what a flow run asked; None when it has not asked yet."""
        return next(iter(self._select(schema.approvals.c.run_id == run_id)), None)

    def waiting(self) -> tuple[Approval, ...]:
        """Return the requests that nobody has answered, oldest first."""
        return self._select(schema.approvals.c.state == ApprovalState.WAITING)

    def decide(
        self,
        approval_id: str,
        state: ApprovalState,
        *,
        who: str,
        reason: str,
        share: float | None = None,
        now: datetime | None = None,
    ) -> Approval:
        """Answer a request; return it as it is stored now.

        An answer that comes after ``expires_at`` is stored as an expiry. The same answer a
        second time changes nothing.

        Args:
            approval_id: the request.
            state: the answer.
            who: person, or the rule that answers in place of one.
            reason: why.
            share: for a canary, in place of the share that was asked for.
            now: moment of the answer; by default the present.

        Raises:
            RecordNotFound: there is no such request.
            StoreError: it was answered otherwise before.
        """
        now = now or utc_now()
        with self._database.write(alone=True) as connection:
            stored = self._get(connection, approval_id)
            late = stored.state is ApprovalState.WAITING and now >= stored.expires_at
            if late:
                state, who = ApprovalState.EXPIRED, "timeout"
                reason = f"nobody answered before {stored.expires_at:%Y-%m-%d %H:%M} UTC"
            answer = {"state": state, "who": who, "reason": reason}
            if stored.state is not ApprovalState.WAITING:
                if {name: getattr(stored, name) for name in answer} == answer:
                    return stored
                raise StoreError(
                    f"Request {approval_id!r} was {stored.state.value} by {stored.who!r} already; "
                    "an answer never changes. Ask again: start promote/adapter once more.",
                    offered=state,
                )
            if share is not None:
                answer["share"] = share
            decided = stored.model_copy(update={**answer, "decided_at": now})
            self._replace(connection, decided)
            return decided

    def note_refusal(self, approval_id: str, reason: str | None) -> Approval:
        """Note why an approved request was not carried out in full; None says that now it was.

        Raises:
            RecordNotFound: there is no such request.
        """
        with self._database.write(alone=True) as connection:
            stored = self._get(connection, approval_id)
            noted = stored.model_copy(update={"refused": reason})
            self._replace(connection, noted)
            return noted
