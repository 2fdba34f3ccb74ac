"""PCI addresses in one spelling: ``0000:41:00.0``, lower case, with domain and function."""

from __future__ import annotations

import re

BDF = r"(?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?"
"""Domain (optional, four or eight digits), bus, device, function (optional)."""

_PARTS = re.compile(r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.([0-7]))?$")


def normal_bdf(address: str) -> str:
    """Return ``address`` in the one spelling; what is no address comes back in lower case.

    NVML writes the domain with eight digits, the kernel with four, old drivers leave it out,
    and kernel-log lines leave the function out.
    """
    parts = _PARTS.match(address.strip())
    if parts is None:
        return address.strip().lower()
    domain, bus, device, function = parts.groups()
    return f"{int(domain or '0', 16):04x}:{bus}:{device}.{function or '0'}".lower()
