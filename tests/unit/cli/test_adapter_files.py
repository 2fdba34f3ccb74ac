"""``slm adapters push``: what reaches a hub, what never does, and when it asks back.

The hub is a real server; the client runs in a process of its own, because it reads the
address of the hub only once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slm_core.records import Adapter, sha256_hex
from slm_core.store import Store
from slm_core.testing.hub_receiver import HubReceiver, Repo
from slm_core.testing.records import make_adapter, make_dataset, make_decision, make_evaluation

pytestmark = pytest.mark.integration

FILES = {"adapter_config.json", "adapter_model.safetensors", "slm_adapter.json", "README.md"}


@pytest.fixture
def hub() -> Iterator[HubReceiver]:
    with HubReceiver() as hub:
        yield hub


@pytest.fixture
def adapter(store: Store, tmp_path: Path) -> Adapter:
    """An adapter in a folder with much that is nobody's business."""
    folder = tmp_path / "secret-project" / "adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    settings = {"r": 16, "base_model_name_or_path": str(folder.parent / "llama-8b")}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "train.jsonl").write_text("a customer's question")
    made = make_adapter(
        path=str(folder),
        base_model=str(folder.parent / "llama-8b"),
        weights_sha256=sha256_hex(b"weights"),
        summary={"steps": 100, "too_long_ids": ["a-customer"], "val_loss": 0.25},
    )
    (folder / "slm_adapter.json").write_text(made.model_dump_json())
    store.adapters.save(made)
    store.datasets.save(make_dataset(str(folder.parent / "data")))
    store.evaluations.save(make_evaluation())
    store.decisions.save(make_decision(adapter_id=made.id))
    return made


def push(
    hub: HubReceiver, *words: str, status: int = 0, say: str = "", **environment: str
) -> tuple[str, str]:
    given = {"HF_TOKEN": hub.token, "HF_ENDPOINT": hub.base_url, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "slm_core.cli", "adapters", "push", *words],
        env=os.environ | given | environment,
        input=say,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def test_a_push_is_private_and_holds_four_files(hub: HubReceiver, adapter: Adapter) -> None:
    out, err = push(hub, adapter.id, "me/slm", "--licence", "llama3.1", "--json")
    said = json.loads(out)
    assert (said["repo"], said["private"]) == ("me/slm", True)
    repo = hub.repos["me/slm"]
    assert (repo.private, set(repo.files), repo.messages) == (True, FILES, [f"Add {adapter.id}"])
    assert repo.files["adapter_model.safetensors"] == b"weights"
    # The base model is a folder here; only its name goes out.
    assert "--base-model" in err
    settings = json.loads(repo.files["adapter_config.json"])
    assert settings == {"r": 16, "base_model_name_or_path": "llama-8b"}
    record = Adapter.model_validate_json(repo.files["slm_adapter.json"])
    assert record.weights_sha256 == adapter.weights_sha256
    assert record.summary == {"steps": 100, "val_loss": 0.25}
    card = repo.files["README.md"].decode()
    assert "license: llama3.1" in card
    assert "160 train" in card
    assert "**SUCCESS**" in card

    sent = b"".join([*hub.bodies, *repo.files.values()])
    for private in (b"secret-project", b"customer", str(Path.home()).encode() + b"/"):
        assert private not in sent


def test_a_repository_that_all_can_read_is_not_taken_for_a_private_one(
    hub: HubReceiver, adapter: Adapter
) -> None:
    hub.repos["me/slm"] = Repo(private=False)
    _, err = push(hub, adapter.id, "me/slm", status=2)
    assert "is public" in err
    assert hub.repos["me/slm"].files == {}


def test_public_is_asked_back(hub: HubReceiver, adapter: Adapter) -> None:
    _, err = push(hub, adapter.id, "me/slm", "--public", status=1, say="n\n")
    assert hub.bodies == []
    base = ("--base-model", "meta-llama/Llama-3.1-8B")
    out, err = push(hub, adapter.id, "me/slm", "--public", *base, say="y\n")
    assert "(public)" in out
    assert "--base-model" not in err
    repo = hub.repos["me/slm"]
    assert not repo.private
    assert b"base_model: meta-llama/Llama-3.1-8B" in repo.files["README.md"]


def test_a_hub_that_refuses_is_one_message(hub: HubReceiver, adapter: Adapter) -> None:
    _, err = push(hub, adapter.id, "me/slm", status=1, HF_TOKEN="hf_wrong")
    assert "HubError" in err
    assert "401" in err
    assert "hf_wrong" not in err
    assert hub.repos == {}


def test_weights_that_are_not_the_recorded_ones_stay_here(
    hub: HubReceiver, adapter: Adapter
) -> None:
    (Path(adapter.path) / "adapter_model.safetensors").write_bytes(b"others")
    _, err = push(hub, adapter.id, "me/slm", status=1)
    assert "not the file that was trained" in err
    assert hub.repos == {}


def test_without_a_token_or_a_name_nothing_begins(
    slm: Any, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "HF_TOKEN is not set" in slm.refused("adapters", "push", adapter.id, "me/slm", status=2)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    assert "OWNER/NAME" in slm.refused("adapters", "push", adapter.id, "slm", status=2)
    shutil.rmtree(adapter.path)
    assert "lacks" in slm.refused("adapters", "push", adapter.id, "me/slm")
