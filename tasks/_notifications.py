"""Who is told what: one webhook block, and an automation for each kind of news.

The Prefect server calls the webhook itself, so news goes out while every worker is dead. It
calls once and does not look at the answer: a receiver that is away for that moment misses it. So
no news is the only word of anything. What still needs a person is found again by the flow
``status``, once an hour, and said again twice a day until it is seen to.

The address is the setting ``SLM_NOTIFY_URL``, read where the project is deployed and kept in the
block alone. Deploying without it changes nothing about who is told. A training that fails is told
of by the server's own event of the run, which is written with the run's state;
``slm.training.failed`` is for a run that nothing goes on with although no flow run failed.
"""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from typing import NamedTuple, cast
from uuid import UUID

from prefect import get_client
from prefect.blocks.webhook import Webhook
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.types import SecretDict
from pydantic import SecretStr

from slm_core.status import RunbookPage

log = logging.getLogger(__name__)

BLOCK = "slm-notify"
"""Name of the webhook block."""

AGAIN_AFTER = timedelta(hours=12)
"""What still needs a person is said again."""


class News(NamedTuple):
    """One kind of news, and when it is sent."""

    name: str
    events: tuple[str, ...]
    """Any of which tells it."""
    text: str
    """What happened, as a Jinja template; ``event`` and ``flow_run`` are what it may use."""
    runbook: RunbookPage | None = None
    """What to do; None where nothing is to be done."""
    resource: str = "slm.*"
    flows: tuple[str, ...] = ()
    """Flows whose runs it is about; empty asks for none."""
    quiet: timedelta = timedelta(0)
    """How long the same is not sent again."""


NEWS = (
    News(
        "threshold reached",
        ("slm.captures.threshold-reached",),
        "{{ event.payload.calls }} new usable calls: claim {{ event.payload.claim_id }} is "
        "being trained on.",
    ),
    News(
        "run failed",
        ("prefect.flow-run.Failed",),
        "Run {{ flow_run.name }} failed: {{ (flow_run.state.message or '')[:300] }}",
        runbook="training-failed",
        resource="prefect.flow-run.*",
        flows=("retrain", "train"),
    ),
    News(
        "training given up",
        ("slm.training.failed",),
        "Nothing goes on with training {{ event.resource.id[8:] }} by itself: "
        "{{ event.payload.why }}",
        runbook="training-failed",
    ),
    News(
        "gpu sick",
        ("slm.gpu.sick",),
        "GPU {{ event.resource.id[8:] }} on {{ event.payload.host }} is sick: "
        "{{ event.payload.why }}",
        runbook="gpu-sick",
        quiet=timedelta(hours=1),  # the next run's preflight finds the same card sick
    ),
    News(
        "promotion waiting",
        ("slm.promotion.waiting",),
        "Promotion {{ event.resource.id[14:] }} waits for a person.",
        runbook="promotion-waiting",
    ),
    News(
        "promotion failed",
        ("prefect.flow-run.Failed", "prefect.flow-run.Crashed"),
        "Promotion run {{ flow_run.name }} did not come to its end: "
        "{{ (flow_run.state.message or '')[:300] }}",
        runbook="promotion-waiting",
        resource="prefect.flow-run.*",
        flows=("promote",),
    ),
    News(
        "canary stepped back",
        ("slm.canary.stepped-back",),
        "The canary of {{ event.payload.routes }} was taken back: {{ event.payload.reason }}",
        runbook="canary-stepped-back",
    ),
    News(
        "needs a person",
        ("slm.status.needs-person",),
        "{{ event.payload.why }}",
        resource="slm.concern.*",
        quiet=AGAIN_AFTER,
    ),
)


def notification_automations(url: SecretStr | None) -> tuple[AutomationCore, ...]:
    """Return the automations that call the webhook block, and keep ``url`` in it if one is given.

    Without an address a block that is there stays as it is: a shell that does not name one asks
    for no silence. Where there is no block there are no automations either.
    """
    block_id = _find_block() if url is None else _save_block(url)
    if block_id is None:
        return ()
    return tuple(
        AutomationCore(
            name=f"slm: notify, {news.name}",
            description=f"Calls the webhook block {BLOCK}.",
            trigger=_trigger(news),
            actions=[CallWebhook(block_document_id=block_id, payload=_payload(news))],
        )
        for news in NEWS
    )


def forget_address() -> None:
    """Remove the webhook block, if there is one; nobody is told anything after that."""
    block_id = _find_block()
    if block_id is not None:
        with get_client(sync_client=True) as client:
            client.delete_block_document(block_id)
        log.info("webhook block removed name=%s", BLOCK)


def _find_block() -> UUID | None:
    with get_client(sync_client=True) as client:
        try:
            return client.read_block_document_by_name(BLOCK, "webhook").id
        except ObjectNotFound:
            return None


def _save_block(url: SecretStr) -> UUID:
    block = Webhook(
        url=url, method="POST", headers=SecretDict({"Content-Type": "application/json"})
    )
    return cast(UUID, block.save(BLOCK, overwrite=True))


def _trigger(news: News) -> EventTrigger:
    related = {"prefect.resource.role": "flow", "prefect.resource.name": list(news.flows)}
    return EventTrigger(
        expect=set(news.events),
        match=ResourceSpecification.model_validate({"prefect.resource.id": news.resource}),
        match_related=ResourceSpecification.model_validate(related if news.flows else {}),
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=news.quiet,
    )


def _payload(news: News) -> str:
    """Return the template of the JSON that is sent; every value in it is made JSON when sent."""
    runbook = "{{ (event.payload.runbook or none) | tojson }}"
    return (
        "{% set text %}" + news.text + "{% endset %}"
        '{"text": {{ text | tojson }},'
        f' "news": {json.dumps(news.name)},'
        ' "about": {{ event.resource.id | tojson }},'
        ' "run": {{ (flow_run | ui_url if flow_run else none) | tojson }},'
        f' "runbook": {json.dumps(news.runbook) if news.runbook else runbook},'
        ' "occurred": {{ event.occurred | string | tojson }}}'
    )
