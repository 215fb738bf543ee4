"""Rounding at random, so that what is smaller than bfloat16's grid is not lost on average."""

import torch


def round_stochastically(x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Round float32 numbers, in place, to neighbours that bfloat16 can hold, so that the expectation is x.

    bfloat16 is the upper half of float32. Adding 16 random `bits` to the lower half carries into the upper
    half exactly as often as the number lies close to the next one.
    """
    x.view(torch.int32).add_(bits).bitwise_and_(-(2**16))
    return x
