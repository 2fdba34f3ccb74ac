"""The page of a training that goes on: figures, loss curve, what was changed, where to look."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from slm_core.records import Attempt, Triage, utc_now
from slm_core.report.training_page import LiveTraining, live_markdown
from slm_core.settings import Settings
from slm_core.tracing.ids import trace_id
from slm_core.training.events import EventFile, StepEvent
from slm_core.training.run_folder import RunFolder
from tasks._events import announce_sick
from tasks._progress import LivePage


class LiveTrainingPage:
    """Follows the files of one training."""

    def __init__(self, run_id: str, traced_as: str, folder: Path, settings: Settings) -> None:
        """Follow training ``run_id`` in ``folder``; ``traced_as`` is the run it is part of."""
        self._run_id = run_id
        self._traced_as = traced_as
        self._run = RunFolder(folder)
        self._settings = settings
        self._events = EventFile(self._run.events)
        self._steps: dict[int, StepEvent] = {}
        self._sick: set[str] = set()
        self.attempts: tuple[Attempt, ...] = ()

    @property
    def title(self) -> str:
        """What it is, in a word or two: the track where a run has a training for each."""
        return " ".join(["train", *self._run_id.removeprefix(self._traced_as).split("-")]).strip()

    def live(self) -> LivePage:
        """Return what ``progress`` shows."""
        return LivePage("training-live", f"Training {self._run_id} as it goes", self._render)

    def follow(self, attempts: tuple[Attempt, ...]) -> None:
        """Take in how the attempts stand; tell once of each GPU that was found sick."""
        self.attempts = attempts
        for attempt in attempts:
            found = attempt.fault and attempt.fault.details.get("triage")
            if not found:
                continue
            triage = Triage.model_validate(found)
            for gpu in triage.sick:
                if gpu not in self._sick:
                    self._sick.add(gpu)
                    announce_sick(gpu, triage.reason, action=triage.action, run_id=self._run_id)

    def _render(self) -> str:
        for event in self._events.read_new():
            # After a crash, steps are taken again.
            self._steps = {n: one for n, one in self._steps.items() if n < event.step}
            self._steps[event.step] = event
        points = list(self._steps.values())
        last = points[-1] if points else None
        return live_markdown(
            LiveTraining(
                run_id=self._run_id,
                points=points,
                total_steps=last.total_steps if last else None,
                eta_seconds=last.eta_seconds if last else None,
                gpu_bytes=last.gpu_bytes if last else None,
                cost_usd=self._cost(),
                attempts=self.attempts,
                links=dict(self._links()),
            )
        )

    def _cost(self) -> float | None:
        price = self._settings.training_usd_per_hour
        if price is None:
            return None
        now = utc_now()
        spans = [((a.ended_at or now) - a.started_at).total_seconds() for a in self.attempts]
        return sum(spans) / 3600 * price

    def _links(self) -> Iterable[tuple[str, str]]:
        yield "TensorBoard", f"`tensorboard --logdir {self._run.tensorboard}` on the worker"
        page = self._settings.langfuse().trace_page(trace_id(self._traced_as))
        if page is not None:
            yield "Langfuse", f"[the trace of this run]({page}), from its end on"
        yield "worker's log", f"`{self._run.log}`"
        report = self._run.path.parent / "report" / "report.html"
        if report.exists():
            yield "report", f"`{report}`"
