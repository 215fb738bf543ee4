"""AdamW in less memory: bfloat16 weights that still learn, and optimiser states of one byte.

A bfloat16 number has 8 significant bits, so a step smaller than about 1/500 of a weight vanishes when the sum is
rounded to the nearest number; at the learning rates of reinforcement learning that is most steps of most weights.
Two remedies: round at random, so that the expected weight is the exact one ("stochastic"), or keep what rounding
cut off in a second bfloat16 tensor ("kahan"). Bytes a weight, gradient included: AdamW in float32 16, "kahan" 10,
"stochastic" 8, "8bit" 6.
"""

from collections.abc import Iterable, Iterator

import torch

from ..rounding import round_stochastically

OPTIMIZERS = ("adamw", "kahan", "stochastic", "8bit")
BLOCK = 256  # states of one byte share a scale within a block of so many


def make_optimizer(
    name: str, params: Iterable[torch.nn.Parameter], lr: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """The optimiser called `name`, one of OPTIMIZERS; "adamw" is torch's own, for float32 weights."""
    if name == "adamw":
        return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, fused=True)
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}: known optimizers are {', '.join(OPTIMIZERS)}")
    rounding = "kahan" if name == "kahan" else "stochastic"
    return LowMemoryAdamW(params, lr, weight_decay=weight_decay, rounding=rounding, byte_states=name == "8bit")


class LowMemoryAdamW(torch.optim.Optimizer):
    """AdamW that computes in float32, piece by piece, and stores weights and states in fewer bits.

    `rounding` of bfloat16 weights is "stochastic" or "kahan"; float32 weights are stored as they are. The states, the
    mean gradient and the root of the mean squared gradient, take one byte with `byte_states`, else two. They are
    allocated at once, so that a model that does not fit fails before the first step. Random numbers come from torch's
    global generators. AdamW: arXiv 1711.05101; stochastic rounding and Kahan summation: arXiv 2010.06192.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rounding: str = "stochastic",
        byte_states: bool = False,
    ):
        if rounding not in ("stochastic", "kahan"):
            raise ValueError(f"rounding must be 'stochastic' or 'kahan', got {rounding!r}")
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
        self.rounding = rounding
        for p in (p for group in self.param_groups for p in group["params"] if p.requires_grad):
            if p.dtype not in (torch.float32, torch.bfloat16):
                raise ValueError(f"weights must be float32 or bfloat16, got {p.dtype}")
            # Norm weights are too few to matter, and do not fill blocks.
            compact = byte_states and p.numel() % BLOCK == 0 and p.numel() >= 16 * BLOCK
            state: dict = {"step": 0}
            self.state[p] = state
            for key, code_type in (("mean", torch.int8), ("root", torch.uint8)):
                dtype = code_type if compact else torch.bfloat16
                state[key] = torch.zeros(p.numel(), dtype=dtype, device=p.device)
                if compact:
                    state[key + "_scale"] = torch.zeros(p.numel() // BLOCK, device=p.device)
            if rounding == "kahan" and p.dtype == torch.bfloat16:
                state["lost"] = torch.zeros(p.numel(), dtype=p.dtype, device=p.device)

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every weight that has a gradient."""
        ready = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        largest = max((p.numel() for p, _ in ready), default=0)
        noise = {device: Noise(device, largest) for device in {p.device for p, _ in ready}}
        for p, group in ready:
            self.state[p]["step"] += 1
            weight, grad, piece = p.view(-1), p.grad.reshape(-1), noise[p.device].piece
            for start in range(0, p.numel(), piece):
                part = slice(start, min(start + piece, p.numel()))
                self._update(weight[part], grad[part], part, self.state[p], group, noise[p.device])

    def _update(self, weight, grad, part: slice, state: dict, group: dict, noise: "Noise") -> None:
        """AdamW on one piece of one weight; all float32 tensors here are temporary and as small as the piece."""
        beta1, beta2 = group["betas"]
        grad = grad.float()
        mean = load_state(state, "mean", part).lerp_(grad, 1 - beta1)
        root = load_state(state, "root", part).square_().mul_(beta2).addcmul_(grad, grad, value=1 - beta2).sqrt_()
        store_state(state, "mean", part, mean, noise)
        store_state(state, "root", part, root, noise)
        exact = weight.float() + state["lost"][part].float() if "lost" in state else weight.float()
        exact.mul_(1 - group["lr"] * group["weight_decay"])
        denominator = root.mul_((1 - beta2 ** state["step"]) ** -0.5).add_(group["eps"])
        exact.addcdiv_(mean, denominator, value=-group["lr"] / (1 - beta1 ** state["step"]))
        if "lost" in state:
            weight.copy_(exact)
            state["lost"][part] = exact - weight.float()
        elif weight.dtype == torch.bfloat16:
            weight.copy_(round_stochastically(exact, noise.bits(len(exact))))
        else:
            weight.copy_(exact)

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore a saved state; torch would cast the states to the weights' type, so they are put back as saved."""
        super().load_state_dict(state_dict)
        params = [p for group in self.param_groups for p in group["params"]]
        for index, saved in state_dict["state"].items():
            p = params[index]
            self.state[p] = {k: v.to(p.device).clone() if torch.is_tensor(v) else v for k, v in saved.items()}


class Noise:
    """Random numbers for one step: one buffer, from which every use takes a stretch at a random place.

    Drawing fresh numbers for every weight would take longer than all the rest of the update on a CPU.
    """

    def __init__(self, device: torch.device, largest: int):
        piece = 2**17 if device.type == "cpu" else 2**24  # small enough for a CPU's cache
        self.piece = min(piece, -(-largest // BLOCK) * BLOCK)
        self.integers = torch.randint(0, 2**16, (2 * self.piece,), dtype=torch.int32, device=device)
        self.fractions = self.integers / 2**16
        self.places: Iterator[int] = iter(())

    def _stretch(self, buffer: torch.Tensor, n: int) -> torch.Tensor:
        place = next(self.places, None)
        if place is None:
            self.places = iter(torch.randint(0, self.piece, (1024,)).tolist())
            place = next(self.places)
        return buffer[place : place + n]

    def bits(self, n: int) -> torch.Tensor:
        """n integers, uniform in 0..65535, int32."""
        return self._stretch(self.integers, n)

    def uniform(self, n: int) -> torch.Tensor:
        """n numbers, uniform in [0, 1)."""
        return self._stretch(self.fractions, n)


def load_state(state: dict, key: str, part: slice) -> torch.Tensor:
    """A piece of a state as new float32 numbers: of a byte, (code / largest code)^2 * scale, with the code's sign."""
    stored = state[key][part]
    if stored.dtype == torch.bfloat16:
        return stored.float()
    codes = stored.float()
    codes = codes.mul_(codes.abs()) if stored.dtype == torch.int8 else codes.square_()
    scale = state[key + "_scale"][part.start // BLOCK : part.stop // BLOCK]
    codes.view(-1, BLOCK).mul_((scale / torch.iinfo(stored.dtype).max ** 2)[:, None])
    return codes


def store_state(state: dict, key: str, part: slice, x: torch.Tensor, noise: Noise) -> None:
    """Store a piece of a state with random rounding, since a tenth or a thousandth of change must not get lost.

    Squared codes reach from 1 to 1/65025 (roots; means: 1/16129) of a block's largest number, as its gradients do.
    """
    stored = state[key][part]
    if stored.dtype == torch.bfloat16:
        stored.copy_(round_stochastically(x.clone(), noise.bits(len(x))))
        return
    size = x.abs()
    blocks = size.view(-1, BLOCK)
    scale = blocks.amax(dim=1).clamp_(min=1e-30)
    state[key + "_scale"][part.start // BLOCK : part.stop // BLOCK] = scale
    blocks.mul_(scale.reciprocal()[:, None])
    codes = size.sqrt_().mul_(torch.iinfo(stored.dtype).max).add_(noise.uniform(len(x)))
    # The conversion to integers cuts fractions off. A root of 0 below a mean that is not 0 would be a huge step.
    stored.copy_(codes.copysign_(x) if stored.dtype == torch.int8 else codes.clamp_(min=1))
