"""Checks of what lies outside: teacher, Langfuse and the Hugging Face hub."""

from __future__ import annotations

import httpx

from slm_core.cli.doctor.findings import Answer, failed, passed, warned
from slm_core.errors import ConfigError, TracingUnavailable
from slm_core.settings import Settings, Teacher

_SECONDS = 4.0


def teacher(settings: Settings) -> Answer:
    """Does the hosted model's endpoint answer, and take the key?"""
    page = "see RUNBOOK.md#teacher-unreachable"
    try:
        found = settings.teacher()
    except ConfigError as error:
        seen = f"{error.message} {', '.join(error.problems)} in this shell."
        mend = "set it where the workers run, as their service files do, and ask there again"
        return failed(seen, mend) if settings.names_teacher else warned(seen, mend)
    address, headers = _models_page(found)
    where = f"The teacher {found.model} at {found.endpoint or 'api.openai.com'}"
    try:
        answer = httpx.get(address, headers=headers, timeout=_SECONDS)
    except httpx.HTTPError as error:
        return failed(f"{where} does not answer ({type(error).__name__}).", page)
    if answer.status_code in (401, 403):
        return failed(f"{where} refuses the key: HTTP {answer.status_code}.", "renew the key", page)
    if answer.status_code in (429, 500, 502, 503, 504):
        return warned(f"{where} answers HTTP {answer.status_code}.", page)
    if answer.is_success:
        return passed(f"{where} answers and takes the key.")
    return passed(
        f"{where} answers (HTTP {answer.status_code} for its list of models, so the key was not "
        "tried)."
    )


def _models_page(teacher: Teacher) -> tuple[str, dict[str, str]]:
    key = teacher.api_key.get_secret_value()
    if teacher.kind == "azure":
        page = f"{teacher.endpoint}/openai/models?api-version={teacher.api_version}"
        return page, {"api-key": key}
    base = teacher.endpoint or "https://api.openai.com/v1"
    return f"{base}/models", {"authorization": f"Bearer {key}"}


def langfuse(settings: Settings) -> Answer:
    """Would Langfuse take the traces of a run?"""
    config = settings.langfuse().model_copy(update={"timeout_seconds": _SECONDS})
    page = "see RUNBOOK.md#langfuse-unreachable"
    if problems := config.problems():
        seen = f"Traces stay in the store: {'; '.join(problems)}."
        mend = ("set the LANGFUSE_ variables, then: slm traces push", page)
        if settings.require_langfuse or config.public_key:
            return failed(seen, *mend)
        return warned(seen, *mend)
    from slm_core.tracing import check_langfuse

    try:
        check_langfuse(config)
    except TracingUnavailable as error:
        return failed(str(error), "slm traces check", page)
    return passed(f"Langfuse at {config.base_url} takes traces.")


def hub(settings: Settings) -> Answer:
    """Can base models be had from the Hugging Face hub?"""
    try:
        from huggingface_hub import constants
    except ImportError:
        return warned("huggingface_hub is not installed; only model folders can be used.")
    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    if constants.HF_HUB_OFFLINE:
        return warned("HF_HUB_OFFLINE is set: models come from folders and the cache only.")
    address = f"{constants.ENDPOINT}/api/whoami-v2"
    try:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        answer = httpx.get(address, headers=headers, timeout=_SECONDS)
    except httpx.HTTPError as error:
        return warned(
            f"{constants.ENDPOINT} does not answer ({type(error).__name__}): models come from "
            "folders and the cache only.",
            "slm models check PRESET",
        )
    if token is None:
        return warned(
            f"{constants.ENDPOINT} answers; HF_TOKEN is not set, so gated models cannot be had.",
            "set HF_TOKEN where the workers run",
        )
    if answer.status_code in (401, 403):
        return failed(f"{constants.ENDPOINT} refuses HF_TOKEN.", "renew the token")
    if not answer.is_success:
        return warned(f"{constants.ENDPOINT} answers HTTP {answer.status_code}.")
    return passed(f"{constants.ENDPOINT} answers and takes HF_TOKEN.")
