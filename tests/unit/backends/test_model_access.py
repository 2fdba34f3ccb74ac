"""A model that cannot be had or held is refused in seconds, with the next step, before a download.

The hub is a server on this machine that speaks the hub's HTTP.
"""

from __future__ import annotations

import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from slm_core.backends.model_access import check_access
from slm_core.backends.model_folder import is_hub_id
from slm_core.backends.model_memory import (
    GIB,
    MemoryNeed,
    ModelShape,
    estimate_memory,
)
from slm_core.errors import ConfigError, MissingDependency, ModelError
from slm_core.testing.fake_hub import (
    GOOD_TOKEN,
    LLAMA_8B_CONFIG,
    STRANGER_TOKEN,
    FakeHub,
    HubModel,
)

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
PARAMETERS = 8_030_261_248
MODELS = {
    LLAMA: HubModel(
        gated=True,
        licence="llama3.1",
        weights_bytes=1_000_000,
        parameters=PARAMETERS,
        config=LLAMA_8B_CONFIG,
    ),
    "owner/open": HubModel(),
    "owner/pickles": HubModel(weights_name="pytorch_model.bin"),
    "owner/huge": HubModel(weights_bytes=10**18),
}


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's client of these tests may ask a server, and knows no token of this machine."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with FakeHub(MODELS) as hub:
        yield hub


@pytest.fixture
def check(hub: FakeHub, tmp_path: Path) -> Any:
    hub.asked.clear()

    def check(model: str, **changes: Any) -> Any:
        given = {"endpoint": hub.base_url, "cache_dir": tmp_path / "cache"} | changes
        return check_access(model, **given)

    return check


def problems(check: Any, model: str, **changes: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        check(model, **changes)
    assert model in str(caught.value)
    return caught.value.problems


def test_a_model_that_may_be_downloaded_is_described_and_not_downloaded(
    check: Any, hub: FakeHub, tmp_path: Path
) -> None:
    access = check("owner/open")
    assert (access.source, access.gated, access.licence) == ("hub", False, "apache-2.0")
    assert access.parameters == 500_000
    # The weights and the two JSON files; the .pth is never fetched.
    assert access.download_bytes == 1_000_000 + 900 + 9_000_000
    assert hub.asked == ["/api/models/owner/open"]
    assert not (tmp_path / "cache").exists()


def test_what_an_interrupted_download_left_is_not_fetched_again(check: Any, tmp_path: Path) -> None:
    blobs = tmp_path / "cache" / "models--owner--open" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / ("a" * 64)).write_bytes(b"")
    assert check("owner/open").download_bytes == 900 + 9_000_000


def test_a_gated_model_without_a_token_names_licence_page_token_and_the_open_model(
    check: Any, hub: FakeHub
) -> None:
    (problem,) = problems(check, LLAMA)
    for part in ("llama3.1", f"{hub.base_url}/{LLAMA}", "HF_TOKEN", "Qwen/Qwen2.5-7B-Instruct"):
        assert part in problem


def test_a_token_whose_account_did_not_accept_the_licence_is_named(check: Any) -> None:
    (problem,) = problems(check, LLAMA, token=STRANGER_TOKEN)
    assert "account mallory has no access" in problem
    assert "accept it at" in problem


def test_with_access_a_gated_model_may_be_used(check: Any) -> None:
    access = check(LLAMA, token=GOOD_TOKEN)
    assert (access.gated, access.licence) == (True, "llama3.1")


@pytest.mark.parametrize("model", ["owner/open", LLAMA])
def test_a_mistyped_token_is_told_apart_from_a_missing_right(check: Any, model: str) -> None:
    (problem,) = problems(check, model, token="hf_typo")
    assert "refuses the token" in problem
    assert "/settings/tokens" in problem


@pytest.mark.parametrize("token", [None, GOOD_TOKEN])
def test_an_unknown_name_is_said_to_be_one(check: Any, token: str | None) -> None:
    (problem,) = problems(check, "owner/missing", token=token)
    assert "knows no model of that name" in problem
    assert ("HF_TOKEN" in problem) == (token is None)


def test_other_weights_than_safetensors_are_refused(check: Any) -> None:
    (problem,) = problems(check, "owner/pickles")
    assert "no *.safetensors" in problem


def test_too_little_disk_is_refused_with_both_numbers(check: Any, tmp_path: Path) -> None:
    (problem,) = problems(check, "owner/huge")
    free = shutil.disk_usage(tmp_path).free / GIB
    assert f"{10**18 / GIB:.1f} GiB are to be downloaded" in problem
    assert f"has {free:.0f}"[:-2] in problem


def test_all_problems_are_listed_at_once(hub: FakeHub, check: Any) -> None:
    hub.models["owner/all"] = HubModel(gated=True, weights_bytes=10**18)
    found = problems(check, "owner/all", need=MemoryNeed(1024, gpu_memory_bytes=1024))
    assert len(found) == 3
    assert ["gated" in found[0], "free" in found[1], "GPU" in found[2]] == [True] * 3


def test_a_hub_that_is_out_of_order_is_quoted(check: Any) -> None:
    with FakeHub(MODELS) as broken:
        broken.status = 503
        (problem,) = problems(check, "owner/open", endpoint=broken.base_url)
    assert "status 503" in problem


def test_a_hub_that_cannot_be_reached_is_named(check: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        (problem,) = problems(check, "owner/open", endpoint=address)
    assert f"{address} cannot be reached" in problem


def test_a_hub_that_does_not_answer_is_given_up_in_time(check: Any) -> None:
    with FakeHub(MODELS, delay_seconds=3.0) as slow:
        began = time.monotonic()
        (problem,) = problems(check, "owner/open", endpoint=slow.base_url, timeout_seconds=0.5)
        assert time.monotonic() - began < 2.0
    assert "did not answer in time" in problem


def test_offline_without_a_copy_says_so(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (problem,) = problems(check, "owner/open")
    assert "HF_HUB_OFFLINE" in problem


def in_cache(folder: Path, model: str, files: dict[str, bytes]) -> None:
    """Lay ``files`` out as the hub's client does."""
    repository = folder / f"models--{model.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("e" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("e" * 40)
    for name, data in files.items():
        (snapshot / name).write_bytes(data)


def test_a_whole_copy_in_the_cache_needs_no_hub(
    check: Any, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    files = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"weights"}
    in_cache(tmp_path / "cache", "owner/open", files)
    access = check("owner/open")
    assert (access.source, access.weights_bytes, access.download_bytes) == ("cache", 7, 0)
    assert hub.asked == []


def test_a_copy_that_lacks_a_shard_is_not_taken_for_whole(
    check: Any, hub: FakeHub, tmp_path: Path
) -> None:
    files = {"config.json": b"{}", "tokenizer.json": b"{}"}
    files["model-00001-of-00002.safetensors"] = b"half"
    in_cache(tmp_path / "cache", "owner/open", files)
    assert check("owner/open").source == "hub"


def test_a_folder_is_read_without_the_hub(check: Any, hub: FakeHub, tiny_model: Path) -> None:
    import torch
    from safetensors import safe_open

    access = check(str(tiny_model))
    with safe_open(tiny_model / "model.safetensors", framework="pt") as file:
        values = sum(int(torch.numel(file.get_tensor(name))) for name in file.keys())  # noqa: SIM118
    assert (access.source, access.parameters) == ("folder", values)
    assert hub.asked == []


def test_without_the_hubs_client_only_folders_can_be_checked(
    check: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert check(str(tiny_model)).source == "folder"
    with pytest.raises(MissingDependency, match=r"pip install .*\[hub\]"):
        check("owner/open")


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "a/b/c"])
def test_a_path_that_does_not_exist_is_no_hub_id(check: Any, hub: FakeHub, name: str) -> None:
    assert not is_hub_id(name)
    with pytest.raises(ModelError, match="does not exist"):
        check(name)
    assert hub.asked == []


def test_a_folder_without_weights_or_with_a_broken_config_is_refused(
    check: Any, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="lacks"):
        check(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="JSON"):
        check(str(tmp_path))


NEED = MemoryNeed(pass_tokens=8192, lora_r=16)
SHAPE = ModelShape.of(LLAMA_8B_CONFIG)


def test_the_adapter_has_as_many_weights_as_peft_says() -> None:
    assert SHAPE is not None
    # `print_trainable_parameters` for r=16 on all linear layers of Llama-3.1-8B.
    assert SHAPE.lora_parameters(16) == 41_943_040


def test_the_estimate_lies_near_what_was_measured() -> None:
    # 66.4 GiB measured on an H200: passes of 8,192 tokens, bf16, nothing recomputed.
    planned = estimate_memory(PARAMETERS, SHAPE, NEED).planned / GIB
    assert 0.75 * 66.4 < planned < 1.25 * 66.4


def test_nf4_and_recomputation_shrink_what_they_should() -> None:
    plain = estimate_memory(PARAMETERS, SHAPE, NEED)
    small = estimate_memory(PARAMETERS, SHAPE, NEED._replace(quantization="nf4"))
    assert plain.weights == 2 * PARAMETERS
    assert 5.0 < small.weights / GIB < 6.0
    assert plain.least_weights == plain.weights
    assert plain.least_activations < plain.activations / 10
    kept = estimate_memory(PARAMETERS, SHAPE, NEED._replace(may_recompute=False))
    assert kept.least == kept.planned
    cut = estimate_memory(PARAMETERS, SHAPE, NEED._replace(least_tokens=1024))
    assert (cut.activations, cut.least_activations) == (
        plain.activations,
        plain.least_activations // 8,
    )
    ladder = estimate_memory(PARAMETERS, SHAPE, NEED._replace(may_quantize=True))
    assert (ladder.weights, ladder.least_weights) == (plain.weights, small.weights)
    spread = estimate_memory(PARAMETERS, SHAPE, NEED._replace(shards=4))
    assert spread.weights == PARAMETERS // 2
    assert spread.least > plain.weights, "each GPU loads the whole model first"


@pytest.mark.parametrize(
    ("gibibytes", "ladder", "outcome"),
    [(80, False, "fits"), (24, False, "fits if recomputed"), (12, False, "refused"),
     (12, True, "fits if recomputed"), (6, True, "refused")],
)  # fmt: skip
def test_a_gpu_that_is_too_small_is_refused_before_the_download(
    check: Any, gibibytes: int, ladder: bool, outcome: str
) -> None:
    need = NEED._replace(gpu_memory_bytes=gibibytes * GIB, may_quantize=ladder)
    if outcome == "refused":
        (problem,) = problems(check, LLAMA, token=GOOD_TOKEN, need=need)
        assert f"{gibibytes}.0 GiB" in problem
        assert "nf4" in problem
    else:
        access = check(LLAMA, token=GOOD_TOKEN, need=need)
        assert (access.notes != ()) == (outcome == "fits if recomputed")


def test_without_the_shape_the_estimate_says_what_it_leaves_out(check: Any) -> None:
    access = check("owner/open", need=NEED)
    assert not access.memory.complete
    assert "activations are not in the estimate" in access.notes[0]
