"""A small service to run flows in: settings, a spool, a teacher that is right, a tiny student."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from slm_core.dataset import DatasetSpec
from slm_core.presets import NANO, EvalSpec, RetrainSpec
from slm_core.presets import TestSetSpec as CasesSpec
from slm_core.records import TRACKS, Call, Example, Stage
from slm_core.settings import Settings
from slm_core.store import Store, open_store
from slm_core.testing.langfuse_receiver import LangfuseReceiver
from slm_core.testing.provider import FakeProvider
from slm_core.testing.records import make_decision
from slm_core.testing.routes import move
from slm_core.testing.workload import Pool, answered, generate
from tasks import _wiring, promotion, settling

CAPTURED_AT = datetime(2026, 3, 1, tzinfo=UTC)
THRESHOLD = 20
CASES = CasesSpec(rows_per_track=3, seed=7)


def examples(seed: int, count: int, pool: Pool) -> list[Example]:
    """Return ``count`` examples of each track."""
    return [example for track in TRACKS for example in generate(seed, count, pool, track)]


@dataclass
class Service:
    """Everything a flow finds in its environment, and what it leaves."""

    folder: Path
    student: Path
    teacher: FakeProvider

    @property
    def settings(self) -> Settings:
        return _wiring.current_settings()

    def configure(self, **more: str) -> None:
        """Run this process's flows with these settings."""
        given = {
            "SLM_HOME": str(self.folder),
            "SLM_RETRAIN_THRESHOLD": str(THRESHOLD),
            "SLM_TEACHER_MODEL": "gpt-4o",
            "AZURE_ENDPOINT": self.teacher.base_url,
            "AZURE_API_KEY": "key",
        }
        _wiring.configure(Settings.from_env(given | more))

    def trace_to(self, langfuse: LangfuseReceiver, **more: str) -> None:
        """Configure with the keys of ``langfuse``."""
        self.configure(
            LANGFUSE_PUBLIC_KEY=langfuse.public_key,
            LANGFUSE_SECRET_KEY=langfuse.secret_key,
            LANGFUSE_BASE_URL=langfuse.base_url,
            **more,
        )

    def store(self) -> Store:
        return open_store(self.settings.database_url)

    def spool(self, calls: Sequence[Call], name: str = "calls") -> Path:
        """Leave ``calls`` in the spool folder as a file of JSON lines."""
        self.settings.spool_dir.mkdir(parents=True, exist_ok=True)
        path = self.settings.spool_dir / f"{name}.jsonl"
        path.write_text("".join(call.model_dump_json() + "\n" for call in calls))
        return path

    def claimed(self, *, leaked: int = 0) -> str:
        """Put the calls of one claim into the store; return its id.

        The first ``leaked`` of them ask what the test set asks.
        """
        asked = examples(0, THRESHOLD // 2, "traffic")
        asked[:leaked] = self.cases()[:leaked]
        calls = [
            answered(
                example,
                f"call-{number:03d}",
                model="gpt-4o",
                created_at=CAPTURED_AT + timedelta(seconds=number),
            )
            for number, example in enumerate(asked)
        ]
        with self.store() as store:
            store.calls.add(calls, lambda call: None)
            (claim,) = store.claims.make(THRESHOLD)
        return claim.id

    @staticmethod
    def cases() -> list[Example]:
        """Return the test set of every plan."""
        return examples(CASES.seed, CASES.rows_per_track, "test")

    def plan(self, **training_changes: object) -> RetrainSpec:
        """Return a retraining of a few seconds."""
        evaluation = NANO.eval.evaluation.model_copy(
            update={"resamples": 100, "max_tokens": 8, "batch_size": 8}
        )
        decision = NANO.eval.decision.model_copy(update={"min_rows": 3})
        training = NANO.training.model_copy(
            update={
                "base_model": str(self.student),
                "cep": "compact",
                "lora_r": 2,
                "epochs": 1,
                "micro_batch": 2,
                "accumulation": 4,
                "save_every_steps": 1,
                "threads": 1,
            }
            | training_changes
        )
        return RetrainSpec(
            dataset=DatasetSpec(min_examples=10, min_split_rows=1),
            training=training,
            eval=NANO.eval.model_copy(
                update={
                    "student_model": str(self.student),
                    "cep": "compact",
                    "test_set": CASES,
                    "evaluation": evaluation,
                    "decision": decision,
                    "threads": 1,
                }
            ),
        )

    def eval_plan(self, **changes: object) -> EvalSpec:
        return self.plan().eval.model_copy(update=changes)


@pytest.fixture(scope="session")
def teacher() -> Iterator[FakeProvider]:
    """A provider that knows the right answer to every test case."""
    answers = {case.prompt[-1].content: case.completion for case in Service.cases()}
    with FakeProvider(answers) as provider:
        yield provider


@pytest.fixture(scope="module")
def make_service(
    prefect_server: None,
    tiny_model: Path,
    teacher: FakeProvider,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[], Service]:
    """Make services with a folder of their own."""

    def make() -> Service:
        service = Service(tmp_path_factory.mktemp("service"), tiny_model, teacher)
        service.configure()
        return service

    return make


@pytest.fixture
def service(make_service: Callable[[], Service]) -> Iterator[Service]:
    """A service without any call yet, and without waiting between two tries."""
    yield make_service()
    _wiring._settings.clear()


@pytest.fixture
def store(service: Service) -> Iterator[Store]:
    """A store with one candidate for two agents."""
    with service.store() as store:
        store.decisions.save(make_decision())
        for agent in ("desk", "intake"):
            move(store, Stage.CANDIDATE, agent)
        yield store


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What promotions announce: events with their payload."""
    events: list[tuple[str, dict[str, Any]]] = []

    def note(event: str, resource_id: str, **payload: Any) -> None:
        events.append((event, payload))

    monkeypatch.setattr(promotion, "announce", note)
    monkeypatch.setattr(settling, "announce", note)
    return events
