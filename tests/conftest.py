"""Small random models and a tokenizer that tests share."""

import os
import signal

import pytest
import torch
from small import make_model, make_tokenizer

from rfs_utils.qwen3 import Qwen3Model
from rfs_utils.runs import held_out

NIGHTLY = bool(os.environ.get("RFS_NIGHTLY"))  # as `make nightly` sets it: every case, in place of a sample

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a job in the background; tests send Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


# So that no command writes a line about a busy machine, whatever else computes here; processes of tests inherit it.
os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))


@pytest.fixture
def model() -> Qwen3Model:
    return make_model()


@pytest.fixture(scope="module")
def few_problems():
    """Ten held-out problems in place of hundreds, for tests of files and messages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out, "NUM_PROBLEMS", 10)
        patch.setattr(held_out, "NUM_HARDER", 10)
        yield


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()
