"""The README's program does what the README says, and what the texts name is there."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rfs_utils import cli

ROOT = Path(__file__).parents[1]
TEXTS = ["README.md", "CONTRIBUTING.md"]


def test_a_method_and_a_reward_of_ones_own(tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    short = '"--steps", "1", "--eval-every", "0", "--prompts-per-step", "2", "--num-rollouts", "2", "--out", "run"])'
    assert program.count('"])') == 1
    (tmp_path / "mine.py").write_text(program.replace('"])', f'", {short}'), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "mine.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 1
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert "reward_mine:brief" in header
    more = [*command, "train", "--resume", "run", "--steps", "2"]
    done = subprocess.run(more, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 2


def code_of(name: str) -> list[str]:
    """What a text shows as code: pieces in backticks, and the lines of blocks without their comments."""
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [re.sub(r"\s+#.*", "", line) for line in "".join(blocks).splitlines()]
    return [" ".join(span.split()) for span in spans] + lines


@pytest.mark.parametrize("name", TEXTS)
def test_paths_are_there(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\((?!https?:|#)([^)#\s]+)\)", text))
    folders = [path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    inside = rf"(?<![\w/.])(?:{'|'.join(folders)})/[\w./*-]*"
    named = {path for code in code_of(name) for path in re.findall(inside, code)} - {"rfs_utils/chNN.py"}
    named = {path for path in named if not path.startswith(("runs/", "build/"))}  # what commands write
    assert len(linked | named) >= 5
    missing = [path for path in linked | named if not list(ROOT.glob(path.rstrip("./")))]
    assert not missing


@pytest.mark.parametrize("name", TEXTS)
def test_targets_of_make_are_there(name):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = {target for code in code_of(name) for target in re.findall(r"^make ([\w-]+)", code)}
    assert len(named) >= 4 and named <= set(targets)


@pytest.mark.parametrize("name", TEXTS)
def test_options_of_rfs_are_there(name, capsys):
    commands = re.compile(r"(\S*/)?rfs |torchrun |python -m rfs_utils ")
    found = [shlex.split(code) for code in code_of(name) if commands.match(code)]
    assert found
    for words in found:
        at = next(i for i, word in enumerate(words) if word.split("/")[-1] in ("rfs", "rfs_utils"))
        command, *rest = words[at + 1 :]
        with pytest.raises(SystemExit) as end:
            cli.main([command, "--help"])
        shown = capsys.readouterr().out
        assert end.value.code == 0
        assert {word for word in rest if word.startswith("--")} <= set(re.findall(r"--[\w-]+", shown)), words
