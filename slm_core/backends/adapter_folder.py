"""Read the record of a trained adapter and make sure that its weights are the recorded ones."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from slm_core.backends.model_folder import file_sha256
from slm_core.errors import ModelError
from slm_core.records import Adapter


def read_adapter(folder: Path) -> Adapter:
    """Return the record of the adapter in ``folder`` after checking its weights.

    Raises:
        ModelError: a file is missing or unreadable, or the weights are not the recorded ones.
    """
    record, weights = folder / "slm_adapter.json", folder / "adapter_model.safetensors"
    missing = [file.name for file in (record, weights) if not file.is_file()]
    if missing:
        raise ModelError(f"The adapter folder {folder} lacks {', '.join(missing)}.")
    try:
        adapter = Adapter.model_validate_json(record.read_bytes())
    except ValidationError as error:
        raise ModelError(f"{record} is not an adapter's record: {error}") from error
    found = file_sha256(weights)
    if found != adapter.weights_sha256:
        raise ModelError(
            f"{weights} is not the file that was trained; fetch the adapter again.",
            expected=adapter.weights_sha256,
            found=found,
        )
    return adapter
