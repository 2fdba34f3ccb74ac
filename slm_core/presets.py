"""Named, tested plans: what a retraining or an evaluation does, in typed Python.

A deployment names one of these; what it may override is a flow parameter.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from slm_core.dataset.spec import DatasetSpec
from slm_core.decision.spec import DecisionSpec
from slm_core.evaluation.spec import EvaluationSpec
from slm_core.prompting.prefix import Variant
from slm_core.records import ArmName
from slm_core.report.spec import ReportSpec
from slm_core.training.spec import TrainingSpec


class TestSetSpec(BaseModel):
    """Which cases every arm is scored on."""

    __test__ = False  # not a test class, whatever pytest thinks of its name
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: str | None = None
    """JSON Lines file of examples with certain answers; None makes the synthetic test set."""
    rows_per_track: int = Field(default=200, ge=1)
    """Size of the synthetic test set."""
    seed: int = 1000
    """Of the synthetic test set."""


class EvalSpec(BaseModel):
    """What an evaluation flow does."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    student_model: str
    """Folder or hub id of the student's base model."""
    cep: Variant | None
    """Prefix of the arms ``student_cep`` and ``adapter``."""
    arms: tuple[ArmName, ...]
    """Arms to score; ``adapter`` is left out, and said so, while none is trained."""
    test_set: TestSetSpec = TestSetSpec()
    """What they are scored on."""
    evaluation: EvaluationSpec = EvaluationSpec()
    """How they are asked and compared."""
    decision: DecisionSpec = DecisionSpec()
    """What the candidate must show."""
    report: ReportSpec = ReportSpec()
    """How the report looks."""
    threads: int | None = None
    """CPU threads of local models; None takes one per core."""
    teacher_concurrency: int = Field(default=8, ge=1)
    """Requests to the teacher at once; more than it can work on shows as latency."""
    student_usd_per_hour: float | None = None
    """Price of the machine that serves the student; None leaves its costs unknown."""


class RetrainSpec(BaseModel):
    """What a retraining does with one claim."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    dataset: DatasetSpec
    """From calls to examples."""
    training: TrainingSpec
    """From examples to an adapter."""
    eval: EvalSpec
    """From an adapter to numbers and a decision."""
    auto_promote: bool = False
    """A SUCCESS goes live at once, for every agent whose calls it was trained on; only sensible
    where the test set asks what these agents are asked. Otherwise the adapter waits as a
    candidate for ``slm adapters promote``."""


NANO_STUDENT = "assets/nano-student"
"""Relative, so that adapters trained in two checkouts have the same id."""

_NANO_EVAL = EvalSpec(
    student_model=NANO_STUDENT,
    cep="universal",
    arms=("teacher", "student", "student_cep", "adapter"),
    # The longest right answer of the synthetic workload has 80 tokens.
    evaluation=EvaluationSpec(max_tokens=160, batch_size=40),
    threads=2,
    # The demo's teacher has two workers.
    teacher_concurrency=2,
    # An assumption: what clouds ask for two shared virtual cores.
    student_usd_per_hour=0.10,
)

NANO = RetrainSpec(
    # A claim of 100 calls may lose a few to conflicts and to frozen test rows.
    dataset=DatasetSpec(min_examples=80),
    training=TrainingSpec(
        base_model=NANO_STUDENT,
        cep="universal",
        lora_r=16,
        lora_alpha=32,
        lora_dropout=0.05,
        # Half the learning rate at which the adapter begins to forget how to copy (measured).
        learning_rate=1e-3,
        epochs=5,
        # Eight rows a step; two at a time are fastest on two cores.
        micro_batch=2,
        accumulation=4,
        max_length=1024,
        warmup_ratio=0.1,
        save_every_steps=10,
        threads=2,
    ),
    eval=_NANO_EVAL,
)

EVAL_CEP = _NANO_EVAL
EVAL_BASELINE = _NANO_EVAL.model_copy(
    update={
        "cep": None,
        "arms": ("teacher", "student"),
        "decision": DecisionSpec(candidate="student"),
    }
)

RetrainPreset = Literal["nano"]
EvalPreset = Literal["cep", "baseline"]

RETRAIN_PRESETS: dict[RetrainPreset, RetrainSpec] = {"nano": NANO}
EVAL_PRESETS: dict[EvalPreset, EvalSpec] = {"cep": EVAL_CEP, "baseline": EVAL_BASELINE}
