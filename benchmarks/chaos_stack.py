"""The service under chaos: a whole local stack, a plan of seconds, and claims to train on.

Everything is real but small: PostgreSQL, a Prefect server, the workers, the stand-in teacher, and
a student with random weights. The stack has a home, a project folder and ports of its own.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from slm_core.dataset import DatasetSpec
from slm_core.local_stack import LocalStack
from slm_core.local_stack.ports import free_port
from slm_core.local_stack.state import StackState
from slm_core.presets import NANO, RetrainSpec, TestSetSpec
from slm_core.records import TRACKS
from slm_core.settings import Settings
from slm_core.store import Store, open_store
from slm_core.testing.tiny_model import build_tiny_model
from slm_core.testing.workload import answered, generate

ROOT = Path(__file__).parents[1]
CALLS_PER_CLAIM = 20
_SHARED = ("flows", "tasks", "slm_core", "deployments", "prefect.yaml", "assets")
_CAPTURED_AT = datetime(2026, 3, 1, tzinfo=UTC)


class Service:
    """A stack that is up, and the questions that chaos has for it."""

    def __init__(self, folder: Path) -> None:
        project = folder / "project"
        project.mkdir()
        for name in _SHARED:
            (project / name).symlink_to(ROOT / name)
        self.home = folder / "home"
        self.spooled = 0
        self._student = build_tiny_model(folder / "student")
        self._environ = {
            "SLM_HOME": str(self.home),
            "SLM_RETRAIN_THRESHOLD": str(CALLS_PER_CLAIM),
            "SLM_TORCH_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        }
        self.settings = Settings.from_env(self._environ)
        # Other stacks may look for ports on this machine at the same time.
        names = ("postgres", "prefect", "teacher")
        ports = {name: free_port(random.SystemRandom().randint(20_000, 30_000)) for name in names}
        StackState(ports=ports).save(self.home / "stack" / "state.json")
        self.stack = LocalStack(self.settings, project)
        self.api = f"http://127.0.0.1:{ports['prefect']}/api"

    def __enter__(self) -> Service:
        """Start the stack."""
        # Takes the stack down when its input ends: when we are done with it, or are killed.
        down = (
            f"LocalStack(Settings.from_env({self._environ!r}), Path({str(self.stack.project)!r}))"
        )
        code = (
            "import sys; from pathlib import Path; from slm_core.settings import Settings\n"
            f"from slm_core.local_stack import LocalStack; sys.stdin.read(); {down}.down()"
        )
        self._guard = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the stack and all that its runs started."""
        self._guard.communicate()

    def _begin(self) -> None:
        self.stack.up()
        lines = self.stack.shell_file.read_text().splitlines()
        exported = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        self.database_url = exported["SLM_DATABASE_URL"].strip("'")

    def plan(self, epochs: int) -> None:
        """Let ``retrain/on-threshold`` train a tiny model for so long; the rest takes seconds."""
        retrain = self.get("/deployments/name/retrain/on-threshold")
        plan = _plan(self._student, epochs).model_dump(mode="json")
        self.ask("PATCH", f"/deployments/{retrain['id']}", {"parameters": {"overrides": plan}})

    def spool_claim(self) -> None:
        """Leave the calls of one more claim in the spool; none asks what another one asked."""
        half = CALLS_PER_CLAIM // len(TRACKS)
        asked = [e for track in TRACKS for e in generate(self.spooled, half, "traffic", track)]
        calls = [
            answered(
                example,
                f"call-{number:06d}",
                created_at=_CAPTURED_AT + timedelta(seconds=number),
            )
            for number, example in enumerate(asked, self.spooled)
        ]
        self.settings.spool_dir.mkdir(parents=True, exist_ok=True)
        path = self.settings.spool_dir / f"calls-{self.spooled:06d}"
        path.write_text("".join(call.model_dump_json() + "\n" for call in calls))
        path.rename(path.with_suffix(".jsonl"))
        self.spooled += len(calls)

    def start(self, deployment: str, **parameters: Any) -> str:
        """Start a run of a deployment; return its id."""
        found = self.get(f"/deployments/name/{deployment}")
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return self.ask("POST", f"/deployments/{found['id']}/create_flow_run", body)["id"]

    def get(self, path: str) -> Any:
        """Read from the server's API."""
        return self.ask("GET", path)

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask the server's API.

        Raises:
            httpx.HTTPError: it does not answer, or refuses.
        """
        answer = httpx.request(method, self.api + path, json=body, timeout=30)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    @contextmanager
    def store(self) -> Iterator[Store]:
        """Open the stack's store."""
        with open_store(self.database_url) as store:
            yield store

    def order(self, run_id: str) -> dict[str, Any]:
        """Return what lies in a run's folder as its order; empty when none does."""
        file = self.home / "runs" / run_id / "order.json"
        return json.loads(file.read_bytes()) if file.is_file() else {}


def _plan(student: Path, epochs: int) -> RetrainSpec:
    model = {"base_model": str(student), "cep": "compact", "lora_r": 2}
    pace = {"epochs": epochs, "micro_batch": 2, "accumulation": 4, "save_every_steps": 5}
    return RetrainSpec(
        dataset=DatasetSpec(min_examples=10, min_split_rows=1),
        training=NANO.training.model_copy(update=model | pace | {"threads": 1}),
        eval=NANO.eval.model_copy(
            update={
                "student_model": str(student),
                "cep": "compact",
                "test_set": TestSetSpec(rows_per_track=2, seed=7),
                "evaluation": NANO.eval.evaluation.model_copy(
                    update={"resamples": 100, "max_tokens": 8, "batch_size": 4}
                ),
                "decision": NANO.eval.decision.model_copy(update={"min_rows": 2}),
                "threads": 1,
            }
        ),
    )
