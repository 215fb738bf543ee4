"""When memory is too small: PyTorch says so in several ways, which differ by device and system."""

import torch

# A CPU's allocator on Linux and on Windows, Apple's GPUs, CUDA's own libraries, and sizes past all numbers.
_SAYINGS = (
    "can't allocate memory", "not enough memory", "cannot allocate memory", "out of memory", "alloc_failed",
    "storage size calculation overflowed",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory is too small. A CPU's comes as a plain RuntimeError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(saying in str(error).lower() for saying in _SAYINGS)
