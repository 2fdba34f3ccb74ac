"""Whole evaluations with scripted backends: files, resuming, failures, ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from slm_core.backends.base import Completion, Request
from slm_core.errors import BackendError, BackendUnavailable, EvaluationError
from slm_core.evaluation import Arm, EvaluationSpec, evaluate, read_details
from slm_core.prompting.formats import render_completion
from slm_core.records import (
    Evaluation,
    Example,
    FailureClass,
    Message,
    Tool,
    ToolUse,
    Track,
    sha256_hex,
)
from slm_core.testing.backends import ScriptedBackend, failed

SPEC = EvaluationSpec(max_tokens=64, resamples=200, give_up_after=4)
TOOL = Tool(name="f", parameters={"properties": {"x": {"type": "integer"}}})


def case(number: int, track: Track) -> Example:
    call = ToolUse(name="f", arguments={"x": number})
    return Example(
        id=f"{track}-{number}",
        track=track,
        prompt=(Message(role="user", content=f"{track} {number}"),),
        tools=(TOOL,),
        completion=render_completion(track, [call]),
        calls=(call,),
        conversation_id=f"conversation-{number}",
        domain="odd" if number % 2 else "even",
    )


CASES = [case(i, track) for i in range(6) for track in ("structured", "toolcall")]
GOLD = {c.prompt[0].content: c.completion for c in CASES}


def gold(request: Request) -> str:
    return GOLD[request.prompt[0].content]


def fenced(request: Request) -> str:
    return f"```\n{gold(request)}\n```"


class Opened:
    """A factory that counts how often it opened its backend."""

    def __init__(self, answers: Callable[[Request], object] | list) -> None:
        self.backend = ScriptedBackend(answers)
        self.times = 0

    def __call__(self) -> ScriptedBackend:
        self.times += 1
        self.backend.closed = False
        return self.backend


def run(
    folder: Path, *arms: Arm, cases: list[Example] = CASES, spec: EvaluationSpec = SPEC, **more
) -> Evaluation:
    return evaluate(
        cases, arms, spec, folder, test_set_id="dataset-1", adapter_id="adapter-1", **more
    )


def adapter(answers: Callable[[Request], object] | list, label: str = "nano+a1") -> Arm:
    return Arm("adapter", Opened(answers), label)


def test_two_arms_on_two_tracks(tmp_path):
    seen: list[tuple[int, int, str]] = []
    arms = (adapter(gold), Arm("student", Opened(fenced), "nano"))
    evaluation = run(tmp_path, *arms, on_progress=lambda *p: seen.append(p))

    assert {(a.arm, a.track, a.model) for a in evaluation.arms} == {
        ("adapter", "structured", "nano+a1"),
        ("adapter", "toolcall", "nano+a1"),
        ("student", "structured", "nano"),
        ("student", "toolcall", "nano"),
    }
    best = evaluation.arm("structured", "adapter")
    assert best.metrics["field_f1"].value == 1.0
    assert best.metrics["exact_match_rate"].n == 6
    assert (best.failures, best.errors) == ({}, 0)
    worst = evaluation.arm("toolcall", "student")
    assert worst.metrics["args_f1"].value == 0.0
    assert worst.lenient["args_f1"].value == 1.0
    assert worst.failures == {FailureClass.FENCE.value: 6}
    difference = evaluation.difference("structured", "field_f1", "adapter", "student")
    assert difference.difference.value == 1.0
    assert {(p.a, p.b) for p in evaluation.paired} == {("adapter", "student")}
    assert seen[0] == (1, 24, "adapter")
    assert seen[-1] == (24, 24, "student")


def test_each_case_is_asked_once_in_the_way_of_its_track(tmp_path):
    opened = Opened(gold)
    run(tmp_path, Arm("adapter", opened, "nano"))
    assert [r.prompt for r in opened.backend.asked] == [c.prompt for c in CASES]
    assert [r.native_tools for r in opened.backend.asked] == [False, True] * 6
    assert opened.backend.asked[0].tools == (TOOL,)
    assert opened.backend.max_tokens == 64
    assert opened.backend.closed


def test_files_hold_every_row(tmp_path):
    evaluation = run(tmp_path, adapter(gold), Arm("student", Opened(fenced), "nano"))
    rows = read_details(tmp_path / "details.jsonl")
    assert evaluation.details_path == str(tmp_path / "details.jsonl")
    assert evaluation.details_sha256 == sha256_hex((tmp_path / "details.jsonl").read_bytes())
    assert [(r.arm, r.case_id) for r in rows[:2]] == [
        ("adapter", "structured-0"),
        ("adapter", "toolcall-0"),
    ]
    assert len(rows) == 24
    assert rows[0].gold == rows[0].output == CASES[0].completion
    assert (rows[0].cluster, rows[0].domain) == ("conversation-0", "even")
    assert Evaluation.model_validate_json((tmp_path / "evaluation.json").read_text()) == evaluation
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "details.jsonl",
        "evaluation.json",
        "outputs-adapter.jsonl",
        "outputs-student.jsonl",
    ]


def test_an_interrupted_evaluation_asks_only_for_what_is_missing(tmp_path):
    whole = run(tmp_path / "whole", adapter(gold))

    folder = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        run(folder, adapter([*[c.completion for c in CASES[:5]], KeyboardInterrupt()]))
    path = folder / "outputs-adapter.jsonl"
    assert len(path.read_text().splitlines()) == 5
    with path.open("a") as file:
        file.write('{"asked": "ask-12')  # the process died in the middle of a line

    opened = Opened(gold)
    seen: list[int] = []
    resumed = run(
        folder, Arm("adapter", opened, "nano+a1"), on_progress=lambda done, *_: seen.append(done)
    )
    assert [r.prompt for r in opened.backend.asked] == [c.prompt for c in CASES[5:]]
    assert seen == list(range(1, 13))
    assert (resumed.id, resumed.arms, resumed.paired) == (whole.id, whole.arms, whole.paired)

    idle = Opened(gold)
    again = run(folder, Arm("adapter", idle, "nano+a1"))
    assert idle.times == 0
    assert again.id == whole.id
    assert again.details_sha256 == resumed.details_sha256


def test_outputs_of_another_model_question_or_limit_are_not_reused(tmp_path):
    run(tmp_path, adapter(gold))
    changed = [CASES[0].model_copy(update={"prompt": CASES[1].prompt}), *CASES[1:]]
    for arm, cases, spec, asked in (
        (adapter(gold, label="nano+a2"), CASES, SPEC, 12),
        (adapter(gold), CASES, SPEC.model_copy(update={"max_tokens": 65}), 12),
        (adapter(gold), changed, SPEC, 1),
    ):
        run(tmp_path, arm, cases=cases, spec=spec)
        assert len(arm.open.backend.asked) == asked


def test_a_broken_line_is_asked_again(tmp_path):
    run(tmp_path, adapter(gold))
    path = tmp_path / "outputs-adapter.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["not JSON", *lines[1:]]) + "\n")
    arm = adapter(gold)
    run(tmp_path, arm)
    assert [r.prompt for r in arm.open.backend.asked] == [CASES[0].prompt]


def test_the_id_follows_the_outputs_and_not_the_clock(tmp_path):
    def slow(request: Request) -> Completion:
        return Completion(gold(request), "stop", 1, 2, 9.0, cost_nanousd=5)

    def other(request: Request) -> str:
        return fenced(request) if request.prompt == CASES[0].prompt else gold(request)

    first = run(tmp_path / "1", adapter(gold))
    timed = run(tmp_path / "2", adapter(slow))
    assert timed.id == first.id
    assert timed.arms[0].seconds_p50 == 9.0
    assert timed.arms[0].cost_per_1000_usd == pytest.approx(5e-6)
    assert run(tmp_path / "3", adapter(other)).id != first.id
    assert run(tmp_path / "4", adapter(gold), cases=CASES[:-1]).id != first.id
    reseeded = run(tmp_path / "5", adapter(gold), spec=SPEC.model_copy(update={"seed": 1}))
    assert reseeded.id != first.id


def test_rows_that_the_backend_failed_on_are_counted_as_misses(tmp_path):
    def flaky(request: Request) -> str | Completion:
        return failed("too long") if request.prompt == CASES[2].prompt else gold(request)

    evaluation = run(tmp_path, adapter(flaky))
    scored = evaluation.arm("structured", "adapter")
    assert scored.errors == 1
    assert scored.failures == {FailureClass.ERROR.value: 1}
    assert (scored.metrics["field_recall"].value, scored.metrics["field_recall"].n) == (5 / 6, 6)
    row = next(r for r in read_details(tmp_path / "details.jsonl") if r.error)
    assert (row.case_id, row.error, row.output) == (CASES[2].id, "too long", "")

    healed = adapter(gold)
    assert run(tmp_path, healed).arm("structured", "adapter").errors == 0
    assert [r.prompt for r in healed.open.backend.asked] == [CASES[2].prompt]


def test_a_backend_that_goes_down_stops_the_evaluation_and_loses_nothing(tmp_path):
    answers = [c.completion for c in CASES[:7]] + [failed("connection refused")] * 5
    arm = adapter(answers)
    with pytest.raises(BackendUnavailable, match="4 times in a row") as caught:
        run(tmp_path, arm)
    assert caught.value.retryable
    assert caught.value.context["last_error"] == "connection refused"
    assert len(arm.open.backend.asked) == 11
    assert arm.open.backend.closed
    assert not (tmp_path / "evaluation.json").exists()
    resumed = adapter(gold)
    run(tmp_path, resumed)
    assert len(resumed.open.backend.asked) == 5


def test_a_backend_that_never_answers_is_down_however_few_the_cases(tmp_path):
    with pytest.raises(BackendUnavailable):
        run(tmp_path, adapter(lambda _: failed("no")), cases=CASES[:2])


def test_requests_refused_for_good_do_not_stop_the_evaluation(tmp_path):
    # 5 refusals in a row, which is more than give_up_after.
    refused = [failed("too long", permanent=True)] * 5
    arm = adapter([*refused, *(c.completion for c in CASES[5:])])
    evaluation = run(tmp_path, arm)
    assert sum(scored.errors for scored in evaluation.arms) == 5
    rows = read_details(tmp_path / "details.jsonl")
    assert [row.error for row in rows] == ["too long"] * 5 + [None] * 7
    assert {row.strict.failure for row in rows[:5]} == {FailureClass.ERROR}
    assert len((tmp_path / "outputs-adapter.jsonl").read_text().splitlines()) == 7


def test_requests_refused_for_good_do_not_hide_that_a_backend_is_down(tmp_path):
    down, refused = failed("connection refused"), failed("too long", permanent=True)
    arm = adapter([CASES[0].completion, down, down, refused, down, down])
    with pytest.raises(BackendUnavailable, match="4 times in a row"):
        run(tmp_path, arm)
    with pytest.raises(BackendUnavailable, match="2 times in a row") as caught:
        run(tmp_path / "few", adapter([refused, down, down]), cases=CASES[:3])
    assert caught.value.context["last_error"] == "connection refused"


def test_a_backend_that_refuses_every_case_is_not_asked_again(tmp_path):
    refusals = [failed(f"refusal {number}", permanent=True) for number in range(12)]
    with pytest.raises(
        BackendError, match="refused all 12 requests, the last with: 'refusal 11'"
    ) as caught:
        run(tmp_path, adapter(refusals))
    assert not caught.value.retryable
    assert "shorten them" in str(caught.value)
    assert not (tmp_path / "evaluation.json").exists()


def test_a_backend_that_raises_is_closed_and_its_answers_are_kept(tmp_path):
    arm = adapter([CASES[0].completion, BackendUnavailable("gone")])
    with pytest.raises(BackendUnavailable, match="gone"):
        run(tmp_path, arm)
    assert arm.open.backend.closed
    assert len((tmp_path / "outputs-adapter.jsonl").read_text().splitlines()) == 1


def test_arms_are_opened_one_at_a_time(tmp_path):
    events: list[str] = []

    def opener(name: str) -> Callable[[], ScriptedBackend]:
        class Watched(ScriptedBackend):
            def close(self) -> None:
                super().close()
                events.append(f"close {name}")

        def open_backend() -> ScriptedBackend:
            events.append(f"open {name}")
            return Watched(gold)

        return open_backend

    run(tmp_path, *(Arm(name, opener(name), name) for name in ("teacher", "student")))
    assert events == ["open teacher", "close teacher", "open student", "close student"]


class Short(ScriptedBackend):
    """Forgets the last answer."""

    def complete(self, requests, *, max_tokens):
        return super().complete(requests[:-1], max_tokens=max_tokens)


def test_a_backend_that_swallows_a_question_is_refused(tmp_path):
    with pytest.raises(BackendError, match="11 answers to 12 questions"):
        run(tmp_path, Arm("adapter", lambda: Short(gold), "nano"))


def test_odd_text_survives_the_files(tmp_path):
    odd = "\ud800 \u2028 \x00 \r\n </tool_call>"
    run(tmp_path, adapter([odd]), cases=CASES[:1])
    (row,) = read_details(tmp_path / "details.jsonl")
    assert row.output == odd.replace("\ud800", "?")
    arm = adapter([])
    assert run(tmp_path, arm, cases=CASES[:1]).arms[0].errors == 0
    assert arm.open.times == 0


def test_a_cut_answer_is_named_truncated(tmp_path):
    cut = Completion(CASES[0].completion[:-5], "length", 1, 64, 0.1)
    evaluation = run(tmp_path, adapter([cut]), cases=CASES[:1])
    assert evaluation.arms[0].failures == {FailureClass.TRUNCATED.value: 1}


@pytest.mark.parametrize(
    ("cases", "arms", "message"),
    [
        ([], [adapter(gold)], "0 cases and 1 arms"),
        (CASES, [], "12 cases and 0 arms"),
        ([*CASES, CASES[0]], [adapter(gold)], "1 case ids occur more than once"),
        (CASES, [adapter(gold), adapter(gold)], "1 arm ids occur more than once"),
        (
            [CASES[0].model_copy(update={"completion": "Sure!"})],
            [adapter(gold)],
            "do not pass their own scorer",
        ),
    ],
)
def test_what_is_refused_before_anything_is_asked(tmp_path, cases, arms, message):
    with pytest.raises(EvaluationError, match=message):
        run(tmp_path / "new", *arms, cases=cases)
    assert not (tmp_path / "new").exists()


def test_one_track_alone_is_fine(tmp_path):
    evaluation = run(tmp_path, adapter(gold), cases=[c for c in CASES if c.track == "toolcall"])
    assert [a.track for a in evaluation.arms] == ["toolcall"]


def test_the_spec_says_what_it_takes():
    assert EvaluationSpec().resamples == 2000
    assert json.loads(EvaluationSpec().model_dump_json())["comparisons"][0] == [
        "adapter",
        "teacher",
    ]
    with pytest.raises(ValueError, match="temperature"):
        EvaluationSpec(temperature=1.0)
    with pytest.raises(ValueError, match="oracle"):
        EvaluationSpec(comparisons=(("adapter", "oracle"),))
