"""What autograd keeps for the backward pass, in bytes."""

from collections import Counter

import torch
from torch import nn


class KeptForBackward:
    """Counts the bytes that autograd keeps within a `with` block: `now`, and `peak`, the most at any time.

    A piece of memory that several tensors share counts once. The weights of `model` do not count, since they are there
    anyway. PyTorch calls a hook for every tensor that it puts away; gradients and what operations need while they
    compute pass by unseen.
    """

    def __init__(self, model: nn.Module):
        self.uses = Counter(p.untyped_storage().data_ptr() for p in model.parameters())  # by address
        self.now = self.peak = 0
        hooks = torch.autograd.graph.saved_tensors_hooks
        self.hooks = hooks(lambda tensor: _Kept(tensor, self), lambda kept: kept.tensor)

    def __enter__(self) -> "KeptForBackward":
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)


class _Kept:
    """One tensor that autograd keeps; the account hears when autograd lets go of it."""

    def __init__(self, tensor: torch.Tensor, account: KeptForBackward):
        storage = tensor.untyped_storage()
        self.tensor, self.account = tensor, account
        self.address, self.size = storage.data_ptr(), storage.nbytes()
        account.uses[self.address] += 1
        account.now += self.size * (account.uses[self.address] == 1)
        account.peak = max(account.peak, account.now)

    def __del__(self) -> None:
        self.account.uses[self.address] -= 1
        self.account.now -= self.size * (self.account.uses[self.address] == 0)
