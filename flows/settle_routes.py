"""Flow ``settle``: weak canaries are taken back, and promotions brought to their end.

A deployment of its own, because a canary that answers wrongly must not wait for anything else:
not for an ingest that fails, and not for one that was paused.
"""

from __future__ import annotations

from typing import Any

from prefect import State, flow

from tasks.settling import ask_for_candidates, close_requests, guard_canaries, make_approved_moves


@flow(name="settle")
def settle_routes() -> list[State[Any]]:
    """Take weak canaries back, close dead requests, make approved moves, ask for candidates."""
    steps = (guard_canaries, close_requests, make_approved_moves, ask_for_candidates)
    # One that fails turns the run red, and keeps no other back.
    return [one(return_state=True) for one in steps]


if __name__ == "__main__":
    settle_routes()
