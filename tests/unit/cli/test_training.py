"""``slm models`` and ``slm train``, each on its own: what they say and refuse.

That a resumed training ends in the same adapter is shown with the flows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from slm_core.records import RunState
from slm_core.store import Store
from slm_core.testing.fake_hub import LLAMA_8B_CONFIG, FakeHub, HubModel
from slm_core.training.orders import Order, OrderBook

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    llama = HubModel(
        gated=True, licence="llama3.1", parameters=8_030_261_248, config=LLAMA_8B_CONFIG
    )
    with FakeHub({LLAMA: llama}) as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.base_url)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


def test_a_folder_is_checked_and_its_memory_estimated(slm: Any, tiny_model: Path) -> None:
    shown = slm("models", "check", tiny_model).stdout
    assert "a folder" in shown
    assert "GPU memory, at the least" in shown
    found = slm.json("models", "check", tiny_model)
    assert found["source"] == "folder"
    assert found["memory"]["complete"]


def test_a_gated_model_is_refused_with_the_next_step(slm: Any, hub: FakeHub) -> None:
    said = slm.refused("models", "check", "llama-cep", status=2)
    for part in (LLAMA, "llama3.1", "HF_TOKEN", "Qwen/Qwen2.5-7B-Instruct"):
        assert part in said


def test_the_token_comes_from_the_settings_and_a_small_gpu_is_refused(
    slm: Any, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert "llama3.1, accepted" in slm("models", "check", LLAMA, "--gpu-gib", 80).stdout
    # The preset follows the recipe, which never goes to 4 bits.
    said = slm.refused("models", "check", "llama-cep", "--gpu-gib", 12, status=2)
    assert "12.0 GiB" in said


def test_without_anything_to_resume_it_says_so(slm: Any, store: Store) -> None:
    assert "slm runs list" in slm.refused("train", "resume")
    assert "'nothing'" in slm.refused("train", "resume", "nothing")


def test_a_run_that_had_not_begun_to_train_is_left_to_the_flow(
    slm: Any, store: Store, slm_home: Path
) -> None:
    book = OrderBook(slm_home / "runs")
    book.write(Order(run_id="run-1", flow="retrain", spec={}, state=RunState.INTERRUPTED))
    said = slm.refused("train", "resume", status=2)
    assert "prefect deployment run resume/run -p run_id=run-1" in said
