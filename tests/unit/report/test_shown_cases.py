"""Which cases the page shows: the repaired ones, and always one that is still wrong."""

from __future__ import annotations

from pathlib import Path

from slm_core.records import CaseResult, FailureClass
from slm_core.report.shown_cases import ShownCase, choose_cases
from slm_core.testing.cases import make_case, make_cases, write_details

RIGHT, FENCE, PROSE, VALUE = (
    FailureClass.NONE,
    FailureClass.FENCE,
    FailureClass.PROSE,
    FailureClass.WRONG_VALUE,
)


def choose(folder: Path, cases: list[CaseResult], per_track: int = 3) -> tuple[ShownCase, ...]:
    path = write_details(folder / "details.jsonl", cases)
    return choose_cases(path, {}, after="adapter", per_track=per_track)


def pair(number: int, before: FailureClass, after: FailureClass) -> list[CaseResult]:
    return [
        make_case(number, "toolcall", "student", "before", before),
        make_case(number, "toolcall", "adapter", "after", after),
    ]


def test_repaired_cases_come_first_and_one_wrong_one_is_kept(tmp_path: Path) -> None:
    cases = [*pair(0, RIGHT, RIGHT), *pair(1, PROSE, VALUE)]
    for number in range(2, 8):
        cases += pair(number, FENCE, RIGHT)
    shown = choose(tmp_path, cases)
    assert [case.outputs["adapter"].exact for case in shown] == [True, True, False]
    assert not any(case.outputs["student"].exact for case in shown)


def test_different_failures_are_preferred(tmp_path: Path) -> None:
    cases = [*pair(0, FENCE, RIGHT), *pair(1, FENCE, RIGHT), *pair(2, PROSE, RIGHT)]
    shown = choose(tmp_path, cases, per_track=2)
    assert {case.outputs["student"].failure for case in shown} == {"Markdown fence", "prose"}


def test_an_adapter_that_is_always_wrong_fills_the_page_with_wrong_cases(tmp_path: Path) -> None:
    cases = [case for number in range(5) for case in pair(number, FENCE, VALUE)]
    assert [case.outputs["adapter"].exact for case in choose(tmp_path, cases)] == [False] * 3


def test_both_tracks_are_shown(tmp_path: Path) -> None:
    shown = choose(tmp_path, make_cases(), per_track=2)
    assert [case.track for case in shown] == ["structured"] * 2 + ["toolcall"] * 2


def test_a_missing_file_shows_nothing(tmp_path: Path) -> None:
    assert choose_cases(tmp_path / "no", {}, after="adapter", per_track=3) == ()


def test_unreadable_lines_are_passed_over_and_counted(tmp_path: Path, caplog: object) -> None:
    path = write_details(tmp_path / "details.jsonl", pair(0, FENCE, RIGHT))
    with path.open("a", encoding="utf-8") as file:
        file.write("{broken\n")
    shown = choose_cases(path, {shown_id(): "The question"}, after="adapter", per_track=3)
    assert len(shown) == 1
    assert shown[0].question == "The question"
    assert "count=1" in caplog.text  # type: ignore[attr-defined]


def shown_id() -> str:
    return pair(0, FENCE, RIGHT)[0].case_id
