"""Shapes of tensors: torch would broadcast most mistakes in silence."""

import torch


def check_shapes(advantages: torch.Tensor, **others: torch.Tensor | None) -> None:
    """ValueError unless advantages are (N,) and the others (N, T); None is left aside."""
    shapes = {name: tuple(x.shape) for name, x in others.items() if x is not None}
    first = next(iter(shapes.values()))
    if len(first) != 2 or len(set(shapes.values())) > 1 or tuple(advantages.shape) != first[:1]:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"expected advantages of shape (N,) and the others of shape (N, T); "
            f"got advantages {tuple(advantages.shape)}, {found}"
        )
