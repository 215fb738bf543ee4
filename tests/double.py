"""Training in float64, for tests that compare two ways to add up: what differs then is no processor's rounding."""

import torch

from rfs_utils.models import load_model_and_tokenizer
from rfs_utils.runs import run as trainer

FLOAT32 = torch.float32


def use_float64() -> None:
    """From now on, whatever asks for float32 gets float64; models are to be loaded with `load_double`."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    torch.float32 = torch.float64
    trainer.load_model_and_tokenizer = load_double


def load_double(*arguments):
    """`load_model_and_tokenizer`, with the weights in float64."""
    torch.float32 = FLOAT32  # safetensors looks the type of a file's numbers up by this name
    model, tokenizer = load_model_and_tokenizer(*arguments)
    torch.float32 = torch.float64
    return model.double(), tokenizer


if __name__ == "__main__":
    import sys

    import small_run

    use_float64()
    sys.exit(small_run.main())
