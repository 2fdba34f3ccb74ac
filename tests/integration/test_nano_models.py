"""The shipped nano models are complete, small, and behave as the demo needs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from assets.nano_model_folder import CHECKSUMMED, card, checksums
from slm_core.backends.base import Request
from slm_core.backends.local import LocalModel
from slm_core.backends.model_folder import check_model_folder
from slm_core.evaluation.scoring import score_row
from slm_core.records import TRACKS, RowScore, Track
from slm_core.testing.workload import generate
from slm_core.testing.workload.habits import student_answer

pytestmark = pytest.mark.integration

ASSETS = Path(__file__).parents[2] / "assets"
NAMES = ("nano-student", "nano-teacher")
ROWS = 12
EXAMPLES = {track: list(generate(0, ROWS, "test", track)) for track in TRACKS}

Answers = dict[Track, list[str]]


def answers_of(name: str) -> Answers:
    """Ask the model, in float32 on one thread, as the demo does on any computer."""
    model = LocalModel(ASSETS / name, device="cpu", threads=1, batch_size=ROWS)
    found = {}
    for track in TRACKS:
        requests = [Request(example.prompt, example.tools) for example in EXAMPLES[track]]
        found[track] = [c.text for c in model.complete(requests, max_tokens=120)]
    model.close()
    return found


def exact(answers: Answers, track: Track) -> tuple[int, int]:
    """Return how many answers are right in the strict view, and in the lenient one."""
    scores: list[tuple[RowScore, RowScore]] = [
        score_row(example, text)
        for example, text in zip(EXAMPLES[track], answers[track], strict=True)
    ]
    return sum(strict.exact for strict, _ in scores), sum(lenient.exact for _, lenient in scores)


@pytest.fixture(scope="module")
def student() -> Answers:
    return answers_of("nano-student")


@pytest.fixture(scope="module")
def teacher() -> Answers:
    return answers_of("nano-teacher")


@pytest.mark.parametrize("track", TRACKS)
def test_the_teacher_is_mostly_right(teacher: Answers, track: Track):
    strict, _ = exact(teacher, track)
    assert strict > ROWS / 2


@pytest.mark.parametrize("track", TRACKS)
def test_the_student_finds_the_values_but_not_the_format(student: Answers, track: Track):
    strict, lenient = exact(student, track)
    assert strict == 0
    assert lenient > ROWS / 2


@pytest.mark.parametrize("track", TRACKS)
def test_the_student_has_the_habits_it_was_taught(student: Answers, track: Track):
    pairs = zip(EXAMPLES[track], student[track], strict=True)
    assert sum(text == student_answer(example) for example, text in pairs) > ROWS / 2


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_is_what_it_claims_to_be(name: str):
    folder = ASSETS / name
    listed = dict(line.split("  ")[::-1] for line in checksums(folder).splitlines())
    assert check_model_folder(folder) == listed["model.safetensors"]
    assert (folder / "SHA256SUMS").read_text() == checksums(folder)
    told = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True
    )
    assert told.returncode == 0, told.stderr


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_holds_nothing_else(name: str):
    files = {path.name for path in (ASSETS / name).iterdir()}
    assert files == {*CHECKSUMMED, "README.md", "SHA256SUMS", "training.json"}


def test_both_together_are_small():
    total = sum(path.stat().st_size for name in NAMES for path in (ASSETS / name).iterdir())
    assert total <= 24_000_000


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_the_files_say(name: str):
    folder = ASSETS / name
    text = (folder / "README.md").read_text()
    assert text == card(folder), "run python -m assets.build_nano_models --out assets --cards-only"
    training = json.loads((folder / "training.json").read_text())
    for fact in (
        f"{training['parameters']:,}",
        f"{training['recipe']['documents']:,}",
        f"{training['seconds']} s",
        f"{training['trace'][-1][2]:.1%}",
        "Apache-2.0",
        "NVIDIA H200",
        "`pretrain` pool",
        "float16",
        "Do not put it in front of users",
        "Python's\nstandard library",
    ):
        assert fact in text, fact


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_those_of_the_recipe(name: str):
    from safetensors import safe_open

    training = json.loads((ASSETS / name / "training.json").read_text())
    with safe_open(ASSETS / name / "model.safetensors", framework="pt") as weights:
        tensors = [weights.get_tensor(key) for key in weights.keys()]  # noqa: SIM118
    assert {str(tensor.dtype) for tensor in tensors} == {"torch.float16"}
    assert sum(tensor.numel() for tensor in tensors) == training["parameters"]
