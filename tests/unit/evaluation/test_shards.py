"""Shards cover every case once, and answers gathered from them give the scores of one worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from slm_core.backends.base import WINDOW_BATCHES, Completion, Request
from slm_core.errors import BackendUnavailable
from slm_core.evaluation import Arm, EvaluationSpec, answer, evaluate, gather, read_details, split
from slm_core.records import TRACKS, Example
from slm_core.testing.backends import ScriptedBackend, failed
from slm_core.testing.workload import generate

SPEC = EvaluationSpec(max_tokens=64, resamples=200, give_up_after=3, batch_size=1)
CASES: list[Example] = [case for track in TRACKS for case in generate(3, 20, "test", track)]
GOLD = {case.prompt[-1].content: case.completion for case in CASES}


def backend() -> ScriptedBackend:
    return ScriptedBackend(lambda request: GOLD[request.prompt[-1].content])


def broken() -> ScriptedBackend:
    return ScriptedBackend(lambda _: failed("gone"))


ARM = Arm("student", backend, "s")


@pytest.mark.parametrize("cases", [0, 1, 7, 8, 9, 39, 40])
@pytest.mark.parametrize("shards", [1, 2, 3, 7, 100])
def test_shards_are_whole_windows_that_cover_every_case_once(cases: int, shards: int) -> None:
    parts = split(CASES[:cases], shards, SPEC)
    assert [case for part in parts for case in part] == CASES[:cases]
    assert len(parts) <= shards
    assert all(parts)
    assert all(len(part) % WINDOW_BATCHES == 0 for part in parts[:-1])
    sizes = [-(-len(part) // WINDOW_BATCHES) for part in parts]
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_an_evaluation_of_shards_is_the_evaluation_of_one_worker(tmp_path: Path) -> None:
    whole = evaluate(CASES, [ARM], SPEC, tmp_path / "whole", test_set_id="t")
    folders = [tmp_path / "parts" / str(n) for n in range(3)]
    for folder, part in zip(folders, split(CASES, 3, SPEC), strict=True):
        assert answer(ARM, part, SPEC, folder) == len(part)
    # In another order than they were asked in, and twice.
    assert gather("student", folders[::-1], tmp_path / "merged") == len(CASES)
    assert gather("student", folders, tmp_path / "merged") == 0
    closed = Arm("student", broken, "s")  # a question would fail
    merged = evaluate(CASES, [closed], SPEC, tmp_path / "merged", test_set_id="t")
    assert merged.id == whole.id
    assert merged.arms == whole.arms
    assert read_details(Path(merged.details_path)) == read_details(Path(whole.details_path))


def test_a_shard_of_prompts_that_are_all_too_long_stops_no_other(tmp_path: Path) -> None:
    first, second = split(CASES, 2, SPEC)
    short = {case.prompt[-1].content for case in first}

    def up_to_a_length(request: Request) -> str | Completion:
        asked = request.prompt[-1].content
        return GOLD[asked] if asked in short else failed("too long", permanent=True)

    arm = Arm("student", lambda: ScriptedBackend(up_to_a_length), "s")
    assert answer(arm, first, SPEC, tmp_path / "0") == len(first)
    assert answer(arm, second, SPEC, tmp_path / "1") == 0
    gather("student", [tmp_path / "0", tmp_path / "1"], tmp_path / "out")
    merged = evaluate(CASES, [arm], SPEC, tmp_path / "out", test_set_id="t")
    assert sum(scored.errors for scored in merged.arms) == len(second)


def test_a_lost_shard_is_answered_again_and_no_other(tmp_path: Path) -> None:
    first, second = split(CASES, 2, SPEC)
    answer(ARM, first, SPEC, tmp_path / "0")
    asked: list[str] = []

    def until_it_dies(request: object) -> object:
        asked.append("")
        return failed("gone") if len(asked) > 5 else "{}"

    dying = Arm("student", lambda: ScriptedBackend(until_it_dies), "s")
    with pytest.raises(BackendUnavailable):
        answer(dying, second, SPEC, tmp_path / "1")
    asked.clear()

    def count(request: object) -> object:
        asked.append("")
        return "{}"

    counting = Arm("student", lambda: ScriptedBackend(count), "s")
    answer(counting, second, SPEC, tmp_path / "1")
    assert len(asked) == len(second) - 5
    assert gather("student", [tmp_path / "0", tmp_path / "1"], tmp_path / "out") == len(CASES)
