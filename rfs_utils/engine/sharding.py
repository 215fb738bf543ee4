"""A model in parts: every process keeps a share of the weights and of AdamW's states, by PyTorch's FSDP2.

    torchrun --nproc-per-node 8 -m rfs_utils train --shard ...

Weights, gradients and states of AdamW in float32, 16 bytes a weight, are divided by the number of processes. While a
process samples or back-propagates it holds the whole model, gathered from all: in bfloat16, where the hardware
computes with it, 2 bytes a weight, and 4 for the sum of its own gradients.

FSDP can also gather a layer at a time, which takes less memory. But then no process can start a layer before all
others do, and here one has longer answers than the other, or none with a signal. Gathered once for all that a process
has to do, nobody waits for passes that others do not have.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import nn

from ..hub.weights import to_hf_names
from ..qwen3 import Qwen3Model

FILES = ("model.safetensors", "optimizer.safetensors")  # of a checkpoint, in parts or not


def shard(model: Qwen3Model, compute_dtype: torch.dtype) -> None:
    """Leave on every process its part of each weight, in place; the whole ones will be of type `compute_dtype`.

    All processes must call it, with the same weights on the same kind of device. The optimiser is made afterwards.
    ValueError when torch is too old.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(model.tok_emb.weight.device.type, (dist.get_world_size(),))
    exact = compute_dtype == model.tok_emb.weight.dtype
    policy = MixedPrecisionPolicy() if exact else MixedPrecisionPolicy(compute_dtype, reduce_dtype=torch.float32)
    whole: Any = model  # FSDP gives it methods that its class does not have
    for module in (*whole.trf_blocks, whole):
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        if not hasattr(module, "set_force_sum_reduction_for_comms"):
            raise ValueError(f"shard needs a newer torch than {torch.__version__}; 2.13 is tested")
        module.set_gradient_divide_factor(1.0)  # losses are divided by totals of the step already
        module.set_force_sum_reduction_for_comms(True)  # gloo can only add
    whole.set_reshard_after_backward(False)
    whole.set_requires_gradient_sync(False)
    # FSDP watches `forward` and `hidden_states`, and must not be entered twice: `forward` calls the unwatched one.
    unwatched = model.hidden_states
    whole.forward = lambda in_idx, cache=None, num_pad=None: model.logits(unwatched(in_idx, cache, num_pad))
    register_fsdp_forward_method(model, "hidden_states")


def is_sharded(model: nn.Module) -> bool:
    """Whether this process has only a part of each weight."""
    return hasattr(model, "unshard")


@contextmanager
def gathered(model: Qwen3Model) -> Iterator[None]:
    """The whole model on every process; all must come in, and may come out at any time. For other models: nothing."""
    modules: list[Any] = [module for module in model.modules() if is_sharded(module)]
    for module in modules:
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()


def reduce_gradients(model: Qwen3Model) -> None:
    """Give every process its part of the gradient, summed over all; to be called by all, in `gathered`.

    FSDP adds gradients up at the end of a backward pass. So all do one more, in which every weight has a part, over one
    token and with a gradient of zero.
    """
    whole: Any = model
    whole.set_requires_gradient_sync(True)
    token = torch.zeros(1, 1, dtype=torch.long, device=model.tok_emb.weight.device)
    (model(token).sum() * 0).backward()
    whole.set_requires_gradient_sync(False)


def full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that is in parts; others as they are."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


# ------------------------------------------------------------------ checkpoints


def save_parts(directory: Path, model: Qwen3Model, states: dict, is_main: bool) -> None:
    """Write the two FILES of a checkpoint by torch.distributed.checkpoint, everybody their parts.

    The files are those that a single process writes, with the same names in them; `states` are the optimiser's
    tensors. The directory must be one that all processes see. Raises OSError, on all, when one cannot write.
    """
    from torch.distributed import checkpoint as dcp

    weights = own_weights(model)
    files = dict.fromkeys(weights, 1) | dict.fromkeys(states, 2)
    # Every process writes a file; process 0 puts the parts of each tensor together.
    writer = dcp.HuggingFaceStorageWriter(str(directory), files, save_distributed=True, enable_consolidation=True)
    with first_failure_as(OSError, f"cannot write {directory}"):
        dcp.save(weights | states, storage_writer=writer)
    if is_main:
        shutil.rmtree(directory / "sharded")
        (directory / "model.safetensors.index.json").unlink()
        for number, name in enumerate(FILES, 1):
            (directory / f"model-{number:05d}-of-{len(FILES):05d}.safetensors").rename(directory / name)


def load_parts(directory: Path, model: Qwen3Model, params: list[torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """Fill every process's part of the weights from a checkpoint; returns its part of the optimiser's tensors.

    `params` are the optimiser's, in its order: "3.exp_avg" is in parts as params[3] is. Any number of processes can
    have written the checkpoint. Raises ValueError, on all, when one cannot read it.
    """
    from torch.distributed import checkpoint as dcp

    with safe_open(directory / FILES[1], framework="pt") as file:
        states = {name: torch.zeros_like(params[int(name.partition(".")[0])]) for name in file.keys()}
    with first_failure_as(ValueError, f"cannot read {directory}"):
        dcp.load(own_weights(model) | states, storage_reader=dcp.HuggingFaceStorageReader(str(directory)))
    return states


def own_weights(model: Qwen3Model) -> dict[str, torch.Tensor]:
    """This process's parts of the weights, under Hugging Face's names."""
    return to_hf_names({name: p.detach() for name, p in model.named_parameters()})


@contextmanager
def first_failure_as(kind: type[Exception], text: str) -> Iterator[None]:
    """Raise what went wrong, on whichever process, as an exception of a kind that the callers know."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        first, *_ = error.failures.values()
        raise kind(f"{text}: {first[0]}") from None
