"""What the Hugging Face hub says of a model, and what that means to who runs a training.

It is asked a few small questions and for no weights. Each answer becomes a fact or a problem
with its next step.
"""

from __future__ import annotations

import fnmatch
import logging
import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

from slm_core.backends.model_folder import HUB_FILES, check_hub_client
from slm_core.backends.model_memory import GIB, MemoryEstimate
from slm_core.records import Record

log = logging.getLogger(__name__)

OPEN_ALTERNATIVES = {
    "meta-llama/Llama-3.2-1B": "Qwen/Qwen2.5-1.5B-Instruct",
    "meta-llama/Llama-3.2-3B": "microsoft/Phi-4-mini-instruct",
    "meta-llama/": "Qwen/Qwen2.5-7B-Instruct",
    "google/": "Qwen/Qwen2.5-7B-Instruct",
    "mistralai/": "Qwen/Qwen2.5-7B-Instruct",
    "microsoft/phi-4": "microsoft/Phi-4-mini-instruct",
    "Qwen/Qwen2.5-7B-Instruct": "microsoft/Phi-4-mini-instruct",
}
"""Beginning of a model's name to a model of like size, or of the next smaller one, that anybody
may download: Qwen2.5 1.5B and 7B under Apache-2.0, Phi-4-mini under MIT."""

_DISK_MARGIN = 1.05


class ModelAccess(Record):
    """What is known of a base model that may be used."""

    model: str
    source: Literal["folder", "cache", "hub"]
    """A folder of yours, the hub's cache on this machine, or still to be downloaded."""
    parameters: int
    weights_bytes: int
    download_bytes: int = 0
    """Still to be fetched."""
    free_bytes: int | None = None
    """On the disk that it is fetched to."""
    licence: str | None = None
    gated: bool = False
    memory: MemoryEstimate | None = None
    """On each GPU; None when nobody asked."""
    notes: tuple[str, ...] = ()
    """Nothing that stops a run, but worth knowing."""


class Found(NamedTuple):
    """What the disk or the hub says of the model."""

    access: ModelAccess
    config: dict[str, Any]


class Hub:
    """The few questions to the hub, and what its answers mean to the one who runs a training."""

    def __init__(
        self,
        model: str,
        token: str | None,
        cache_dir: Path | None,
        endpoint: str | None,
        shape_wanted: bool,
    ) -> None:
        """Prepare to ask; nothing is sent yet.

        Raises:
            MissingDependency: huggingface_hub is not installed.
        """
        check_hub_client()
        from huggingface_hub import HfApi, constants, get_token

        self._model = model
        self._token = token or get_token()
        self._cache = Path(cache_dir or constants.HF_HUB_CACHE)
        # False: no other token, wherever the hub's client might find one.
        self._api = HfApi(endpoint=endpoint, token=self._token or False)
        self._shape_wanted = shape_wanted
        self._problems: list[str] = []

    def ask(self) -> tuple[Found | None, list[str]]:
        """Return what the hub says, and every problem found on the way."""
        try:
            return self._ask(), self._problems
        except Exception as error:  # whatever the client raises, a person must be told
            return None, [*self._problems, self._reason(error)]

    def too_slow(self) -> tuple[Found | None, list[str]]:
        """Return the problem of a hub that did not answer in time."""
        return None, [
            *self._problems,
            f"{self._api.endpoint} did not answer in time. Check the network and the proxy, or "
            "copy the model to this machine and give base_model the path of its folder.",
        ]

    def _ask(self) -> Found:
        info = self._api.model_info(self._model, files_metadata=True, timeout=5.0)
        licence, gated = _licence(info), bool(info.gated)
        if gated:
            self._check_gate(licence)
        files = [
            file
            for file in info.siblings or []
            if any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in HUB_FILES)
        ]
        weights = sum(f.size or 0 for f in files if f.rfilename.endswith(".safetensors"))
        if not weights:
            self._problems.append(
                f"{self._model} has no *.safetensors weights, and other formats can run code when "
                f"they are opened. Convert it, or take {alternative(self._model)}."
            )
        download = sum(f.size or 0 for f in files if not self._is_here(f))
        free = shutil.disk_usage(_existing(self._cache)).free
        if download * _DISK_MARGIN > free:
            self._problems.append(
                f"{gib(download)} are to be downloaded and {self._cache} has {gib(free)} free. "
                "Free some, or set HF_HOME to a larger disk."
            )
        safetensors = info.safetensors
        access = ModelAccess(
            model=self._model,
            source="hub",
            parameters=safetensors.total if safetensors else weights // 2,
            weights_bytes=weights,
            download_bytes=download,
            free_bytes=free,
            licence=licence,
            gated=gated,
        )
        wanted = self._shape_wanted and not self._problems
        return Found(access, self._config() if wanted else {})

    def _check_gate(self, licence: str | None) -> None:
        from huggingface_hub.errors import HfHubHTTPError

        try:
            self._api.auth_check(self._model)
        except HfHubHTTPError as error:
            self._problems.append(self._reason(error, licence))

    def _reason(self, error: Exception, licence: str | None = None) -> str:
        """Return what is wrong and what to do."""
        from huggingface_hub import errors

        page, other = f"{self._api.endpoint}/{self._model}", alternative(self._model)
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.OfflineModeIsEnabled):
            return (
                f"HF_HUB_OFFLINE is set, and {self._cache} does not hold the model. Unset it, or "
                "give base_model the path of a model folder."
            )
        if isinstance(error, errors.GatedRepoError):
            terms = f"under the licence {licence}" if licence else "under a licence of its own"
            if self._token is None:
                step = f"Accept it at {page}, then set HF_TOKEN or run `hf auth login`"
            else:
                step = (
                    f"{self._owner()} has no access: accept it at {page} with that account, and "
                    "let a fine-grained token read gated models"
                )
            return f"The model is gated {terms}. {step}; or take the open model {other}."
        if status == 401 and self._token is not None and not self._token_is_valid():
            return (
                "The hub refuses the token (HF_TOKEN, or the one of `hf auth login`): it is "
                f"expired or mistyped. Make one at {self._api.endpoint}/settings/tokens."
            )
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403, 404):
            hint = "" if self._token else ", or a private one that needs HF_TOKEN"
            return f"The hub knows no model of that name{hint}. Check base_model; see {page}."
        if status is not None:
            return f"The hub answered with status {status}. Try again, or look at its status page."
        return (
            f"{self._api.endpoint} cannot be reached ({type(error).__name__}). Check the network "
            "and the proxy, or give base_model the path of a model folder."
        )

    def _token_is_valid(self) -> bool:
        from huggingface_hub.errors import HfHubHTTPError

        try:
            self._api.whoami()
        except HfHubHTTPError as error:
            return error.response.status_code != 401
        return True

    def _owner(self) -> str:
        try:
            return f"The account {self._api.whoami()['name']}"
        except (OSError, KeyError):
            return "The token"

    def _is_here(self, file: Any) -> bool:
        """Whether the cache holds the file's content from an interrupted download."""
        from huggingface_hub.file_download import repo_folder_name

        name = repo_folder_name(repo_id=self._model, repo_type="model")
        digest = file.lfs.sha256 if file.lfs else file.blob_id
        return bool(digest) and (self._cache / name / "blobs" / digest).is_file()

    def _config(self) -> dict[str, Any]:
        """Return the model's ``config.json``, some kilobytes; empty when it cannot be had."""
        from huggingface_hub import get_session
        from huggingface_hub.utils import build_hf_headers

        url = f"{self._api.endpoint}/{self._model}/resolve/main/config.json"
        headers = build_hf_headers(token=self._token or False)
        try:
            answer = get_session().get(url, headers=headers, follow_redirects=True, timeout=5.0)
            return answer.json() if answer.status_code == 200 else {}
        except Exception as error:  # an estimate without the shape is better than none
            log.debug("config not read model=%s error=%s", self._model, type(error).__name__)
            return {}


def _licence(info: Any) -> str | None:
    card = info.card_data or {}
    named = card.get("license_name") if card.get("license") == "other" else card.get("license")
    tags = [tag.removeprefix("license:") for tag in info.tags or [] if tag.startswith("license:")]
    return named or next(iter(tags), None)


def _existing(path: Path) -> Path:
    """Return the nearest folder above ``path`` that exists."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path


def alternative(model: str) -> str:
    """Return an open model to take in place of ``model``."""
    return next(
        (other for start, other in OPEN_ALTERNATIVES.items() if model.startswith(start)),
        "Qwen/Qwen2.5-7B-Instruct",
    )


def gib(size: int) -> str:
    """Return bytes as people read them."""
    return f"{size / GIB:.1f} GiB"
