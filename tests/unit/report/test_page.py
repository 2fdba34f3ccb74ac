"""The page: one file, no requests, no script, and every foreign text shown as text."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from slm_core.records import CallStats, FailureClass, Fault
from slm_core.report import LiveAnswer, ReportInput, ReportSpec, write_report
from slm_core.testing.cases import make_case, make_cases, write_details
from slm_core.testing.records import (
    make_adapter,
    make_arm,
    make_dataset,
    make_decision,
    make_evaluation,
    make_example,
    make_training_run,
)

ATTACK = "</pre></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'><a href=//evil>"
VOID = {"meta", "br", "img", "hr", "input", "link"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.words)


def page_of(folder: Path, spec: ReportSpec | None = None, **changes: Any) -> Page:
    details = write_details(folder / "details.jsonl", changes.pop("cases", make_cases()))
    values: dict[str, Any] = {
        "decision": make_decision(),
        "evaluation": make_evaluation(details_path=str(details)),
        "adapter": make_adapter(),
        "dataset": make_dataset(),
        "training": make_training_run(),
        "calls_captured": 312,
    }
    paths = write_report(ReportInput(**(values | changes)), folder / "out", spec)
    return Page(paths.html.read_text(encoding="utf-8"))


def test_it_asks_for_nothing(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
        assert not {"src", "href", "srcset", "action", "data"} & set(attributes), (tag, attributes)
    raw = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "url(" not in raw
    assert "@import" not in raw
    assert "default-src 'none'" in raw


def test_foreign_text_is_shown_and_never_run(tmp_path: Path) -> None:
    example = make_example(0)
    cases = [
        make_case(0, "toolcall", "student", ATTACK, FailureClass.PROSE, gold=ATTACK),
        make_case(0, "toolcall", "adapter", ATTACK, FailureClass.NONE, gold=ATTACK),
    ]
    details = write_details(tmp_path / "details.jsonl", cases)
    evaluation = make_evaluation(details_path=str(details))
    arms = tuple(
        make_arm(arm.track, arm.arm, model=ATTACK, failures={ATTACK: 3}) for arm in evaluation.arms
    )
    run = make_training_run()
    attempt = run.attempts[0].model_copy(
        update={"fault": Fault(kind=ATTACK, message=ATTACK), "plan": {ATTACK: ATTACK}}
    )
    decision = make_decision(next_actions=(ATTACK, f"`{ATTACK}`"))
    gate = decision.gates[0].model_copy(update={"gate": ATTACK, "reason": ATTACK})
    stats = CallStats(
        agent_name=ATTACK,
        agent_type="a",
        model=ATTACK,
        calls=1,
        succeeded=1,
        cost_nanousd=None,
        unpriced=1,
        seconds_mean=1,
        seconds_p50=1,
        seconds_p95=1,
        prompt_tokens=1,
        completion_tokens=1,
    )
    page = page_of(
        tmp_path,
        spec=ReportSpec(title=ATTACK),
        cases=cases,
        evaluation=evaluation.model_copy(update={"arms": arms}),
        adapter=make_adapter(id=ATTACK, base_model=ATTACK, summary={ATTACK: ATTACK}),
        training=run.model_copy(update={"attempts": (attempt,)}),
        decision=decision.model_copy(update={"gates": (gate,)}),
        dataset=make_dataset(drops={ATTACK: 1}),
        capture_stats=(stats,),
        timings={ATTACK: 1.0},
        questions={example.id: ATTACK},
        live_answer=LiveAnswer(question=ATTACK, answer=ATTACK, model=ATTACK, seconds=1.0),
        run_id=ATTACK,
    )
    for tag, attributes in page.tags:
        assert tag not in {"script", "img", "a"}
        assert not any(name.startswith("on") for name in attributes)
    assert page.text.count("<script>alert(1)</script>") > 15
    assert page.text.count(ATTACK) > 15


def test_the_verdict_comes_first(tmp_path: Path) -> None:
    for outcome in ("SUCCESS", "PARTIAL", "FAILURE"):
        page = page_of(tmp_path, decision=make_decision(outcome))
        assert outcome in page.text[:200]
        assert dict(page.tags)["body"] == {"class": outcome}
    assert "Keep the teacher" in page.text


def test_what_did_not_run_is_said_to_be_missing(tmp_path: Path) -> None:
    page = page_of(
        tmp_path,
        evaluation=make_evaluation(arms=("teacher", "adapter")),
        adapter=make_adapter(losses=()),
    )
    assert "Student (did not run)" in page.text
    assert "Loss" not in page.text
    assert page.text.count("–") > 10


def test_no_validation_loss_is_said(tmp_path: Path) -> None:
    from slm_core.testing.records import make_losses

    page = page_of(tmp_path, adapter=make_adapter(losses=make_losses(20, val_every=None)))
    assert "no validation loss" in page.text


def test_long_outputs_are_cut_and_counted(tmp_path: Path) -> None:
    cases = [
        make_case(0, "toolcall", "student", "x" * 5_000, FailureClass.PROSE),
        make_case(0, "toolcall", "adapter", "", FailureClass.EMPTY),
    ]
    page = page_of(tmp_path, cases=cases, spec=ReportSpec(case_characters=100))
    assert "4,900 more characters" in page.text
    assert "(empty)" in page.text


@pytest.mark.parametrize("text", ["`a` then `b`", "one ` only", "``"])
def test_code_in_an_action_is_balanced(tmp_path: Path, text: str) -> None:
    page_of(tmp_path, decision=make_decision(next_actions=(text,)))  # Page checks the nesting
