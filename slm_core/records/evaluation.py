"""The fourth noun: what each arm scored, with intervals, and how the arms differ."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from slm_core.records.base import Record, Track, utc_now

ArmName = Literal["teacher", "student", "student_cep", "adapter"]
ARMS: tuple[ArmName, ...] = ("teacher", "student", "student_cep", "adapter")
View = Literal["strict", "lenient"]


class FailureClass(StrEnum):
    """The first thing wrong with an output; the order is the order of testing."""

    NONE = "none"
    ERROR = "backend error"
    EMPTY = "empty"
    FENCE = "Markdown fence"
    FOREIGN_TAG = "foreign tag"
    SELF_CLOSING = "self-closing tag"
    ATTRIBUTE_ARGUMENTS = "arguments in an attribute"
    HERMES_BODY = "name and arguments inside the tag"
    MISSING_CLOSE = "missing closing tag"
    TRUNCATED = "truncated"
    PYTHON_LITERAL = "Python literal"
    BARE_JSON = "JSON without the tag"
    WRONG_KEYS = "other keys than name and arguments"
    DOUBLE_ENCODED = "arguments as a JSON string"
    BAD_JSON = "not JSON"
    EXTRA_TEXT = "text around the answer"
    PROSE = "prose"
    UNKNOWN_TOOL = "unknown tool"
    MISSING_PARAMETER = "missing required parameter"
    UNKNOWN_PARAMETER = "unknown parameter"
    WRONG_TYPE = "wrong type"
    NOT_IN_ENUM = "value not in enum"
    WRONG_TOOL = "wrong tool"
    WRONG_VALUE = "wrong value"
    CALL_COUNT = "fewer or more calls"
    OVER_CALL = "call when none was wanted"


class RowScore(Record):
    """Score of one output under one view; counts let micro and macro be recomputed."""

    parsed: bool
    name_match: bool
    exact: bool
    true_positives: int
    predicted: int
    gold: int
    failure: FailureClass = FailureClass.NONE

    @property
    def f1(self) -> float:
        """F1 of this row; 1.0 when both sides are empty and the output parsed."""
        total = self.predicted + self.gold
        if total == 0:
            return 1.0 if self.parsed and self.exact else 0.0
        return 2 * self.true_positives / total


class CaseResult(Record):
    """One output of one arm on one case."""

    case_id: str
    track: Track
    arm: ArmName
    output: str
    gold: str
    strict: RowScore
    lenient: RowScore
    cluster: str
    """Conversation: the unit of resampling."""
    domain: str = ""
    seconds: float
    prompt_tokens: int
    completion_tokens: int
    cost_nanousd: int | None
    error: str | None = None


class Metric(Record):
    """A number with the evidence behind it."""

    value: float
    n: int
    """Rows it was computed from."""
    low: float
    high: float
    """Bounds of the 95 % interval."""


class ArmResult(Record):
    """All scores of one arm on one track."""

    arm: ArmName
    track: Track
    model: str
    metrics: dict[str, Metric]
    """Strict view, micro; the F1 also in its ``macro_`` form."""
    lenient: dict[str, Metric]
    failures: dict[str, int]
    """Failure class to count, strict view."""
    errors: int
    """Rows the backend failed on; they count as misses."""
    seconds_p50: float
    seconds_p95: float
    cost_per_1000_usd: float | None
    """None when the price is unknown."""
    rows_sha256: str
    """Of the outputs, for comparing two runs."""


class PairedDifference(Record):
    """How two arms differ on the same rows."""

    track: Track
    metric: str
    a: ArmName
    b: ArmName
    difference: Metric
    """a minus b, with the 95 % interval of a paired, clustered bootstrap."""
    mcnemar_p: float | None = None
    """Exact two-sided McNemar p, for rates of right rows; where conversations hold several
    rows, conversations and not rows are taken as independent."""
    a_only: int = 0
    b_only: int = 0


class Evaluation(Record):
    """One evaluation of several arms on one frozen test set."""

    id: str
    test_set_id: str
    adapter_id: str | None
    arms: tuple[ArmResult, ...]
    paired: tuple[PairedDifference, ...]
    details_path: str
    details_sha256: str
    spec_digest: str
    seed: int
    created_at: datetime = Field(default_factory=utc_now)

    def arm(self, track: Track, arm: ArmName) -> ArmResult | None:
        """Return the result of ``arm`` on ``track``, or None when it did not run."""
        return next((a for a in self.arms if a.track == track and a.arm == arm), None)

    def difference(
        self, track: Track, metric: str, a: ArmName, b: ArmName
    ) -> PairedDifference | None:
        """Return the paired difference a minus b, or None when it was not computed."""
        return next(
            (
                p
                for p in self.paired
                if p.track == track and p.metric == metric and (p.a, p.b) == (a, b)
            ),
            None,
        )


class DomainScore(Record):
    """F1 of one domain of one arm."""

    domain: str
    f1: Metric = Field()


class Approach(Record):
    """One way to answer on one track, as one evaluation measured it."""

    name: str
    """Unique on its track: the arm, and its model."""
    evaluation_id: str
    evaluated_at: datetime
    result: ArmResult


class ApproachDifference(Record):
    """How two approaches differ on the same rows, whichever evaluations they come from."""

    a: str
    b: str
    """Names of the approaches; the difference is a minus b."""
    paired: PairedDifference


class NotCompared(Record):
    """What a comparison leaves out, and why."""

    evaluation_id: str
    approach: str | None = None
    """None when it is all of the evaluation."""
    reason: str


class Comparison(Record):
    """Approaches side by side, all on one test set."""

    test_set_id: str
    approaches: tuple[Approach, ...]
    """By track; on each, the arms in order, older evaluations first."""
    differences: tuple[ApproachDifference, ...]
    """Of every two approaches whose answers are still on disk."""
    not_compared: tuple[NotCompared, ...]
    created_at: datetime = Field(default_factory=utc_now)
