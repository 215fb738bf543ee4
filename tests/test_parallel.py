"""Training on several processes, each with the whole model or with a part of it."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rfs_utils.engine import parallel
from rfs_utils.engine.config import TrainConfig
from rfs_utils.runs.folder import checkpoint_steps

SMALL_RUN = Path(__file__).with_name("small_run.py")
DOUBLE_RUN = Path(__file__).with_name("double.py")  # the same in float64
RUN = ["train", "--num-rollouts", "4", "--max-new-tokens", "24", "--eval-every", "1", "--checkpoint-every", "2"]
RUN += ["--prompts-per-step", "4"]
whole_or_in_parts = pytest.mark.parametrize("shard", [[], ["--shard"]], ids=["whole", "in parts"])


def rows_of(folder: Path) -> list[dict]:
    return list(csv.DictReader((folder / "metrics.csv").open()))


def torchrun(processes: int, script: Path, *arguments) -> str:
    """What a script prints on several processes of one thread each, or alone without torchrun; it must succeed."""
    command = [sys.executable, script]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    done = subprocess.run([str(x) for x in (*command, *arguments)], timeout=240, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


SAME_STEP = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv.pop(1))
from double import load_double, use_float64
from rfs_utils.engine import parallel
from rfs_utils.engine.config import TrainConfig
from rfs_utils.data import generate_tiny_problems
from rfs_utils.engine.learner import Learner
from rfs_utils.engine.sharding import full, is_sharded
from safetensors.torch import save_file
parallel.start()
use_float64()
model, tokenizer = load_double("tiny-base", "cpu")
config = TrainConfig(max_new_tokens=48, num_rollouts=4, seed=3, **eval(sys.argv[2]))
learner = Learner(config, model, tokenizer, generate_tiny_problems(60, "train"))
metrics = learner.step()
assert is_sharded(model) == (config.shard and parallel.world_size() > 1)
grads = {name: full(p.grad) for name, p in model.named_parameters() if p.requires_grad}
assert all(grad.dtype == torch.float64 for grad in grads.values())
if parallel.rank() == 0:
    values = {"metric." + k: torch.tensor(v) for k, v in metrics.items() if v is not None and "second" not in k}
    save_file(values | grads, sys.argv[1])
parallel.stop()  # a process that just ends may abort while the others still talk
"""


@pytest.mark.parametrize(
    "settings",
    [
        {"prompts_per_step": 5},
        {"prompts_per_step": 5, "method": "reinforce_pp", "updates_per_step": 2, "minibatches": 2, "kl_coef": 0.05},
        pytest.param(
            {"prompts_per_step": 4, "method": "dapo", "rewards": "accuracy,format=0.5"}, marks=pytest.mark.nightly
        ),
        pytest.param({"prompts_per_step": 4, "method": "remax"}, marks=pytest.mark.nightly),
        {"prompts_per_step": 4, "method": "reinforce_pp", "rewards": "small_run:some_unjudged", "kl_coef": 0.05},
        pytest.param({"prompts_per_step": 5, "shard": True}, marks=pytest.mark.nightly),
        {"prompts_per_step": 4, "shard": True, "updates_per_step": 2, "kl_coef": 0.05, "micro_batch": 40},
        {"prompts_per_step": 4, "lora_rank": 2, "updates_per_step": 2, "kl_coef": 0.05},
    ],
)
def test_two_processes_equal_one(settings, tmp_path):
    """Metrics and gradient of a step, in float64: sums in another order round differently in float32."""
    (tmp_path / "step.py").write_text(SAME_STEP)
    found = []
    for count in (1, 2):
        out = tmp_path / f"{count}.safetensors"
        torchrun(count, tmp_path / "step.py", SMALL_RUN.parent, out, repr(settings))
        found.append(load_file(out))
    one, two = found
    assert one["metric.grad_norm"] > 0.01 and one.keys() == two.keys()
    for name in one:
        allowed = 1e-12 + 1e-9 * one[name].double().norm()  # a loss may be zero but for rounding
        assert (one[name] - two[name]).double().norm() <= allowed, name


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Five steps on one process."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    torchrun(1, DOUBLE_RUN, *RUN, "--rewards", "small_run:every_second", "--steps", "5", "--out", folder)
    return folder


@pytest.mark.parametrize(
    "then, shard",
    [
        pytest.param(1, ["--shard"], id="1-in parts"),
        pytest.param(3, [], id="3-whole"),
        pytest.param(1, [], id="1-whole", marks=pytest.mark.nightly),
        pytest.param(3, ["--shard"], id="3-in parts", marks=pytest.mark.nightly),
    ],
)
def test_a_run_on_two_processes_goes_on_with_another_number(shard, then, alone, tmp_path):
    """Three steps on two processes and two more on one or three, against five on one; in parts or not."""
    folder = tmp_path / "on two"
    torchrun(2, DOUBLE_RUN, *RUN, *shard, "--rewards", "small_run:every_second", "--steps", "3", "--out", folder)
    torchrun(then, DOUBLE_RUN, "train", "--resume", folder, "--steps", "5")
    assert [row["step"] for row in rows_of(folder)] == ["1", "2", "3", "4", "5"]
    assert all(float(row["grad_norm"]) > 0 for row in rows_of(folder))
    for name in ("model", "optimizer"):
        files = (run / "checkpoints" / "step-00005" / f"{name}.safetensors" for run in (folder, alone))
        found, expected = map(load_file, files)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, atol=1e-9, rtol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


PARTS = """
import sys, torch
from small import make_model
from rfs_utils.engine import parallel
from rfs_utils.engine.optim import make_optimizer
from rfs_utils.qwen3 import QWEN3_CONFIG_TINY
from rfs_utils.engine.sharding import full, gathered, shard
parallel.start()
model = make_model(tied=False)
before = {name: p.detach().clone() for name, p in model.named_parameters()}
shard(model, torch.bfloat16)
optimizer = make_optimizer("adamw", model.parameters(), 1e-2)
ids = torch.arange(12).view(2, 6) + 20 * parallel.rank()
with gathered(model):
    assert all(p.dtype == torch.bfloat16 and p.shape == before[n].shape for n, p in model.named_parameters())
    with torch.no_grad():
        for _ in range(1 + 2 * parallel.rank()):  # unequal numbers of passes
            model(ids)
    for _ in range(1 + 2 * parallel.rank()):
        model(ids).float().logsumexp(-1).mean().backward()
    parallel.add_gradients(model)
optimizer.step()
numel = lambda tensors: sum(t.to_local().numel() for t in tensors)
states = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
total = sum(p.numel() for p in before.values())
assert abs(2 * numel(model.parameters()) - total) <= 2 * len(before) * 64, "not half of the weights"
assert numel(states) == 2 * numel(model.parameters()) and all(t.dtype == torch.float32 for t in states)
changed = {name: full(p) for name, p in model.named_parameters()}
assert all(p.dtype == torch.float32 and not torch.equal(p, before[name]) for name, p in changed.items())
parallel.stop()
"""


def test_each_process_keeps_half_of_the_weights_and_states(tmp_path):
    """An untied model in float32 that computes in bfloat16; the two processes do unequal numbers of passes."""
    script = tmp_path / "parts.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{PARTS}")
    torchrun(2, script)


UNWRITABLE = """
import resource, signal, sys
sys.path.insert(0, sys.argv.pop(1))
import small_run
from rfs_utils.engine import parallel
from rfs_utils.engine.learner import Learner
step = Learner.step
def limited(self):
    if self.done == 3 and parallel.rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return step(self)
Learner.step = limited
sys.exit(small_run.main())
"""


def test_a_process_that_cannot_write_its_part_leaves_the_checkpoint_before(tmp_path):
    pytest.importorskip("resource")
    (tmp_path / "job.py").write_text(UNWRITABLE)
    out = torchrun(2, tmp_path / "job.py", SMALL_RUN.parent, *RUN, "--shard", "--steps", "4", "--out", tmp_path / "r")
    assert "could not save the checkpoint of step 4: cannot write" in out and "the one of step 2 stays" in out
    assert 2 in (steps := checkpoint_steps(tmp_path / "r")) and 4 not in steps and len(rows_of(tmp_path / "r")) == 4
    assert not [path for path in (tmp_path / "r").rglob(".*")]


@pytest.mark.parametrize(("gpus", "rank"), [(0, 0), (1, 0), (2, 1), (1, 3)])
def test_a_machine_with_gpus_gets_a_backend_for_models_on_the_cpu_too(gpus, rank, monkeypatch):
    backends, devices = [], []
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", backends.append)
    parallel.start()
    assert backends == (["cpu:gloo,cuda:nccl"] if gpus else ["gloo"])
    assert devices == ([rank] if rank < gpus else [])


def test_states_of_another_optimiser_are_refused_with_shard():
    with pytest.raises(ValueError, match="with shard, optimizer must be auto or adamw, got kahan"):
        TrainConfig(shard=True, optimizer="kahan").check()


@whole_or_in_parts
def test_processes_of_unequal_length_and_without_signal_do_not_wait_for_ever(shard, tmp_path):
    """Process 0 has one-token answers without signal, process 1 long ones with a signal, for three steps."""
    reward = """
import torch.distributed as dist
def uneven(responses, examples, **info):
    return [float(dist.get_rank() == 1 and i % 2 == 0) for i in range(len(responses))]
"""
    (tmp_path / "uneven_rewards.py").write_text(reward)
    script = f"""
import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(Path(__file__).parent)!r}]
import small_run, torch.distributed as dist
from rfs_utils import ch06
real = ch06.sample_batch
def uneven(*args):
    short = dist.is_initialized() and dist.get_rank() == 0
    limit, uniform = (1, args[8][:, :1]) if short and args[8] is not None else (args[5], args[8])
    return real(*args[:5], limit, *args[6:8], uniform)
from rfs_utils.engine import rollouts
rollouts.sample_batch = uneven
sys.exit(small_run.main())
"""
    (tmp_path / "job.py").write_text(script)
    arguments = [*RUN, *shard, "--steps", "3", "--rewards", "uneven_rewards:uneven", "--out", tmp_path / "r"]
    torchrun(2, tmp_path / "job.py", *arguments)
    rows = rows_of(tmp_path / "r")
    assert len(rows) == 3 and all(float(row["zero_signal_groups"]) == 0.5 for row in rows)
    assert all(float(row["grad_norm"]) > 0 for row in rows)
