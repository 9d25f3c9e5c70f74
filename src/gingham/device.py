"""Choose the device and the numeric precision, and describe the machine."""

import contextlib
import ctypes
import functools
import math
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gingham._version import __version__
from gingham.errors import GinghamError, plural

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of this container
_GENERATOR_LOCK = threading.RLock()  # re-entrant, because a network may load a run while it is created
_BENCHMARK_LOCK, _BENCHMARK_BEFORE = threading.Lock(), list[bool]()


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device with this name. "auto" is a GPU if there is one (CUDA, then Apple's mps), else the CPU.

    In distributed training `local_rank` is the index of this process on its host. "auto" and "cuda" are then the GPU
    with this index.

    Raises
        GinghamError: torch has no such device, this machine does not have it, or there is no GPU for this process.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_mps = local_rank is None and torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if num_gpus else "mps" if has_mps else "cpu"
    if name == "cuda" and local_rank is not None:
        if local_rank >= num_gpus:
            raise GinghamError(
                f"process {local_rank} of this host has no GPU, because the host has {num_gpus}; start as many "
                "processes as there are GPUs (torchrun --nproc-per-node), or choose the device cpu"
            )
        torch.cuda.set_device(local_rank)  # the device that NCCL uses
        return torch.device("cuda", local_rank)
    available = ["cpu"] + ["cuda"] * (num_gpus > 0) + ["mps"] * has_mps
    with contextlib.suppress(RuntimeError):  # torch has no such device
        device = torch.device(name)
        if device.type in available and (device.type != "cuda" or (device.index or 0) < num_gpus):
            return device
    raise GinghamError(f"there is no device {name!r} on this machine; allowed: auto, {', '.join(available)}")


def choose_precision(precision: str, device: torch.device) -> str:
    """Return "float32" or "bfloat16". "auto" is bfloat16 if the hardware has instructions for it, else float32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":  # without these instructions bfloat16 is emulated and slower
        return "bfloat16" if _cpu_has("amx_tile") or _cpu_has("avx512_bf16") else "float32"
    return "float32"


def _cpu_has(instructions: str) -> bool:
    is_supported = getattr(torch.cpu, f"_is_{instructions}_supported", lambda: False)  # private in torch, since 2.4
    return bool(is_supported())


def processor() -> str:
    """Return the CPU's name and the widest vector instructions that torch uses, which affect speed and rounding.

    processor()        # "AMD EPYC (AVX512)", "Intel(R) Xeon(R) Processor (AVX512 with AMX)"
    """
    instructions = torch.backends.cpu.get_cpu_capability() + (" with AMX" if _cpu_has("amx_tile") else "")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name} ({instructions})"


def usable_cores() -> int:
    """Return the number of cores that this process may use: of its affinity, and of its container's quota on Linux.

    Source of the quota: the file `cpu.max` of https://docs.kernel.org/admin-guide/cgroup-v2.html.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # not Linux, not in a container, or no quota ("max")
        quota, period = CPU_QUOTA.read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def limit_threads() -> None:
    """Let torch use no more threads than this process may use cores, unless the environment sets their number."""
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context manager for a forward pass in "float32" or "bfloat16"."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


class _ConvolutionsWithoutTF32(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no annotations here
    """Inside the block, convolutions in this thread do not use TF32.

    `torch.backends.cudnn.allow_tf32` applies to all threads, and another thread may be training with TF32.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten, cudnn = torch.ops.aten, torch.backends.cudnn
        if func is aten.convolution.default:  # call its implementation with the settings of the process, but no TF32
            deterministic = cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
            return aten._convolution.default(*args, cudnn.benchmark, deterministic, cudnn.enabled, False)  # noqa: SLF001
        if torch.is_inference_mode_enabled():  # conv2d and others then arrive here undecomposed; they call convolution
            with self:
                result = func.decompose(*args, **kwargs or {})
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs or {})


def without_tf32(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context manager for a forward pass whose convolutions do not round to TF32 (10 bits) on a GPU."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return _ConvolutionsWithoutTF32()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def forked_generators(devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Restore torch's global generators of the CPU and these devices after the block.

    Only one thread at a time can be inside: two threads would share their draws and restore each other's state.
    """
    with _GENERATOR_LOCK, torch.random.fork_rng(devices):
        yield


@contextlib.contextmanager
def cudnn_benchmark(device: torch.device) -> Iterator[None]:
    """Inside the block, let cuDNN time its kernels on the first input of each shape and then use the fastest.

    The setting applies to the whole process. If several threads are inside, the last one to leave restores it.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    with _BENCHMARK_LOCK:
        _BENCHMARK_BEFORE.append(cudnn.benchmark)
        cudnn.benchmark = True
    try:
        yield
    finally:
        with _BENCHMARK_LOCK:
            cudnn.benchmark = len(_BENCHMARK_BEFORE) > 1 or _BENCHMARK_BEFORE[0]
            _BENCHMARK_BEFORE.pop()


def retain_freed_memory() -> None:
    """Let the C library keep the memory that this process frees, until the process ends.

    Each step frees its activations and allocates the same amount again. By default their pages are returned to the
    system in between and faulted in again, 3,000 of them in a step of `fast`, which makes steps 1.2 times as long
    (benchmarks/step_time.py). Only glibc has this setting. It cannot be reset to its default, which is adaptive, so the
    commands call this function in their own process and `fit` does not. MALLOC_TRIM_THRESHOLD_=2147483647 and
    MALLOC_MMAP_THRESHOLD_=1073741824 in the environment have the same effect.
    """
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD of malloc.h
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD


def skip_compiler_import() -> None:
    """Let optimizers be created without importing torch's compiler, in this process.

    The import takes nearly as long as that of the rest of torch (benchmarks/startup.py), and only recipes with
    `compile` use it. Some methods of `torch.optim.Optimizer` call themselves through `torch._dynamo.disable`, which
    imports it; this stores what it would return. It has no effect if a later torch does it in another way.
    """
    for method in vars(torch.optim.Optimizer).values():
        original = getattr(method, "__wrapped__", None)
        if original is not None and method.__module__ == "torch.optim.optimizer":
            original.__dict__.setdefault("__dynamo_disable", original)


def prepare_process(*, compile_steps: bool) -> None:
    """Change the settings of this process for training. Commands call this, and `fit` does not."""
    limit_threads()
    retain_freed_memory()  # for the next step
    if not compile_steps:
        skip_compiler_import()


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return the versions and the hardware that should be reported with a measurement."""
    if device.type == "cuda":
        hardware = f"{torch.cuda.get_device_name(device)}, {_power_limit(device)}"
    else:
        hardware = f"{processor()}, {plural(torch.get_num_threads(), 'thread')}"
    return {
        "gingham": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        "hardware": hardware,
    }


@functools.lru_cache
def _power_limit(device: torch.device) -> str:
    """Return the power limit of a GPU, from nvidia-smi, which takes a tenth of a second.

    It affects speed and differs between cards of the same name.
    """
    card = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"
    query = ["nvidia-smi", card, "--query-gpu=power.limit", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: S603
        return f"{float(output):.0f} W"
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError):
        return "power limit unknown"
