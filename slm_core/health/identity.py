"""Which GPU a PCI address means: the kernel log names addresses, everybody else names UUIDs.

A run on a slice of a GPU (MIG) is named by the slice's UUID, and the kernel log by the whole
card's address: trouble of the card is trouble of each of its slices.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class Devices(BaseModel):
    """The names of the cards of one machine, as far as anything told."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    uuids: dict[str, str] = Field(default_factory=dict)
    """UUID by PCI address."""
    slices: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """UUIDs of the slices by the UUID of the card."""

    def name(self, pci: str) -> str:
        """Return the UUID at ``pci``, or the address itself."""
        return self.uuids.get(pci, pci)

    def of_run(self, gpu: str, gpus: tuple[str, ...]) -> tuple[str, ...]:
        """Return which of ``gpus`` the card ``gpu`` (UUID or address) is, or is cut into.

        A card that nobody could name counts as one of the run's, under its address, unless
        every GPU of the run is known to be another.
        """
        uuid = self.name(gpu)
        if uuid in gpus:
            return (uuid,)
        if pieces := tuple(piece for piece in self.slices.get(uuid, ()) if piece in gpus):
            return pieces
        known = {*self.uuids.values(), *(p for found in self.slices.values() for p in found)}
        return () if uuid in known or set(gpus) <= known else (uuid,)

    def joined(self, older: Devices) -> Devices:
        """Return this with the names that only ``older`` knew: a lost card has none any more."""
        return Devices(uuids={**older.uuids, **self.uuids}, slices={**older.slices, **self.slices})


def load(path: Path) -> Devices:
    """Return what was saved at ``path``; an empty value if nothing was."""
    try:
        return Devices.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return Devices()
