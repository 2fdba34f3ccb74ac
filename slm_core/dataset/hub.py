"""Public function-calling sets from the Hugging Face hub, as calls that ``build`` takes.

``NousResearch/hermes-function-calling-v1`` and ``Salesforce/xlam-function-calling-60k`` (gated:
accept its terms and log in first). Answers become native tool calls, so each filter of
``build`` sees them. Rows that cannot be read as calls are returned with a reason.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from slm_core.dataset.hub_rows import UnreadableRow, hermes_calls, xlam_calls
from slm_core.errors import DatasetError, MissingDependency
from slm_core.records import Call, Quarantined, Track

log = logging.getLogger(__name__)

HERMES = "NousResearch/hermes-function-calling-v1"
XLAM = "Salesforce/xlam-function-calling-60k"

HermesConfig = Literal["func_calling_singleturn", "func_calling", "glaive_func_calling"]

ReadRow = Callable[[Mapping[str, Any], Track, str], list[Call]]

_LONGEST_RAW = 64 * 1024


class HubCalls(NamedTuple):
    """What a public set holds for us."""

    calls: list[Call]
    rejected: list[Quarantined]

    @property
    def reasons(self) -> dict[str, int]:
        """Reason to count of the rejected rows."""
        return dict(Counter(row.reason for row in self.rejected).most_common())


def load_hermes(
    track: Track,
    *,
    config: HermesConfig = "func_calling_singleturn",
    revision: str | None = None,
    data_files: Path | str | None = None,
    cache_dir: Path | str | None = None,
) -> HubCalls:
    """Load the Hermes set; each assistant turn that calls a tool is one call on ``track``.

    ``data_files`` reads a local file in the set's format instead of the hub. Pin ``revision``
    for numbers that others should reach.

    Raises:
        MissingDependency: the package ``datasets`` is not installed.
        DatasetError: the hub or the file did not give the set.
    """
    rows = _load(HERMES, config, revision, data_files, cache_dir)
    return read_rows(rows, hermes_calls, track, HERMES)


def load_xlam(
    track: Track,
    *,
    revision: str | None = None,
    data_files: Path | str | None = None,
    cache_dir: Path | str | None = None,
) -> HubCalls:
    """Load the xLAM set; each row is one call on ``track``. See ``load_hermes``."""
    rows = _load(XLAM, None, revision, data_files, cache_dir)
    return read_rows(rows, xlam_calls, track, XLAM)


def read_rows(
    rows: Iterable[Mapping[str, Any]], read_row: ReadRow, track: Track, agent: str
) -> HubCalls:
    """Return the calls of all rows, and the rows that hold none, each with its reason."""
    found = HubCalls([], [])
    for number, row in enumerate(rows):
        try:
            found.calls.extend(read_row(row, track, agent))
        except UnreadableRow as problem:
            raw = json.dumps(row, default=str)[:_LONGEST_RAW]
            source = f"{agent} row {number}"
            found.rejected.append(Quarantined(source=source, reason=str(problem), raw=raw))
    log.info(
        "hub rows read set=%s calls=%d rejected=%d", agent, len(found.calls), len(found.rejected)
    )
    return found


def _load(
    repository: str,
    config: str | None,
    revision: str | None,
    data_files: Path | str | None,
    cache_dir: Path | str | None,
) -> Any:
    """Return the rows; a ``datasets.Dataset`` yields one dictionary a row."""
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MissingDependency.of_extra(
            "hub", "Loading sets from the hub needs the package datasets", error
        ) from error
    cache = None if cache_dir is None else str(cache_dir)
    try:
        if data_files is not None:
            return load_dataset("json", data_files=str(data_files), split="train", cache_dir=cache)
        return load_dataset(repository, config, revision=revision, split="train", cache_dir=cache)
    except (OSError, ValueError, DatasetsError) as error:
        where = repository if data_files is None else data_files
        raise DatasetError(
            f"{where} could not be loaded: {error}. Check the network and the name; a gated set "
            "needs its terms accepted on the hub and `hf auth login`."
        ) from error
