"""RMSNorm for training in bfloat16 on a CPU, with half of the activations."""

import torch
from torch.autograd.function import once_differentiable

from ..qwen3 import Qwen3Model, RMSNorm


class _NormFunction(torch.autograd.Function):
    """RMSNorm of bfloat16 numbers that keeps only its input for the backward pass.

    Torch's own, on a CPU, keeps two float32 copies: for a Qwen3 block half of all activations.
    """

    @staticmethod
    def forward(ctx, x, scale, eps):
        exact = x.float()
        inverse_rms = exact.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale, inverse_rms)
        return (exact.mul_(inverse_rms) * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, scale, inverse_rms = ctx.saved_tensors
        normed = x.float().mul_(inverse_rms)
        grad_scale = (grad * normed).sum(dim=tuple(range(grad.ndim - 1))).to(scale.dtype)
        grad = grad.float() * scale
        normed.mul_((grad * normed).mean(-1, keepdim=True))
        return grad.sub_(normed).mul_(inverse_rms).to(x.dtype), grad_scale, None


class LeanRMSNorm(RMSNorm):
    """The same norm; where torch would keep float32 copies of its input, it does not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.bfloat16 and x.device.type == "cpu" and torch.is_grad_enabled():
            return _NormFunction.apply(x, self.scale, self.eps)
        return super().forward(x)


def use_lean_norms(model: Qwen3Model) -> None:
    """Let every RMSNorm of a model be a `LeanRMSNorm`, in place: the weights and their names stay."""
    for module in model.modules():
        if type(module) is RMSNorm:
            module.__class__ = LeanRMSNorm
