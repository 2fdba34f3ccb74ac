"""Every error that SLM Swap raises on purpose, in one tree.

    SlmError
      ConfigError             a spec or setting cannot be met; lists every problem at once
      MissingDependency       an optional package is absent; carries the install line
      CaptureError            a call could not be captured; never escapes into the caller's app
      StoreError
        StoreUnavailable      (retryable) the database did not answer
        RecordNotFound        no such id
      BackendError            a model server refused or answered nonsense
        BackendUnavailable    (retryable) it did not answer at all, or asked us to wait
          Overloaded          (retryable) it has as many requests as it can queue
        PromptTooLong         the prompt does not fit the model's context
      ModelError              a model folder is missing, incomplete or not what it claims
      HubError                the Hugging Face hub refused an upload or did not answer
      DatasetError
        NotEnoughCalls        fewer usable calls than the dataset needs
        LeakFound             a test row also occurs in the training data
      TrainingError
        SpecChanged           a resumed run would continue under another spec
        CheckpointCorrupt     no checkpoint of the run verifies
        TrainingDiverged      the loss is not finite
        OutOfGpuMemory        the worker has no more ways to make a step smaller
        DiskFull              a file of the run could not be written
        GpuFault              a GPU or its driver failed; somebody has to do something first
        RecoveryExhausted     every way to go on was tried; the whole history is in the context
        WorkerDied            (retryable) the training process ended without a result
        RunBusy               (retryable) another trainer holds the run directory
        MergeRejected         a merged model answers otherwise than base and adapter
      EvaluationError
      BadRequest              a request to a server of ours cannot be honoured
      StackError              a part of the local stack did not start or did not stop
      TracingUnavailable      Langfuse is required and does not answer
      PrefectUnavailable      (retryable) the Prefect server does not answer, or refuses us
      IllegalPromotion        a route may not move that way
        PromptMismatch        an adapter would see another prompt than in training

A message says what happened, the numbers, and what to do. The same numbers are in
``context`` for machines. Rejected models, bad rows and GPU faults are records, not errors.
A folder may have exceptions of its own as signals between its files; they never leave it.
"""

from __future__ import annotations

from typing import Any, Self


class SlmError(Exception):
    """Base of every SLM Swap error; pickles with its context.

    ``retryable`` says whether doing exactly the same again may succeed; Prefect retries
    only those.
    """

    retryable: bool = False

    def __init__(self, message: str, **context: Any) -> None:
        super().__init__(message)
        self.message = message
        self.context = context

    def __str__(self) -> str:
        if not self.context:
            return self.message
        numbers = ", ".join(f"{key}={value!r}" for key, value in self.context.items())
        return f"{self.message} ({numbers})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.context)


def _rebuild(cls: type[SlmError], message: str, context: dict[str, Any]) -> SlmError:
    return cls(message, **context)


class ConfigError(SlmError):
    """A spec, preset or setting cannot be met. ``problems`` lists all of them."""

    def __init__(self, message: str, *, problems: tuple[str, ...] = (), **context: Any) -> None:
        problems = tuple(problems)
        super().__init__(message, **({"problems": problems} if problems else {}), **context)
        self.problems = problems

    def __str__(self) -> str:
        if not self.problems:
            return super().__str__()
        return "\n  - ".join([self.message, *self.problems])


class MissingDependency(SlmError):
    """An optional package is not installed; the message holds the install line."""

    @classmethod
    def of_extra(cls, extra: str, what: str, error: ImportError | None = None) -> Self:
        """Return the error of a package that an extra of this project brings.

        Args:
            extra: its name in pyproject.toml.
            what: what needs which package, without a full stop.
            error: of the import, where one failed.
        """
        said = f" ({error})" if error is not None else ""
        return cls(f"{what}{said}. Run: {install_line(extra)}")


def install_line(extra: str) -> str:
    """Return the command that installs an extra, in the checkout; versions as they were tested."""
    return f"pip install -c constraints.txt -e '.[{extra}]'"


class CaptureError(SlmError):
    """A call could not be captured."""


class StoreError(SlmError):
    """The store refused an operation."""


class StoreUnavailable(StoreError):
    """The database did not answer, or is read-only."""

    retryable = True


class RecordNotFound(StoreError):
    """The store holds no record of that id."""


class BackendError(SlmError):
    """A model server refused a request or answered nonsense."""


class BackendUnavailable(BackendError):
    """A model server did not answer, or asked us to come back later."""

    retryable = True


class Overloaded(BackendUnavailable):
    """A model server has as many requests as it can queue."""


class PromptTooLong(BackendError):
    """The rendered prompt does not fit the model's context."""


class ModelError(SlmError):
    """A model or adapter folder is missing, incomplete or not what it claims to be."""


class HubError(SlmError):
    """The Hugging Face hub refused an upload, or did not answer."""


class DatasetError(SlmError):
    """A dataset could not be built or read."""


class NotEnoughCalls(DatasetError):
    """Fewer usable calls than a dataset needs."""


class LeakFound(DatasetError):
    """A row of the test split also occurs in the training data."""


class TrainingError(SlmError):
    """Training stopped for a reason that is not a hardware fault."""


class SpecChanged(TrainingError):
    """A run would be resumed under another spec than the one that began it."""


class CheckpointCorrupt(TrainingError):
    """No checkpoint of the run verifies."""


class TrainingDiverged(TrainingError):
    """The loss or the gradient is not finite."""


class OutOfGpuMemory(TrainingError):
    """A worker ran out of GPU memory and cannot make its steps any smaller."""


class DiskFull(TrainingError):
    """A file of the run could not be written; ``free_bytes`` says what was left."""


class GpuFault(TrainingError):
    """A GPU or its driver failed. ``action`` and ``commands`` in ``context`` say what to do."""


class RecoveryExhausted(TrainingError):
    """Every way to go on was tried; ``history`` in ``context`` has each attempt and its end."""


class WorkerDied(TrainingError):
    """The training process ended without a result."""

    retryable = True


class RunBusy(TrainingError):
    """Another trainer is at work in the run directory."""

    retryable = True


class MergeRejected(TrainingError):
    """A merged model answers otherwise than its base model with the adapter does."""


class EvaluationError(SlmError):
    """An evaluation could not be carried out."""


class BadRequest(SlmError):
    """A request to a server of ours cannot be honoured; ``param`` in ``context`` is the field."""


class StackError(SlmError):
    """A part of the local stack did not start, or did not stop; its log is named."""


class TracingUnavailable(SlmError):
    """Langfuse is required (SLM_REQUIRE_LANGFUSE=1) and does not answer."""


class PrefectUnavailable(SlmError):
    """The Prefect server does not answer, or refuses what was asked; ``status`` if it said so."""

    retryable = True


class IllegalPromotion(SlmError):
    """A route may not move from its present state to the one asked for."""


class PromptMismatch(IllegalPromotion):
    """An adapter would see another template, prefix or tool format than in training."""
