"""A reward function that is nothing but chance, from every generator that one may use."""

import random

random.random()  # whether a module is imported now or was before must not matter


def drawn(responses, examples, **info):
    """Numbers of Python, numpy and torch."""
    import numpy
    import torch

    return [random.random() + numpy.random.rand() + torch.rand(()).item() for _ in responses]
