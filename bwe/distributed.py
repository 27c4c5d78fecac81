"""Data parallelism under torchrun: the few collectives a training needs, no-ops in a single process.

Gradients are averaged in one flat all-reduce after the backward passes rather than by DistributedDataParallel's hooks: a
step of an adversarial training runs several backward passes through two networks, some of them to the output only, and
the generators here are small enough that one message of a few MB has nothing to gain from overlap.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bwe.errors import BweError, ConfigError

R = TypeVar("R")
# Rank 0 may pack a data set while the others wait; `bwe prepare` does it beforehand for what takes longer.
_TIMEOUT = timedelta(minutes=30)


class Group:
    """The processes of one training: `rank` of `world`, `local_rank` on this machine."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))

    @property
    def main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def open(self, device: torch.device) -> None:
        """Joins the other processes: NCCL between GPUs, gloo between CPUs.

        Raises ConfigError: they cannot be reached.
        """
        if self.world > 1 and not dist.is_initialized():
            backend = "nccl" if device.type == "cuda" else "gloo"
            try:
                dist.init_process_group(backend, timeout=_TIMEOUT)
            except (RuntimeError, ValueError) as error:
                raise ConfigError(
                    f"cannot join the {self.world} processes of WORLD_SIZE ({error}); start with torchrun"
                ) from None

    def close(self) -> None:
        """Leaves in good order, after all have arrived."""
        if self.world > 1 and dist.is_initialized():
            self._checked(dist.barrier)
            dist.destroy_process_group()

    def barrier(self) -> None:
        if self.world > 1:
            self._checked(dist.barrier)

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors by their means over the processes, in place. All processes pass the same shapes."""
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([t.detach().reshape(-1).float() for t in tensors])
        self._checked(lambda: dist.all_reduce(flat))
        flat /= self.world
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.detach().copy_(mean.view_as(tensor))

    def largest(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.world == 1:
            return value
        largest = torch.tensor(value, device="cuda" if dist.get_backend() == "nccl" else "cpu")
        self._checked(lambda: dist.all_reduce(largest, dist.ReduceOp.MAX))
        return int(largest)

    def gather(self, value: R) -> list[R]:
        """Every process's value (plain data), in the order of ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        self._checked(lambda: dist.all_gather_object(values, value))
        return values

    def _checked(self, action: Callable[[], object]) -> None:
        try:
            action()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BweError(
                f"process {self.rank} of {self.world}: another process of this training has gone ({reason}); "
                "start all of them again with --resume, they go on from the last checkpoint"
            ) from error
