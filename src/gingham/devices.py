"""What the machine offers a training: its devices, the precision they are fast at, and memory that is not given back in between."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from typing import Any

import torch

from gingham.errors import GinghamError


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device of that name; "auto" is the GPU where there is one (CUDA, then Apple's mps), else the CPU.

    A process that trains together with others gives its number on this host: "auto" and "cuda" are then the GPU of that number.

    Raises
        GinghamError: a name torch does not know, or a device this machine does not have.
    """
    have = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    if local_rank is not None:
        have_gpus = torch.cuda.device_count()
        if name == "cuda" or (name == "auto" and have_gpus):
            if local_rank >= have_gpus:
                raise GinghamError(
                    f"process {local_rank} of this host has no GPU of its own, as there are {have_gpus}; start as many processes as "
                    "there are GPUs (torchrun --nproc-per-node), or give --device cpu"
                )
            torch.cuda.set_device(local_rank)  # where nccl works
            return torch.device("cuda", local_rank)
    else:
        have += ["mps"] * torch.backends.mps.is_available()
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if kind in have))
    try:
        device = torch.device(name)
        if device.type in have and (device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()):
            return device
    except RuntimeError:
        pass
    raise GinghamError(f"no device {name!r} here; allowed: auto, {', '.join(have)}")


def choose_precision(precision: str, device: torch.device) -> str:
    """Return "float32" or "bfloat16"; "auto" is bfloat16 where the hardware multiplies it natively."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":
        # Private to torch, but there since 2.4; without AMX or AVX512-BF16 bfloat16 is emulated and slower.
        native = any(
            getattr(torch.cpu, test, lambda: False)() for test in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        )
        return "bfloat16" if native else "float32"
    return "float32"


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which a forward pass runs at that precision."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextlib.contextmanager
def tuned(device: torch.device) -> Iterator[None]:
    """Let cuDNN try its kernels on each shape it meets first, within the block, and keep to the fastest."""
    cudnn = torch.backends.cudnn
    before, cudnn.benchmark = cudnn.benchmark, device.type == "cuda"
    try:
        yield
    finally:
        cudnn.benchmark = before


@contextlib.contextmanager
def kept_pages() -> Iterator[None]:
    """Let the C library keep the memory it frees, for as long as a training lasts.

    Each step frees its activations and asks for as much again; by default their pages go back to the system in between and
    fault in anew, 3,000 of them a step of `fast`, which makes steps 1.2 times as long (benchmarks/step_time.py). glibc alone
    has this setting.
    """
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_threshold, 1 << 30)
    try:
        yield
    finally:
        libc.mallopt(trim_threshold, 64 << 20)  # where glibc's own adjustment ends
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.malloc_trim(0)
