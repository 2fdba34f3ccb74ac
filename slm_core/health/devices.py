"""Which GPUs there are: by UUID, with the address that the kernel log uses, and MIG slices.

An index is only for showing: it shifts as soon as a card is lost.
"""

from __future__ import annotations

from typing import Any

from slm_core.health.findings import finding
from slm_core.health.host_files import HostFiles
from slm_core.health.pci import normal_bdf
from slm_core.records import Gpu, Health, HealthCheck, NextAction


def gpus_of(raw: dict[str, Any]) -> tuple[Gpu, ...]:
    """Return the GPU that NVML described, or its MIG slices: CUDA can use only those."""
    uuid, address = raw.get("uuid"), normal_bdf(raw.get("pci") or "")
    if not uuid:
        return ()
    if not raw.get("mig"):
        return (
            Gpu(
                uuid=uuid,
                index=raw["index"],
                name=raw.get("name") or "",
                pci_bus_id=address,
                memory_bytes=raw.get("memory"),
            ),
        )
    return tuple(
        Gpu(
            uuid=piece["uuid"],
            index=raw["index"],
            name=piece.get("name") or raw.get("name") or "",
            pci_bus_id=address,
            memory_bytes=piece.get("memory"),
            is_mig=True,
        )
        for piece in raw.get("slices", ())
        if piece.get("uuid")
    )


def name_of(raw: dict[str, Any], everything: tuple[dict[str, Any], ...], files: HostFiles) -> str:
    """Return how checks call a GPU: UUID; address for one cut into slices, or without a UUID.

    NVML tells neither of a lost GPU. If the kernel knows exactly one address that NVML did not
    name, that is it.
    """
    address = normal_bdf(raw.get("pci") or "")
    if raw.get("mig") and address:
        return address
    if raw.get("uuid"):
        return str(raw["uuid"])
    if not address:
        named = {normal_bdf(one["pci"]) for one in everything if one.get("pci")}
        rest = [known for known in files.proc_gpus if known not in named]
        address = rest[0] if len(rest) == 1 else ""
    return files.uuids.get(address) or address or f"index {raw['index']}"


def is_called(gpu: Gpu, name: str) -> bool:
    """Whether ``name`` (UUID or its beginning, address, or index) means ``gpu``."""
    by_uuid = len(name) > len("GPU-") and gpu.uuid.lower().startswith(name.lower())
    return (
        by_uuid or normal_bdf(name) == gpu.pci_bus_id or (not gpu.is_mig and name == str(gpu.index))
    )


def check_count(cards: int, files: HostFiles, expected: int | None) -> HealthCheck:
    """Return whether as many GPUs answer as there should be.

    Args:
        cards: GPUs that the driver lists, each counted once however it is cut.
        files: what the kernel shows.
        expected: what the operator says; None goes by the device files.
    """
    facts = {
        "driver": cards,
        "expected": expected,
        "device_files": len(files.gpu_nodes),
        "known_to_kernel": len(files.proc_gpus),
        "on_the_bus": len(files.pci),
    }
    want = max(len(files.gpu_nodes), 1) if expected is None else expected
    if cards < want:
        source = "are expected" if expected is not None else "have a device file"
        said = (
            f"The driver lists {cards} GPUs, {want} {source}. If a card left the bus, power the "
            "machine off and on; if the number is wrong, set SLM_EXPECTED_GPUS."
        )
        return finding("gpu_count", Health.FAIL, said, action=NextAction.REBOOT, **facts)
    if expected is not None and cards > expected:
        said = f"The driver lists {cards} GPUs, only {expected} are expected."
        return finding("gpu_count", Health.WARN, said, **facts)
    if cards < len(files.pci) and not files.in_container and expected is None:
        said = f"{len(files.pci)} NVIDIA cards are on the bus, the driver lists {cards}."
        return finding("gpu_count", Health.WARN, said, **facts)
    return finding("gpu_count", Health.PASS, f"{cards} GPUs.", **facts)


def check_files(files: HostFiles) -> list[HealthCheck]:
    """Return what the kernel's own view says against this machine; nothing if all is well."""
    found: list[HealthCheck] = []
    if files.hung_at:
        said = (
            f"Reading the driver's files hangs: {files.hung_at}. Call the driver no more; reboot."
        )
        unkillable = files.unkillable
        found.append(
            finding(
                "driver_files",
                Health.FAIL,
                said,
                action=NextAction.REBOOT,
                unkillable=unkillable,
            )
        )
    elif not files.finished:
        said = "The driver's files could not be read in time; this machine may be too busy."
        found.append(finding("driver_files", Health.UNKNOWN, said))
    for address in files.off_the_bus:
        said = f"The card at {address} no longer answers on the bus."
        name = files.uuids.get(address) or address
        found.append(finding("bus", Health.FAIL, said, gpu=name, action=NextAction.REBOOT))
    if stuck := files.stuck_at_driver:
        names = ", ".join(f"{one['name']} ({one['pid']})" for one in stuck[:5])
        said = f"{len(stuck)} processes wait inside the kernel: {names}. The driver may hang."
        found.append(finding("stuck_processes", Health.WARN, said, processes=stuck))
    return found
