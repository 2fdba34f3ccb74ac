"""Child process: make one GPU do real work, and say what came of it. The only part with torch.

``active_child.py work --device cuda ...``: context, a product of matrices
of small whole numbers, copies to and from the GPU. Such a product is exact in float32 and in
TF32, in whatever order it is summed, so it can be held against a sum worked out on the CPU, and
be the same to the bit on every GPU.

``... collective --rank R --world N --meet FILE``: an all-reduce between N such processes.

Which GPU is meant says ``CUDA_VISIBLE_DEVICES``: the child sees one, as device 0.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import zlib
from datetime import timedelta
from typing import Any

_PRIMES = (31, 17, 97, 7)
_HALF = 3
"""Entries are -3 ... 3: sums over 8192 of their products stay below 2^24, so exact."""
_COPIES = 3
_REDUCED = 1 << 20


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("work", "collective"))
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--bytes", type=int, default=0)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--meet", default="")
    parser.add_argument("--seconds", type=float, default=15.0)
    wanted = parser.parse_args()
    say(doing="import torch")
    try:
        import torch
    except ImportError as error:
        say(untried=f"torch is not installed for this interpreter ({error})")
        return
    if wanted.device == "cuda" and torch.version.cuda is None:
        say(untried=f"torch {torch.__version__} was built without CUDA")
        return
    try:
        if wanted.what == "work":
            _work(torch, wanted)
        else:
            _collective(torch, wanted)
    except RuntimeError as error:
        # The first line says it; torch adds advice for debugging below.
        say(error=str(error).strip().splitlines()[0][:500], of=type(error).__name__)
        return
    say(done=True)


def say(**facts: Any) -> None:
    """Print one line at once."""
    print(json.dumps(facts), flush=True)  # noqa: T201 - the result goes to the parent this way


def _work(torch: Any, wanted: argparse.Namespace) -> None:
    device = torch.device(wanted.device)
    say(doing="create a context")
    began = time.monotonic()
    torch.ones(1, device=device).add_(1)
    _wait(torch, device)
    say(context_seconds=round(time.monotonic() - began, 3), torch=torch.__version__)
    say(doing="multiply matrices")
    _multiply(torch, device, wanted.size, wanted.repeats)
    say(doing="copy to and from the device")
    _copy(torch, device, wanted.bytes)


def _multiply(torch: Any, device: Any, size: int, repeats: int) -> None:
    torch.backends.cuda.matmul.allow_tf32 = True  # so that tensor cores take part
    a, b = _matrix(torch, size, 0), _matrix(torch, size, 1)
    u, v = torch.arange(size) % 11 - 5, torch.arange(size) % 13 - 6
    # u(AB)v = (uA)(Bv): the right-hand side costs little, on the CPU, in whole numbers.
    expected = int((u @ a) @ (b @ v))
    a, b = a.to(device, torch.float32), b.to(device, torch.float32)
    began = time.monotonic()
    first = a @ b
    same = True
    for _ in range(repeats - 1):
        same = torch.equal(a @ b, first) and same
    _wait(torch, device)
    seconds = time.monotonic() - began
    product = u.to(device, torch.float64) @ first.double() @ v.to(device, torch.float64)
    say(
        exact=float(product) == float(expected),
        same_each_time=same,
        finite=bool(torch.isfinite(first).all()),
        checksum=zlib.crc32(first.to(torch.int32).cpu().numpy().tobytes()),
        tera_operations_per_second=round(2 * size**3 * repeats / seconds / 1e12, 3),
    )


def _matrix(torch: Any, size: int, seed: int) -> Any:
    row, column = torch.arange(size).unsqueeze(1), torch.arange(size).unsqueeze(0)
    mixed = row * _PRIMES[0] + column * _PRIMES[1] + (row * column + seed) % _PRIMES[2]
    return mixed % _PRIMES[3] - _HALF


def _copy(torch: Any, device: Any, size: int) -> None:
    on_gpu = device.type == "cuda"
    there = torch.arange(size // 4, dtype=torch.int32)
    there = there.pin_memory() if on_gpu else there
    back = torch.empty_like(there, pin_memory=on_gpu)
    block = torch.empty_like(there, device=device)
    block.copy_(there)
    _wait(torch, device)
    to_device = _rate(torch, device, size, lambda: block.copy_(there))
    from_device = _rate(torch, device, size, lambda: back.copy_(block))
    say(
        copied_right=bool(torch.equal(there, back)),
        to_device_gigabytes_per_second=round(to_device, 2),
        from_device_gigabytes_per_second=round(from_device, 2),
    )


def _rate(torch: Any, device: Any, size: int, copy: Any) -> float:
    began = time.monotonic()
    for _ in range(_COPIES):
        copy()
    _wait(torch, device)
    return size * _COPIES / (time.monotonic() - began) / 1e9


def _collective(torch: Any, wanted: argparse.Namespace) -> None:
    import torch.distributed

    dist = torch.distributed
    on_gpu = wanted.device == "cuda"
    say(doing="meet the other processes")
    store = dist.FileStore(wanted.meet, wanted.world)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=wanted.rank,
        world_size=wanted.world,
        timeout=timedelta(seconds=wanted.seconds),
    )
    device = torch.device(wanted.device)
    values = torch.arange(_REDUCED, device=device, dtype=torch.int32) % 1000 + wanted.rank
    say(doing="all-reduce")
    began = time.monotonic()
    dist.all_reduce(values)
    _wait(torch, device)
    seconds = time.monotonic() - began
    others = sum(range(wanted.world))
    right = torch.arange(_REDUCED, dtype=torch.int32) % 1000 * wanted.world + others
    say(sum_right=bool(torch.equal(values.cpu(), right)), all_reduce_seconds=round(seconds, 3))
    # Whoever ends first may break the others; and an orderly farewell of NCCL can hang.
    say(doing="wait for the other processes")
    store.add("finished", 1)
    while store.add("finished", 0) < wanted.world:
        time.sleep(0.02)
    say(done=True)
    os._exit(0)


def _wait(torch: Any, device: Any) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
