"""What a server and its worker processes say to each other, and which model is meant."""

from __future__ import annotations

from typing import NamedTuple

from slm_core.backends.base import Completion, Request
from slm_core.errors import PromptMismatch, SlmError
from slm_core.prompting.prefix import PREFIXES, Variant
from slm_core.records import Adapter, content_id
from slm_core.records.capture import STUDENT_FINGERPRINT


class ModelSource(NamedTuple):
    """Everything that decides how a model answers."""

    model_path: str
    adapter_path: str | None = None
    variant: Variant | None = None
    """Of the context prefix."""
    adapter_id: str | None = None

    @property
    def fingerprint(self) -> str:
        """Changes when the model behind a name does; an adapter's says that a student answers.

        A base model alone may be a teacher, so its answers stay fit to learn from.
        """
        digest = content_id("fp", list(self))
        return digest if self.adapter_path is None else STUDENT_FINGERPRINT + digest


def source_of(adapter: Adapter, base_model: str | None = None) -> ModelSource:
    """Return how to load ``adapter``, on ``base_model`` if its own base lies elsewhere here.

    Raises:
        PromptMismatch: this version has no such context prefix.
    """
    variant: Variant | None = next((v for v, p in PREFIXES.items() if p.id == adapter.cep_id), None)
    if adapter.cep_id is not None and variant is None:
        raise PromptMismatch(
            f"Adapter {adapter.id} was trained with the context prefix {adapter.cep_id}, which "
            "this version does not have. Serve it with the version that trained it, or train "
            "again.",
            code_version=adapter.code_version,
        )
    return ModelSource(base_model or adapter.base_model, adapter.path, variant, adapter.id)


class Load(NamedTuple):
    """To a worker: have this model in memory."""

    number: int
    source: ModelSource


class Run(NamedTuple):
    """To a worker: answer this."""

    number: int
    source: ModelSource
    request: Request
    max_tokens: int
    stop: tuple[str, ...]
    stream: bool


class Cancel(NamedTuple):
    """To a worker: nobody waits for this answer any more."""

    number: int


class Delta(NamedTuple):
    """From a worker: the next piece of a streamed answer."""

    text: str


class Done(NamedTuple):
    """From a worker: the whole answer; None after ``Load`` or ``Cancel``."""

    completion: Completion | None


class Failed(NamedTuple):
    """From a worker: there will be no answer."""

    error: SlmError


Event = Delta | Done | Failed
