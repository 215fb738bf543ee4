"""The README's program does what the README says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
