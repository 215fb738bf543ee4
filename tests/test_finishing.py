"""The end of a run is a stage like the others: whatever comes between, resuming completes what is missing."""

import errno
import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rfs_utils.cli import main
from rfs_utils.engine.config import (
    MAY_CHANGE,
    TrainConfig,
    format_config,
    read_config,
)
from rfs_utils.engine.learner import Learner
from rfs_utils.memory_errors import is_out_of_memory
from rfs_utils.runs import held_out
from rfs_utils.runs import run as trainer
from rfs_utils.runs.answers import evaluate_to_file
from rfs_utils.runs.folder import checkpoint_steps, make_run_folder, prune_checkpoints

pytestmark = pytest.mark.usefixtures("few_problems")
FAST = ["--steps", "2", "--prompts-per-step", "2", "--num-rollouts", "2", "--max-new-tokens", "8", "--eval-every", "0"]
STAGES = ("summary", "examples.json", "save_figure", "save_model", "write_page", "result.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, few_problems):
    """A run that is finished."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["train", *FAST, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def unfinished(finished, tmp_path):
    """The same run as if it had ended with the checkpoint of its last step."""
    shutil.copytree(finished, tmp_path / "run")
    for name in ("result.json", "examples.json", "curves.png", "report.html"):
        (tmp_path / "run" / name).unlink()
    shutil.rmtree(tmp_path / "run" / "model")
    return tmp_path / "run"


def fail_at(stage: str, fail, patch) -> None:
    """Call `fail` in place of a stage of finishing."""
    if stage == "summary":
        patch.setattr(trainer.HeldOut, "summary", lambda self, learner: fail())
    elif stage.endswith(".json"):
        write = trainer.write_json
        patch.setattr(trainer, "write_json", lambda path, x: fail() if path.name == stage else write(path, x))
    else:
        patch.setattr(trainer, stage, lambda *args: fail())


def assert_same(folder: Path, whole: Path) -> None:
    for name in ("result.json", "examples.json"):
        assert json.loads((folder / name).read_text()) == json.loads((whole / name).read_text())
    one, two = (load_file(path / "model" / "model.safetensors") for path in (folder, whole))
    assert all(one[name].equal(two[name]) for name in two)
    assert (folder / "curves.png").is_file() and "held-out accuracy" in (folder / "report.html").read_text()
    assert not [path for path in folder.rglob(".*")], "nothing half-written stays"


def full():
    raise OSError(errno.ENOSPC, "No space left on device")


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def terminated():
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(("fail", "code"), [(full, 1), (ctrl_c, 130), (terminated, 143)])
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_failed_while_finishing_is_finished_later(stage, fail, code, unfinished, finished, capsys):
    if (stage, fail) == ("summary", full):
        pytest.skip("nothing is written there")
    with pytest.MonkeyPatch.context() as patch:
        fail_at(stage, fail, patch)
        assert main(["train", "--resume", str(unfinished)]) == code
    err = capsys.readouterr().err
    assert "go on with: rfs train --resume" in err and "Traceback" not in err
    assert main(["train", "--resume", str(unfinished)]) == 0
    assert_same(unfinished, finished)
    assert main(["train", "--resume", str(unfinished)]) == 2
    assert "has done 2 steps; raise --steps" in capsys.readouterr().err


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import pytest, small_run
from test_finishing import fail_at
fail_at({stage!r}, lambda: os.kill(os.getpid(), signal.SIGKILL), pytest.MonkeyPatch())
small_run.main(["train", "--resume", {folder!r}])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("stage", ["save_figure", "write_page", "result.json"])
def test_a_run_that_was_killed_while_finishing_is_finished_later(stage, unfinished, finished):
    script = KILLED.format(tests=str(Path(__file__).parent), stage=stage, folder=str(unfinished))
    assert subprocess.run([sys.executable, "-c", script], timeout=300).returncode == -signal.SIGKILL
    assert main(["train", "--resume", str(unfinished)]) == 0
    assert_same(unfinished, finished)


@pytest.mark.parametrize("name", trainer.RESULT_FILES)
def test_whatever_is_missing_is_written_again(name, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert_same(tmp_path / "run", finished)


def test_results_of_fewer_steps_are_not_those_of_the_run(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with pytest.MonkeyPatch.context() as patch:
        fail_at("save_model", full, patch)
        assert main(["train", "--resume", str(folder), "--steps", "3"]) == 1
    assert main(["train", "--resume", str(folder)]) == 0
    assert json.loads((folder / "result.json").read_text())["steps"] == 3
    weights = [folder / part / "model.safetensors" for part in ("model", "checkpoints/step-00003")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_signal_during_the_last_step_is_answered(tmp_path, monkeypatch, capsys):
    step = Learner.step

    def signalled(self):
        metrics = step(self)
        if self.done == 2:
            signal.raise_signal(signal.SIGTERM)
        return metrics

    monkeypatch.setattr(Learner, "step", signalled)
    assert main(["train", *FAST, "--out", str(tmp_path / "r")]) == 143
    assert "stopped after step 2; go on with" in capsys.readouterr().err
    assert main(["train", "--resume", str(tmp_path / "r")]) == 0 and (tmp_path / "r" / "model").is_dir()


def test_a_run_that_has_collapsed_does_not_go_on_when_it_is_finished_later(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.Watch, "check", lambda self, metrics: "the policy is close to random")
    arguments = [*FAST, "--steps", "4", "--stop-on-collapse", "--out", str(tmp_path / "r")]
    with pytest.MonkeyPatch.context() as patch:
        fail_at("save_figure", full, patch)
        assert main(["train", *arguments]) == 1
    assert main(["train", "--resume", str(tmp_path / "r")]) == 0
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    assert result["steps"] == 1 and result["ended_early"] == "the policy is close to random"


# ---------------------------------------------------------------- folders and names


def test_two_runs_never_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in (None, "new/mine"):
        start, found = threading.Barrier(8), []

        def begin(number, out=out, start=start, found=found):
            start.wait()
            try:
                found.append((make_run_folder(out, "name", f"seed = {number}\n"), number))
            except ValueError as error:
                assert "exists already and is not empty" in str(error)

        threads = [threading.Thread(target=begin, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({folder for folder, _ in found}) == len(found) == (8 if out is None else 1)
        for folder, number in found:
            assert (folder / "config.toml").read_text() == f"seed = {number}\n"
            assert [path.name for path in folder.iterdir()] == ["config.toml"]


def test_foreign_names_among_the_checkpoints_are_nobody_elses_business(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    digits = "\u0662" * 5  # which int() reads
    names = ("step-00002-backup", "step-best", "step-2", "step-", "step-00002.old", f"step-{digits}")
    for name in names:
        shutil.copytree(folder / "checkpoints" / "step-00002", folder / "checkpoints" / name)
    assert checkpoint_steps(folder) == [2]
    assert main(["train", "--resume", str(folder), "--steps", "4", "--checkpoint-every", "1"]) == 0
    prune_checkpoints(folder, 1, None)
    assert checkpoint_steps(folder) == [4]
    assert all((folder / "checkpoints" / name / "state.json").is_file() for name in names)


# ---------------------------------------------------------------- settings that must stay

OTHER = {
    "model": "tiny-reasoning", "method": "rloo", "data": "mine.json", "prompts_per_step": 3, "num_rollouts": 3,
    "updates_per_step": 2, "minibatches": 2, "sampler": "bfloat16", "ratio_to": "trainer",
    "token_rule": "top_entropy=0.2", "max_new_tokens": 9, "temperature": 0.9, "top_p": 0.9,
    "prompt": "{problem}", "stop": "x", "chat": "off", "rewards": "accuracy,format",
    "lr": 1e-4, "warmup_steps": 1, "schedule": "linear", "weight_decay": 0.1, "max_grad_norm": 2.0, "clip_low": 0.3,
    "clip_high": 0.3, "negative_weight": 0.5, "kl_coef": 0.1, "kl": "k1", "memory": "low", "dtype": "bfloat16",
    "optimizer": "kahan", "lora_rank": 2, "lora_alpha": 8.0, "micro_batch": 64, "shard": True, "seed": 1,
}  # fmt: skip
FREE = {"eval_data": "tiny", "eval_every": 1, "eval_problems": 3, "checkpoint_every": 1, "keep_checkpoints": 1,
        "stop_on_collapse": True, "out": "elsewhere", "steps": 3}  # fmt: skip


def test_every_setting_either_stays_or_may_change():
    assert OTHER.keys() | set(MAY_CHANGE) == set(vars(TrainConfig())) and not OTHER.keys() & set(MAY_CHANGE)


@pytest.mark.parametrize("name", [*OTHER, "both at once"])
def test_a_run_does_not_go_on_with_another_setting(name, finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    changes = {name: OTHER[name]} if name in OTHER else {"dtype": "bfloat16", "optimizer": "8bit"}
    config = TrainConfig(**{**read_config(folder / "config.toml"), "steps": 3, **changes})
    (folder / "config.toml").write_text(format_config(config))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["train", "--resume", str(folder)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and f"config.toml has {next(iter(changes))} = " in err
    assert "its run was begun with" in err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", FREE)
def test_a_run_goes_on_with_settings_that_may_change(name, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    config = TrainConfig(**{**read_config(folder / "config.toml"), "steps": 3, name: FREE[name]})
    (folder / "config.toml").write_text(format_config(config))
    assert main(["train", "--resume", str(folder)]) == 0
    assert json.loads((folder / "result.json").read_text())["steps"] == 3


# ---------------------------------------------------------------- memory

SAYINGS = [
    torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.90 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]  # fmt: skip


def test_memory_that_is_too_small_is_recognised():
    assert all(map(is_out_of_memory, SAYINGS))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("place", ["step", "evaluation", "loading"])
def test_memory_that_is_too_small_ends_in_one_sentence(place, tmp_path, monkeypatch, capsys):
    def fail(*args, **options):
        torch.empty(2**50)

    target = {"step": (Learner, "step"), "evaluation": (held_out, "evaluate_model"), "loading": (trainer, "prepare")}
    monkeypatch.setattr(*target[place], fail)
    assert main(["train", *FAST, "--out", str(tmp_path / "r")]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err and ("memory" in err) and ("--memory low" in err or place == "loading")
    assert place != "step" or "the memory of cpu is too small for step 0: --memory low, fewer" in err


def test_an_evaluation_that_needs_too_much_memory_gives_advice(tmp_path, monkeypatch, model, tokenizer):
    monkeypatch.setattr("rfs_utils.evaluate.sample_batch", lambda *args: torch.empty(2**50))
    problems = [{"problem": "1?", "answer": "1"}]
    with pytest.raises(ValueError, match="memory of cpu is too small for batches of 16; choose a smaller batch size"):
        evaluate_to_file(model, tokenizer, problems, tmp_path / "a.jsonl", max_new_tokens=4, progress=False)


def test_a_programming_error_is_none_of_memory(tmp_path, monkeypatch):
    def wrong(self):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Learner, "step", wrong)
    with pytest.raises(RuntimeError, match="mat1"):
        main(["train", *FAST, "--out", str(tmp_path / "r")])


def test_a_full_disk_while_a_checkpoints_tokenizer_is_written(tmp_path, monkeypatch, capsys):
    write = Path.write_bytes

    def limited(path, content):
        return full() if path.name == "tokenizer.json" and "step-" in str(path) else write(path, content)

    monkeypatch.setattr(Path, "write_bytes", limited)
    assert main(["train", *FAST, "--out", str(tmp_path / "r")]) == 0
    assert "could not save the checkpoint of step 2" in capsys.readouterr().out
    assert not checkpoint_steps(tmp_path / "r")
