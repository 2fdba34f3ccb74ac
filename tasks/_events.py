"""Our events: what notifications, and whoever else listens to the server, learn of.

An event is a feed and never the record. What must not be lost is in the store or in a run's
folder before the event is sent, and the flow ``status`` finds it there when an event was lost.
"""

from __future__ import annotations

import logging
import socket
from typing import Literal

from prefect.events import emit_event

log = logging.getLogger(__name__)

EventName = Literal[
    "slm.captures.threshold-reached",  # slm.claim.ID
    "slm.training.failed",  # slm.run.ID
    "slm.gpu.sick",  # slm.gpu.UUID
    "slm.promotion.waiting",  # slm.promotion.ID
    "slm.promotion.decided",  # slm.promotion.ID
    "slm.canary.stepped-back",  # slm.promotion.ID
    "slm.status.needs-person",  # slm.concern.KEY
]
"""Every event, with the resource that it is about."""

_LONGEST = 300
"""Characters of one value; more would be somebody's text and not a fact."""


def announce(event: EventName, resource_id: str, **payload: str | float | bool | None) -> None:
    """Send one event to the Prefect server; a server that is away is no error.

    The run that it is sent from is attached by Prefect. Values are ids, counts and short
    sentences of ours: never a prompt, an answer or a secret.
    """
    facts = {
        name: value[:_LONGEST] if isinstance(value, str) else value
        for name, value in payload.items()
    }
    try:
        emit_event(event, resource={"prefect.resource.id": resource_id}, payload=facts)
    except Exception as error:
        # Notifications are a convenience: nothing that works may end because one was not sent.
        log.warning("event not sent event=%s error=%s", event, type(error).__name__)


def announce_sick(gpu: str, why: str, **facts: str | None) -> None:
    """Tell that a GPU of this machine, by UUID or PCI address, must not be trained on."""
    announce("slm.gpu.sick", f"slm.gpu.{gpu}", host=socket.gethostname(), why=why, **facts)
