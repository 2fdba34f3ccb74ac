"""The proof that no held-out row was trained on.

``build`` runs it on its own result, with every test set that it was told to keep out. An
evaluation runs it on the test set and the dataset that the adapter learned from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from slm_core.dataset.files import read_dataset, read_split
from slm_core.dataset.questions import same_question_keys
from slm_core.dataset.spec import NearDuplicates
from slm_core.dataset.test_sets import gold_id, read_test_set
from slm_core.errors import LeakFound
from slm_core.records import SPLITS, Dataset, Example, Split

_SHOWN = 10


class Frozen(NamedTuple):
    """Test rows that no later training may see."""

    id: str
    examples: list[Example]
    of_dataset: bool
    """The test split of an earlier dataset, whose rows may be test rows again; not a file."""


class Leak(NamedTuple):
    """What two rows share that may not share anything."""

    other: str
    """Id of the other row."""
    key: str
    """``conversation``, ``prompt`` or ``question``."""


class KnownRows:
    """Rows by everything that would give them away."""

    def __init__(self, examples: Iterable[Example], near_duplicates: NearDuplicates) -> None:
        self._near_duplicates: NearDuplicates = near_duplicates
        self._owners: dict[str, str] = {}
        for example in examples:
            for key in same_question_keys(example, near_duplicates):
                self._owners.setdefault(key, example.id)

    def leak(self, example: Example) -> Leak | None:
        """Return what ``example`` shares with a known row, or None."""
        for key in same_question_keys(example, self._near_duplicates):
            if key in self._owners:
                return Leak(self._owners[key], key.split(" ", 1)[0])
        return None


def read_frozen(source: Path | str | Dataset) -> Frozen:
    """Return the test rows of a dataset (record or folder) or of a test-set file.

    Raises:
        DatasetError: the source is missing, incomplete or altered.
    """
    path = Path(source.path if isinstance(source, Dataset) else source)
    if path.is_file():
        examples = read_test_set(path)
        return Frozen(gold_id(examples), examples, of_dataset=False)
    return Frozen(read_dataset(path).id, read_split(path, "test"), of_dataset=True)


def check_leaks(
    dataset_path: Path | str,
    frozen: Sequence[Path | str | Dataset] = (),
    *,
    near_duplicates: NearDuplicates = "together",
) -> None:
    """Check that no held-out row occurs in what the dataset on disk trains on.

    Raises:
        LeakFound: names the rows and what they share.
        DatasetError: a file is missing or altered.
    """
    splits: dict[Split, list[Example]] = {
        split: read_split(dataset_path, split) for split in SPLITS
    }
    prove_no_leak(splits, [read_frozen(source) for source in frozen], near_duplicates)


def prove_no_leak(
    splits: dict[Split, list[Example]], frozen: Sequence[Frozen], near_duplicates: NearDuplicates
) -> None:
    """Check that no held-out row shares a question or conversation with a seen one.

    ``val`` is compared with ``train``; ``test`` and the rows of every ``frozen`` source are
    compared with ``train`` and ``val``.

    Raises:
        LeakFound: names the rows and what they share.
    """
    trained = KnownRows(splits["train"], near_duplicates)
    seen = KnownRows([*splits["train"], *splits["val"]], near_duplicates)
    tested = [*splits["test"], *(row for source in frozen for row in source.examples)]
    pairs = [(row, trained.leak(row)) for row in splits["val"]]
    pairs += [(row, seen.leak(row)) for row in tested]
    named = [f"{row.id} = {leak.other} (same {leak.key})" for row, leak in pairs if leak]
    if named:
        more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
        raise LeakFound(
            f"{len(named)} held-out row(s) also occur in the training data: "
            f"{'; '.join(named[:_SHOWN])}{more}. Build the dataset again with this test set "
            "among the frozen ones.",
            rows=tuple(row.id for row, leak in pairs if leak),
        )
