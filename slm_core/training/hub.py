"""Publish an adapter on the Hugging Face hub: weights, settings, card, and nothing else.

What it refuses: to put a private adapter into a repository that anybody can read, and a hub
that says no. Training data, checkpoints, logs and paths of this machine never leave it.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

from slm_core.backends.adapter_folder import read_adapter
from slm_core.errors import ConfigError, HubError, MissingDependency, ModelError
from slm_core.records import Adapter
from slm_core.training.card import public_name

log = logging.getLogger(__name__)

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_SAYABLE = frozenset({"device", "precision", "quantization", "stop_reason"})
"""Texts of a summary that hold no path and no id of a row."""


class Pushed(NamedTuple):
    """Where an adapter went."""

    repo: str
    url: str
    """Of the commit."""
    private: bool
    files: tuple[str, ...]


def public_record(adapter: Adapter, base_model: str | None = None) -> Adapter:
    """Return the record without the paths, the texts and the row ids in it."""
    return adapter.model_copy(
        update={
            "path": "",
            "base_model": base_model or public_name(adapter.base_model),
            "summary": {k: v for k, v in adapter.summary.items() if k in _SAYABLE or _counts(v)},
        }
    )


def push_adapter(
    folder: Path,
    repo: str,
    *,
    card: str,
    token: str,
    public: bool = False,
    base_model: str | None = None,
) -> Pushed:
    """Upload the adapter in ``folder`` to the hub repository ``repo`` in one commit.

    Args:
        folder: of a trained adapter.
        repo: ``owner/name``; made if absent.
        card: the README of the repository.
        token: with the right to write.
        public: let anybody read it.
        base_model: hub id of the base model, where the record has a path.

    Raises:
        ModelError: the adapter is not what it claims to be.
        ConfigError: ``repo`` is no repository's name, or is public already and
            ``public`` is not asked for.
        HubError: the hub refused or did not answer.
        MissingDependency: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        # The extra ``train`` has it too; this one brings no torch.
        raise MissingDependency.of_extra("hub", "Pushing needs huggingface_hub", error) from error
    if repo.count("/") != 1:
        raise ConfigError(f"{repo!r} is no repository; it should read OWNER/NAME.")
    adapter = public_record(read_adapter(folder), base_model)
    contents: dict[str, bytes | str] = {
        WEIGHTS: str(folder / WEIGHTS),
        SETTINGS: _settings(folder / SETTINGS, adapter.base_model),
        "slm_adapter.json": adapter.model_dump_json(indent=2).encode(),
        "README.md": card.encode(),
    }
    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        # One that exists keeps its visibility, whatever was asked for.
        private = bool(api.model_info(repo).private)
        if not (private or public):
            raise ConfigError(
                f"{repo} exists and is public. Choose another name, or publish for all to see "
                "with --public."
            )
        commit = api.create_commit(
            repo,
            [CommitOperationAdd(name, content) for name, content in contents.items()],
            commit_message=f"Add {adapter.id}",
        )
    except HFValidationError as error:
        raise ConfigError(f"{repo!r} is no repository's name: {error}") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        raise HubError(
            f"The hub refused to take {adapter.id} into {repo}; check HF_TOKEN and who may "
            "write there.",
            status=status,
            said=error.server_message,
        ) from error
    except ValueError as error:
        raise HubError(f"The hub finds fault with the card of {adapter.id}: {error}") from error
    except (OSError, _transport_error()) as error:
        raise HubError(
            f"The hub did not answer ({type(error).__name__}); nothing was published in {repo}."
        ) from error
    log.info("adapter pushed id=%s repo=%s private=%s", adapter.id, repo, private)
    return Pushed(repo, str(commit.commit_url), private, tuple(contents))


def _transport_error() -> type[Exception]:
    import httpx

    return httpx.HTTPError


def _settings(file: Path, base_model: str) -> bytes:
    """Return PEFT's settings with the base model's public name."""
    try:
        settings = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    settings["base_model_name_or_path"] = base_model
    return json.dumps(settings, indent=2).encode()


def _counts(value: Any) -> bool:
    """Whether ``value`` is a number, unknown, or a table of numbers."""
    if isinstance(value, dict):
        return all(map(_counts, value.values()))
    return value is None or isinstance(value, (bool, int, float))
