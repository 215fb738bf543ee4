"""Shapes of tensors: torch would broadcast most mistakes in silence."""

import torch


def check_shapes(advantages: torch.Tensor, per_token: bool = False, **others: torch.Tensor | None) -> None:
    """ValueError unless advantages are (N,), or with `per_token` (N, T), and the others (N, T); None is left aside."""
    shapes = {name: tuple(x.shape) for name, x in others.items() if x is not None}
    first = next(iter(shapes.values()))
    allowed = (first[:1], first) if per_token else (first[:1],)
    if len(first) != 2 or len(set(shapes.values())) > 1 or tuple(advantages.shape) not in allowed:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"expected advantages of shape (N,) and the others of shape (N, T); "
            f"got advantages {tuple(advantages.shape)}, {found}"
        )
