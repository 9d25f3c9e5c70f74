"""Distributed training: the rank of this process and the collectives that the processes use.

Every process has the whole model and makes all random draws, and takes its shard of each batch. In a single process
every function here returns its input, so the same training loop works for one process and for many.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from gingham.errors import GinghamError, RunError, TrainingError, one_line

TIMEOUT = timedelta(hours=2)  # long, because process 0 may be decoding a large dataset while the others wait


@dataclass(frozen=True)
class DistributedContext:
    """The processes that train one model together. This process is number `rank`, counted from 0, of `size`."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # the rank among the processes of this host

    def __str__(self) -> str:
        return f"process {self.rank} of {self.size}"

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def data_parallel(self, model: nn.Module, *, unused: bool) -> nn.Module:
        """Wrap the model so that gradients are averaged over processes. `unused`: some parameters get no gradient."""
        if self.size == 1:
            return model
        # The constructor also copies the weights and buffers of process 0 to the others.
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)

    def add(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over the processes. It must have the same shape in each."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def map_sharded(self, function: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """Return `function(images)`, float (N, K), computing each image in only one process."""
        if self.size == 1:
            return function(images)
        shard = function(images[self.rank :: self.size])
        outputs = torch.zeros(len(images), shard.shape[1])
        outputs[self.rank :: self.size] = shard
        return self.add(outputs)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is true in any process."""
        counts = self.add(torch.tensor(flags, dtype=torch.int32))
        return tuple(count > 0 for count in counts.tolist())

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors, in place, with those of process 0."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def broadcast_bytes(self, data: bytes) -> bytes:
        """Return the bytes of process 0 in every process."""
        if self.size == 1:
            return data
        length = torch.tensor([len(data)])
        dist.broadcast(length, 0)
        content = torch.empty(int(length), dtype=torch.uint8)
        if self.is_main and data:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        dist.broadcast(content, 0)
        return content.numpy().tobytes()

    def from_main(self, read: Callable[[], bytes]) -> bytes:
        """Return in every process the bytes that `read` returns in process 0, or raise its RunError in each."""
        data, message = b"", ""
        if self.is_main:
            try:
                data = read()
            except RunError as error:
                message = str(error)
        if message := self.broadcast_bytes(message.encode()).decode():
            raise RunError(message)
        return self.broadcast_bytes(data)

    def require_same(self, what: str, value: str) -> None:
        """Check that a text, such as a fingerprint, is the same in every process.

        Raises
            GinghamError: it differs. The error is raised in every process, so that no process waits for another.
        """
        same = self.broadcast_bytes(value.encode()).decode() == value
        if self.any(not same)[0]:
            raise GinghamError(
                f"{'another process' if same else self} does not use the same {what} as process 0; start every process "
                "with the same command on the same data"
            )

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block in one process of each host first, so that the others find what it cached."""
        if self.size > 1 and self.local_rank > 0:
            dist.barrier()
        yield
        if self.size > 1 and self.local_rank == 0:  # not after an error, when torchrun ends the others too
            dist.barrier()


SINGLE_PROCESS = DistributedContext()


def from_env() -> DistributedContext:
    """Return the context described by the environment variables that torchrun sets, or else SINGLE_PROCESS.

    Raises
        GinghamError: one of the environment variables is missing or not a number.
    """
    names, environment = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), {"WORLD_SIZE": "1", "LOCAL_RANK": "0", **os.environ}
    if environment["WORLD_SIZE"] == "1":
        return SINGLE_PROCESS
    try:
        return DistributedContext(*(int(environment[name]) for name in names))
    except (KeyError, ValueError):
        given = ", ".join(f"{name}={environment.get(name, 'nothing')}" for name in names)
        raise GinghamError(f"got {given}; start the processes with torchrun, or unset WORLD_SIZE") from None


def is_restart() -> bool:
    """Return whether torchrun started this process to replace one that died."""
    return from_env().size > 1 and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


@contextlib.contextmanager
def init_distributed() -> Iterator[DistributedContext]:
    """Connect this process with the others, if there are any, for the duration of the block. Blocks may be nested.

    Tensors on the CPU are sent with gloo, those on NVIDIA GPUs with NCCL.

    Raises
        GinghamError: the other processes cannot be reached.
        TrainingError: another process failed inside the block.
    """
    context = from_env()
    if context.size == 1 or dist.is_initialized():
        yield context
        return
    try:
        store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=PrefixStore(_rendezvous_prefix(store, context), store),
            rank=context.rank,
            world_size=context.size,
            timeout=TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        raise GinghamError(
            f"{context} cannot reach the others ({one_line(error)}); start all of them with MASTER_ADDR and "
            "MASTER_PORT of the first host, or use torchrun"
        ) from error
    try:
        yield context
    except RuntimeError as error:
        words = ("gloo", "NCCL", "Socket", "Connection")
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in words):
            raise
        raise TrainingError(
            f"{context} lost the connection to another process ({one_line(error)}); torchrun --max-restarts starts all "
            "processes again, and resume=True (--resume) continues from the last checkpoint"
        ) from error
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _rendezvous_prefix(store: Any, context: DistributedContext) -> str:
    """Return a key prefix that all processes of this attempt share and no earlier attempt has used.

    torchrun's store outlives the processes, so a restarted process would find the addresses of dead processes in it and
    wait for them. The attempt number cannot be the prefix, because torchrun does not count attempts the same way on all
    hosts. Therefore each process writes a random token to the store. Process 0 answers each with its own token, which
    is the prefix, and waits until each process has confirmed it.
    """
    token = secrets.token_hex(8)
    if not context.is_main:
        store.set(f"ask/{context.rank}", token)
        store.wait([f"answer/{token}"], TIMEOUT)
        prefix: str = store.get(f"answer/{token}").decode()
        store.set(f"{prefix}/{context.rank}", "here")
        return prefix
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    for rank in range(1, context.size):
        while not store.check([f"{token}/{rank}"]):
            if time.monotonic() > deadline:
                raise RuntimeError(f"process {rank} did not connect within {TIMEOUT}")
            if store.check([f"ask/{rank}"]):  # nobody reads the answer to a dead process
                store.set(f"answer/{store.get(f'ask/{rank}').decode()}", token)
            time.sleep(0.02)
    return token
