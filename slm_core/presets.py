"""Named, tested plans: what a retraining, a training or an evaluation does, in typed Python.

A deployment names one of these; what it may override is a flow parameter.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from slm_core.dataset.spec import DatasetSpec
from slm_core.decision.spec import DecisionSpec
from slm_core.evaluation.spec import EvaluationSpec
from slm_core.prompting.prefix import Variant
from slm_core.records import ArmName, RiskTier, Split
from slm_core.report.spec import ReportSpec
from slm_core.serving.spec import PromotionSpec
from slm_core.training.spec import TrainingSpec

RowsFrom = Literal["newest", "calls", "hermes"]


class TestSetSpec(BaseModel):
    """Which cases every arm is scored on."""

    __test__ = False  # not a test class, whatever pytest thinks of its name
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: str | None = None
    """JSON Lines file of examples with certain answers; None makes the synthetic test set."""
    berkeley: str | None = None
    """Folder with the data of the Berkeley Function-Calling Leaderboard, in place of ``path``;
    ``sample`` takes a handful of questions in its format that ship with SLM Swap and are no part
    of the leaderboard."""
    rows_per_track: int = Field(default=200, ge=1)
    """Size of the synthetic test set."""
    seed: int = 1000
    """Of the synthetic test set."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.path is not None and self.berkeley is not None:
            raise ValueError("give path or berkeley, not both")
        return self


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
    shards: int = Field(default=1, ge=1)
    """Workers that answer for the local models at the same time, on a Dask cluster or in
    processes of this machine; for these set ``threads`` to its cores divided by ``shards``. The
    scores are those of one worker. More than 1 needs the extra ``fanout``."""
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
    promotion: PromotionSpec = PromotionSpec()
    """From a candidate to live: who approves, and what the traffic must show."""
    auto_promote: bool = False
    """A SUCCESS goes live at once, for every agent whose calls it was trained on, without the
    steps between; only sensible where the test set asks what these agents are asked, and only
    allowed where every risk is ``low``. Otherwise the adapter becomes a candidate, and
    ``promote/adapter`` asks a person."""

    @model_validator(mode="after")
    def _nobody_is_passed_over_where_it_matters(self) -> Self:
        tiers = {self.promotion.risk, *self.promotion.risk_of.values()}
        if self.auto_promote and tiers != {RiskTier.LOW}:
            raise ValueError("auto_promote needs promotion.risk='low', and no other tier beside it")
        return self


class TrainSpec(BaseModel):
    """What a training run does: rows to one adapter, or to one for each track."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    training: TrainingSpec
    """From examples to an adapter. Its ``world_size`` follows from ``gpus`` and the machine."""
    rows_from: RowsFrom = "newest"
    """Where the examples come from when the run names no dataset. ``newest``: the dataset that
    was built last; where there is none, as ``calls``. ``calls``: every usable call in the store.
    ``hermes``: the public set NousResearch/hermes-function-calling-v1."""
    dataset: DatasetSpec = DatasetSpec()
    """How calls become a dataset; not read when one that exists is trained on."""
    hermes_file: str | None = None
    """Local file in the format of the public set, for machines that cannot reach the hub."""
    adapter_per_track: bool = False
    """One adapter for each track, in place of one for all."""
    gpus: int = Field(default=1, ge=1)
    """GPUs to train on; where fewer are usable, those are."""
    side_by_side: Literal["auto", "always", "never"] = "auto"
    """Adapters of several tracks: ``auto`` trains them at the same time, each on an equal share,
    when at least two GPUs remain for each; else one after the other, each on all GPUs.
    ``always`` does so on any machine."""

    @model_validator(mode="after")
    def _two_adapters_to_lay_side_by_side(self) -> Self:
        if self.side_by_side == "always" and not self.adapter_per_track:
            raise ValueError("side_by_side='always' needs adapter_per_track=True")
        return self


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
EVAL_BERKELEY = _NANO_EVAL.model_copy(
    update={
        "test_set": TestSetSpec(berkeley="sample"),
        "report": ReportSpec(
            title="Sample in Berkeley's format: questions of our own, not the leaderboard's"
        ),
    }
)
EVAL_BASELINE = _NANO_EVAL.model_copy(
    update={
        "cep": None,
        "arms": ("teacher", "student"),
        "decision": DecisionSpec(candidate="student"),
    }
)

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
PHI_4_MINI = "microsoft/Phi-4-mini-instruct"
PHI_4 = "microsoft/phi-4"
QWEN_7B = "Qwen/Qwen2.5-7B-Instruct"
MERGED_BASE = "./models/merged"
"""A base model with an earlier adapter merged into it; the flow's ``base_model`` names yours."""


def _paper(base_model: str) -> TrainSpec:
    return TrainSpec(
        training=TrainingSpec(
            base_model=base_model,
            cep=None,
            learning_rate=2e-4,
            epochs=3,
            micro_batch=4,
            accumulation=4,
            max_length=2048,
        ),
        rows_from="hermes",
        dataset=DatasetSpec(rows={"train": 100, "val": 50, "test": 50}, min_examples=200, seed=42),
    )


def scaled_up(spec: TrainSpec) -> TrainSpec:
    """Return the plan on ten times the training rows: 1,000/200/200 and five epochs."""
    rows: dict[Split, int] = {"train": 1000, "val": 200, "test": 200}
    return spec.model_copy(
        update={
            "training": spec.training.model_copy(update={"epochs": 5}),
            "dataset": spec.dataset.model_copy(update={"rows": rows, "min_examples": 1400}),
        }
    )


PAPER_LLAMA = _paper(LLAMA_8B)
PAPER_PHI = _paper(PHI_4_MINI)

FLEDGLING = TrainSpec(
    # Also meant for Qwen2.5-7B: give the flow base_model=Qwen/Qwen2.5-7B-Instruct.
    training=TrainingSpec(
        base_model=PHI_4_MINI,
        cep=None,
        lora_r=64,
        lora_alpha=16,
        lora_dropout=0.1,
        learning_rate=2e-4,
        epochs=1,
        micro_batch=1,
        accumulation=16,
        max_length=2048,
        quantization="nf4",
    ),
    adapter_per_track=True,
    gpus=4,
)

LLAMA_CEP = TrainSpec(
    training=TrainingSpec(
        base_model=LLAMA_8B,
        cep="universal",
        learning_rate=2e-4,
        epochs=3,
        micro_batch=1,
        accumulation=16,
        max_length=2048,
        # Out of memory, this plan went on with 8 rows a step, then with rows of 1,536 tokens.
        on_oom="recipe",
        shorter_lengths=(1536,),
    ),
)

PHI_CEP = TrainSpec(
    training=TrainingSpec(
        base_model=PHI_4,
        cep="compact",
        learning_rate=2e-4,
        epochs=3,
        micro_batch=1,
        accumulation=8,
        max_length=1536,
        shorter_lengths=(1024,),
    ),
)

TARGETED = TrainSpec(
    # The dataset holds self-critique and hard failures, so its rows are brought, not captured.
    training=TrainingSpec(
        base_model=MERGED_BASE,
        lora_r=64,
        lora_alpha=16,
        learning_rate=3e-6,
        epochs=3,
        micro_batch=4,
        accumulation=8,
        max_length=2048,
        eval_every_steps=500,
        save_every_steps=1000,
        patience=3,
    ),
    dataset=DatasetSpec(val_fraction=0.05),
)

RetrainPreset = Literal["nano"]
TrainPreset = Literal[
    "fledgling",
    "paper-llama",
    "paper-llama-scaled",
    "paper-phi",
    "paper-phi-scaled",
    "llama-cep",
    "phi-cep",
    "targeted",
    "nano",
]
EvalPreset = Literal["cep", "baseline", "berkeley"]

RETRAIN_PRESETS: dict[RetrainPreset, RetrainSpec] = {"nano": NANO}
TRAIN_PRESETS: dict[TrainPreset, TrainSpec] = {
    "fledgling": FLEDGLING,
    "paper-llama": PAPER_LLAMA,
    "paper-llama-scaled": scaled_up(PAPER_LLAMA),
    "paper-phi": PAPER_PHI,
    "paper-phi-scaled": scaled_up(PAPER_PHI),
    "llama-cep": LLAMA_CEP,
    "phi-cep": PHI_CEP,
    "targeted": TARGETED,
    "nano": TrainSpec(training=NANO.training, dataset=NANO.dataset),
}
EVAL_PRESETS: dict[EvalPreset, EvalSpec] = {
    "cep": EVAL_CEP,
    "baseline": EVAL_BASELINE,
    "berkeley": EVAL_BERKELEY,
}
