"""Datasets on disk: JSON Lines and a manifest, complete or not there at all.

A folder is written under a hidden name, synced, and renamed last. Readers compare each file
with its SHA-256 in ``manifest.json`` and refuse one that was altered.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from slm_core.errors import DatasetError
from slm_core.records import (
    SPLITS,
    Dataset,
    Example,
    Split,
    canonical_json,
    content_id,
    sha256_hex,
)
from slm_core.system import durable

MANIFEST = "manifest.json"


def split_file(split: Split) -> str:
    """Return the file name of a split."""
    return f"{split}.jsonl"


def dataset_id(files: Mapping[str, str]) -> str:
    """Return the id that follows from the split files' SHA-256."""
    return content_id("ds", {split: files[split_file(split)] for split in SPLITS})


def to_jsonl(rows: Iterable[Any]) -> str:
    """Return JSON Lines; the order of keys is kept, for tools are rendered in it."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def read_dataset(path: Path | str) -> Dataset:
    """Return the manifest of the dataset in folder ``path``, wherever it was moved to.

    Raises:
        DatasetError: there is no manifest, or it is not one.
    """
    folder = Path(path)
    try:
        dataset = Dataset.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise DatasetError(
            f"No complete dataset at {folder}: {MANIFEST} is missing. Build it again."
        ) from None
    except (OSError, ValidationError) as error:
        raise DatasetError(f"{folder / MANIFEST} cannot be read: {error}") from error
    if set(map(split_file, SPLITS)) - set(dataset.files) or dataset_id(dataset.files) != dataset.id:
        raise DatasetError(
            f"{folder / MANIFEST} was altered: its id does not follow from its files."
        )
    return dataset.model_copy(update={"path": str(folder.resolve())})


def read_split(path: Path | str, split: Split) -> list[Example]:
    """Return the examples of one split of the dataset in folder ``path``.

    Raises:
        DatasetError: the dataset is incomplete, or the file is not the one in the manifest.
    """
    dataset = read_dataset(path)
    data = _verified(dataset, split_file(split))
    examples = [Example.model_validate(json.loads(line)) for line in data.splitlines()]
    if len(examples) != dataset.rows[split]:
        raise DatasetError(
            f"{dataset.path} {split} holds {len(examples)} rows, its manifest says "
            f"{dataset.rows[split]}. Build the dataset again."
        )
    return examples


def verify_dataset(path: Path | str) -> Dataset:
    """Return the manifest after comparing every file with its SHA-256.

    Raises:
        DatasetError: a file is missing or altered.
    """
    dataset = read_dataset(path)
    for name in dataset.files:
        _verified(dataset, name)
    return dataset


def _verified(dataset: Dataset, name: str) -> bytes:
    path = Path(dataset.path) / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}. Build the dataset again.") from error
    found = sha256_hex(data)
    if found != dataset.files[name]:
        raise DatasetError(
            f"{path} was altered: its SHA-256 is {found[:16]}..., the manifest says "
            f"{dataset.files[name][:16]}.... Restore the file or build the dataset again."
        )
    return data


def write_dataset(
    parent: Path | str, files: Mapping[str, str], describe: Callable[[str, dict[str, str]], Dataset]
) -> Dataset:
    """Write ``files`` (name to text) as a folder under ``parent``, or verify that it is there.

    ``describe`` makes the manifest from the folder's path and the files' SHA-256. The folder
    is named after the dataset's id and a digest of the rest of the manifest: the same rows
    with other drops are the same dataset in another folder, and nothing is ever overwritten.

    Raises:
        DatasetError: the disk refused, or a folder of that name holds something else. No
            half-written dataset is left.
    """
    root = Path(parent).resolve()
    hashes = {name: sha256_hex(text) for name, text in files.items()}
    draft = describe("", hashes)
    rest = canonical_json(draft.model_dump(mode="json", exclude={"created_at", "path"}))
    target = root / f"{draft.id}-{sha256_hex(rest)[:8]}"
    if target.exists():
        return verify_dataset(target)
    dataset = describe(str(target), hashes)
    half = root / f".half-{target.name}-{secrets.token_hex(4)}"
    try:
        half.mkdir(parents=True)
        for name, text in files.items():
            (half / name).parent.mkdir(exist_ok=True)
            durable.write_file(half / name, text.encode())
        durable.write_file(half / MANIFEST, dataset.model_dump_json(indent=2).encode() + b"\n")
        for folder in (*(p for p in half.iterdir() if p.is_dir()), half):
            durable.sync_folder(folder)
        half.rename(target)
        durable.sync_folder(root)
    except OSError as error:
        if target.exists():  # another process finished the same dataset first
            return verify_dataset(target)
        raise DatasetError(
            f"Could not write the dataset to {target}: {error}. Nothing was left there; "
            "free some space or correct the permissions, and build again."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(half)
    return dataset


def replace_file(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in one step: readers see the old file or the new one.

    Raises:
        DatasetError: the disk refused; the old file, if any, is unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.replace_file(path, text.encode())
    except OSError as error:
        raise DatasetError(f"Could not write {path}: {error}.") from error
