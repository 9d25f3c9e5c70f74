"""Training in several processes: which one this is, and the collectives they use.

Every process holds the whole model and makes all random draws; of each batch it takes its shard. With a single process every function
here returns its input, so that one training loop serves one process and many."""

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

from gingham.errors import GinghamError, TrainingError, one_line

TIMEOUT = timedelta(hours=2)  # how long one process waits for another that is alive: the first may be packing a large dataset


@dataclass(frozen=True)
class DistributedContext:
    """The processes that train one model together: this one is number `rank`, from 0, of `size`."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of this host

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """Which pictures of a batch of `count` are this process's: every `size`-th, and one that is not its own where it has none.

        >>> DistributedContext(1, 2).shard(5), DistributedContext(2, 3).shard(2)
        (slice(1, None, 2), slice(0, None, 3))
        """
        return slice(self.rank % count, None, self.size)

    def weight(self, count: int) -> float:
        """What the mean loss over `shard` is to be multiplied with, so that the mean over processes is that over the batch."""
        if self.size == 1:
            return 1.0
        return len(range(self.rank, count, self.size)) * self.size / count

    def wrap(self, model: nn.Module, *, unused: bool) -> nn.Module:
        """Return the model as it is to be trained: with gradients averaged over the processes. `unused`: some parameters get none."""
        if self.size == 1:
            return model
        # Its start also sets every process's weights and buffers to the first's.
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)

    def add(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor, of one shape in each, over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def map_sharded(self, answer: Callable[[torch.Tensor], torch.Tensor], pictures: torch.Tensor) -> torch.Tensor:
        """Return what `answer` gives for pictures, float (N, K), each computed in one process and in no other."""
        if self.size == 1:
            return answer(pictures)
        own = answer(pictures[self.rank :: self.size])
        answers = torch.zeros(len(pictures), own.shape[1])
        answers[self.rank :: self.size] = own
        return self.add(answers)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return which of some flags are up in any process: all decide alike."""
        if self.size == 1:
            return flags
        told = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in told.tolist())

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors by the first process's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def broadcast_bytes(self, data: bytes) -> bytes:
        """Return the first process's bytes in every process."""
        if self.size == 1:
            return data
        length = torch.tensor([len(data)])
        dist.broadcast(length, 0)
        told = torch.empty(int(length), dtype=torch.uint8)
        if self.is_main and data:
            told = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        dist.broadcast(told, 0)
        return told.numpy().tobytes()

    def require_same(self, what: str, value: str) -> None:
        """See that a text, such as a fingerprint, is the same in every process.

        Raises
            GinghamError: it is not; in every process, so that none waits for another.
        """
        same = self.broadcast_bytes(value.encode()).decode() == value
        if self.any(not same)[0]:
            raise GinghamError(
                f"{'another process' if same else f'process {self.rank} of {self.size}'} has not the {what} of process 0; start every "
                "process with the same command on the same data"
            )

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Let one process of each host go first, and the others after it: what it downloads or packs, they find."""
        if self.size > 1 and self.local_rank > 0:
            dist.barrier()
        yield
        if self.size > 1 and self.local_rank == 0:  # where it failed the others are not let in: torchrun ends them with it
            dist.barrier()


SINGLE_PROCESS = DistributedContext()


def from_env() -> DistributedContext:
    """Return what torchrun, or whoever started this process, says of it: SINGLE_PROCESS for a process on its own.

    Raises
        GinghamError: what the environment says does not fit together.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return SINGLE_PROCESS
    given = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    given["LOCAL_RANK"] = os.environ.get("LOCAL_RANK", "0")
    if not all(value.isdecimal() for value in given.values()) or not os.environ.get("MASTER_ADDR"):
        said = ", ".join(f"{name}={value or 'not set'}" for name, value in given.items())
        raise GinghamError(
            f"WORLD_SIZE says that {size} processes train together, but {said}, MASTER_ADDR="
            f"{os.environ.get('MASTER_ADDR') or 'not set'}; start them with torchrun, or unset WORLD_SIZE"
        )
    return DistributedContext(int(given["RANK"]), int(size), int(given["LOCAL_RANK"]))


def is_restart() -> bool:
    """Return whether torchrun has started this process in place of one that died."""
    return from_env().size > 1 and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


@contextlib.contextmanager
def init_distributed() -> Iterator[DistributedContext]:
    """Let this process meet the others, if there are any, for as long as the block lasts; within another such block, stay with them.

    Tensors on the CPU go through gloo, those on NVIDIA's GPUs through nccl.

    Raises
        GinghamError: the others are not found, or one of them is lost.
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
            f"process {context.rank} of {context.size} does not find the others ({one_line(error)}); see that all are started, and that "
            "MASTER_ADDR and MASTER_PORT name the first host, or leave both to torchrun"
        ) from error
    try:
        yield context
    except RuntimeError as error:
        if not _is_network_error(error):
            raise
        raise TrainingError(
            f"process {context.rank} of {context.size} lost another one ({one_line(error)}); torchrun --max-restarts starts all of them "
            "again by itself, and the same command with --resume goes on from the last checkpoint"
        ) from error
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _rendezvous_prefix(store: Any, context: DistributedContext) -> str:
    """Agree on a name for this attempt to train together, which no earlier one had.

    torchrun's store outlives the processes: those started in place of dead ones would find the dead ones' addresses in it, and wait for them.
    Neither does torchrun number its attempts alike on all hosts. So each process asks with a word of its own, the first answers each
    with its word, which is the name, and waits until each has said that name.
    """
    word = secrets.token_hex(8)
    if context.is_main:
        missing, deadline = set(range(1, context.size)), time.monotonic() + TIMEOUT.total_seconds()
        while missing:
            if time.monotonic() > deadline:
                raise RuntimeError(f"process {min(missing)} has not come in {TIMEOUT}")
            for rank in sorted(missing):
                if store.check([f"ask/{rank}"]):  # a dead one's answer is read by nobody
                    store.set(f"answer/{store.get(f'ask/{rank}').decode()}", word)
                if store.check([f"{word}/{rank}"]):
                    missing.discard(rank)
            time.sleep(0.02)
        return word
    store.set(f"ask/{context.rank}", word)
    store.wait([f"answer/{word}"], TIMEOUT)
    attempt: str = store.get(f"answer/{word}").decode()
    store.set(f"{attempt}/{context.rank}", "here")
    return attempt


def _is_network_error(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Socket", "Connection"))
