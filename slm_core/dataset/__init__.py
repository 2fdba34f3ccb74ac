"""Calls to a frozen, content-addressed, leak-proof dataset."""

from slm_core.dataset.build import build
from slm_core.dataset.examples import drop_reason, why_unusable
from slm_core.dataset.files import read_split
from slm_core.dataset.spec import DatasetSpec

__all__ = ["DatasetSpec", "build", "drop_reason", "read_split", "why_unusable"]
