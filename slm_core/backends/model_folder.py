"""Find a base model on disk and make sure that it is the one it claims to be.

Training and serving both call this before they load a weight. What it refuses: a folder
that is missing or incomplete, and any file that differs from the folder's ``SHA256SUMS``.
"""

from __future__ import annotations

import hashlib
import logging
from functools import lru_cache
from pathlib import Path

from slm_core.errors import MissingDependency, ModelError
from slm_core.records import canonical_json, sha256_hex

log = logging.getLogger(__name__)

SUMS = "SHA256SUMS"
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", SUMS)
"""What is downloaded of a model on the hub."""
_REQUIRED = ("config.json", "tokenizer.json")


def is_hub_id(name: str) -> bool:
    """Whether ``name`` means a model on the hub: it is no folder here and has no path's form."""
    if Path(name).expanduser().is_dir():
        return False
    # A hub id is "name" or "owner/name"; anything else can only have meant a path.
    return not (name.startswith((".", "~", "/")) or name.count("/") > 1)


def locate_model(name: str) -> Path:
    """Return the absolute folder of ``name``, a path or a Hugging Face hub id.

    A hub id is downloaded unless the hub's own cache holds it.

    Raises:
        ModelError: no such folder, and no such model on the hub or no way to reach it.
        MissingDependency: it is a hub id, and huggingface_hub is not installed.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if not is_hub_id(name):
        raise ModelError(f"The model folder {name} does not exist; check base_model.")
    check_hub_client()
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(name, allow_patterns=list(HUB_FILES))
    except (OSError, ValueError) as error:  # every error of the hub is one of the two
        raise ModelError(
            f"{name} is neither a folder nor a model that the Hugging Face hub gives out "
            f"({type(error).__name__}); give the path of a model folder.",
        ) from error
    return Path(found)


def check_hub_client() -> None:
    """Make sure that the hub can be asked: an installation without training may lack its client.

    Raises:
        MissingDependency: huggingface_hub is not installed.
    """
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise MissingDependency.of_extra(
            "hub", "Models of the Hugging Face hub need huggingface_hub", error
        ) from error


def check_model_folder(path: Path) -> str:
    """Return the SHA-256 of the model's weights after checking the folder.

    With one weights file this is that file's hash; with shards, the hash of the canonical
    JSON of name to hash. Every file that ``SHA256SUMS`` lists is compared. Hashes are kept
    for the life of the process and computed again when a file's size or time changes.

    Raises:
        ModelError: folder or file missing, or a hash that differs (both hashes are named).
    """
    if not path.is_dir():
        raise ModelError(f"The model folder {path} does not exist.")
    missing = [name for name in _REQUIRED if not (path / name).is_file()]
    if missing:
        raise ModelError(f"The model folder {path} lacks {', '.join(missing)}.")
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"The model folder {path} holds no weights (*.safetensors).")
    hashes = {file.name: file_sha256(file) for file in weights}
    if (path / SUMS).is_file():
        _compare(path, hashes)
    else:
        log.info("model folder has no %s, weights are not verified path=%s", SUMS, path)
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return sha256_hex(canonical_json(hashes))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, from the cache while its size and time stay the same."""
    stat = path.stat()
    return _hash(path.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _hash(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _compare(path: Path, weights: dict[str, str]) -> None:
    expected: dict[str, str] = {}
    for line in (path / SUMS).read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        digest, _, name = line.strip().partition(" ")
        name = name.strip().removeprefix("*")
        if len(digest) != 64 or not name:
            raise ModelError(f"{path / SUMS} is not in sha256sum format.", line=line)
        expected[name] = digest.lower()
    unlisted = sorted(set(weights) - set(expected))
    if unlisted:
        raise ModelError(f"{path / SUMS} does not list {', '.join(unlisted)}.")
    for name, digest in sorted(expected.items()):
        file = path / name
        if not file.is_file():
            raise ModelError(f"{path / SUMS} lists {name}, which is missing.")
        found = weights.get(name) or file_sha256(file)
        if found != digest:
            raise ModelError(
                f"{file} is not the file that {SUMS} names; fetch the model again.",
                expected=digest,
                found=found,
            )
