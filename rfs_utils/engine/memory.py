"""What a device's memory allows: the weights' type, the optimiser, and the size of the parts of a step."""

import ctypes
import sys
from dataclasses import dataclass

import torch

from ..qwen3 import Qwen3Model

MEMORY = ("auto", "low")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class MemoryPlan:
    """What `memory` means on a device: the weights' type, the optimiser, and the size of the parts."""

    dtype: torch.dtype
    optimizer: str  # one of optim.OPTIMIZERS
    max_tokens: int  # of a micro-batch
    cache_bytes: int  # of the key-value cache while sampling


def plan_memory(memory: str, device: torch.device | str, num_parameters: int) -> MemoryPlan:
    """The plan for a model of so many parameters. "auto" keeps small models, below 100 M, in float32 with AdamW.

    Weights are bfloat16 only where the hardware computes with it; elsewhere, a T4 among them, they are float32.
    """
    if memory not in MEMORY:
        raise ValueError(f"unknown memory setting {memory!r}: known settings are {', '.join(MEMORY)}")
    dtype = torch.bfloat16 if has_bfloat16(device) else torch.float32
    # While rollouts are sampled there are no gradients, so the cache may take their room.
    room = max(2**28, num_parameters * dtype.itemsize)
    if memory == "low":
        return MemoryPlan(dtype, "8bit", 512, room)
    if num_parameters < 100e6:
        return MemoryPlan(torch.float32, "adamw", 16384, 2**30)
    return MemoryPlan(dtype, "kahan" if dtype == torch.bfloat16 else "adamw", 2048, 2 * room)


def return_freed_memory() -> bool:
    """Have the C library give freed tensors of 768 kB and more back to the system at once; False where it cannot.

    Linux's glibc otherwise comes to keep freed blocks of up to 32 MB for later: 0.6 GB in a step of Qwen3-0.6B.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and mallopt(-3, 3 * 2**18) == 1  # -3 is M_MMAP_THRESHOLD


def cast_weights(model: Qwen3Model, dtype: torch.dtype) -> None:
    """Change the type of the weights, one at a time; rotary tables stay in float32."""
    for p in model.parameters():
        p.data = p.data.to(dtype)
    model.cfg = {**model.cfg, "dtype": dtype}


def has_bfloat16(device: torch.device | str) -> bool:
    """Does the hardware itself compute with bfloat16?

    Not `torch.cuda.is_bf16_supported()`: it is True on GPUs before compute capability 8.0, which emulate it slowly.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, lambda: False)() for name in names)
    return False  # Apple's GPUs differ by generation and system; float32 is right on all
