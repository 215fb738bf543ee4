"""Small random models and a tokenizer that tests share."""

import os
import signal

import pytest
import torch
from small import make_tokenizer

from rfs_utils.qwen3 import Qwen3Model

NIGHTLY = bool(os.environ.get("RFS_NIGHTLY"))  # as `make nightly` sets it: every case, in place of a sample

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a job in the background; tests send Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL = {
    "vocab_size": 512,
    "context_length": 256,
    "emb_dim": 32,
    "n_heads": 4,
    "n_layers": 2,
    "hidden_dim": 48,
    "head_dim": 16,
    "n_kv_groups": 2,
    "rope_base": 10_000.0,
    "rms_norm_eps": 1e-6,
    "dtype": torch.float32,
}


def random_model(**changes) -> Qwen3Model:
    """A small model with random weights large enough that its predictions differ from uniform."""
    torch.manual_seed(0)
    model = Qwen3Model(SMALL | changes)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, mean=float(weight.dim() == 1), std=0.2)
    return model.eval()


@pytest.fixture
def model() -> Qwen3Model:
    return random_model()


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()
