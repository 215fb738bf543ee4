"""The same training step on several processes: each samples and scores some groups, and the gradients are added up.

Started by `torchrun --nproc-per-node N -m rfs_utils train ...`; without torchrun everything here does nothing. Every
process holds the whole model, unless it is in parts (sharding.py). The places in a step where processes meet, to tell
each other rewards and to add up gradients, are the same for all, however many tokens or micro-batches each has: none
waits for one with nothing to do.
"""

import os
from collections.abc import Callable

import torch
import torch.distributed as dist

from ..qwen3 import Qwen3Model
from . import sharding

BUCKET = 2**25  # gradient values that are added up at once


def start() -> None:
    """Join the group of processes that torchrun has started: NCCL between GPUs, gloo between CPUs.

    On a machine with GPUs both, since the tiny models stay on the CPU there, with more processes than GPUs if need be.
    """
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        if local_rank < torch.cuda.device_count():
            torch.cuda.set_device(local_rank)
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def stop() -> None:
    """Leave the group of processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, 0 without torchrun. Process 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes, 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own_part(n: int) -> slice:
    """Which of n groups belong to this process: consecutive ones, as equal in number as possible."""
    return slice(rank() * n // world_size(), (rank() + 1) * n // world_size())


def gather(value) -> list:
    """What every process passed, in the order of their numbers."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def share(value):
    """Process 0's value, for all."""
    return gather(value)[0]


def on_main(call: Callable, *arguments):
    """What a call returns, or the OSError or ValueError that it raises, on process 0; the others do not make it."""
    outcome = None
    if rank() == 0:
        try:
            outcome = call(*arguments)
        except (OSError, ValueError) as error:
            outcome = error
    outcome = share(outcome)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def add_gradients(model: Qwen3Model) -> None:
    """Replace every gradient by the sum over all processes; a process without one adds zero."""
    if not dist.is_initialized():
        return
    if sharding.is_sharded(model):
        sharding.reduce_gradients(model)
        return
    bucket: list[torch.nn.Parameter] = []
    for p in (p for p in model.parameters() if p.requires_grad):
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        bucket.append(p)
        if sum(q.numel() for q in bucket) >= BUCKET:
            _add_bucket(bucket)
            bucket = []
    if bucket:
        _add_bucket(bucket)


@torch.no_grad()
def _add_bucket(bucket: list[torch.nn.Parameter]) -> None:
    grads = [p.grad for p in bucket if p.grad is not None]  # all have one
    flat = torch.cat([grad.flatten().float() for grad in grads])
    dist.all_reduce(flat)
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))
