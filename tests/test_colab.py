"""Each notebook opens alone, as in Colab: an empty folder, an environment with torch and Jupyter only."""

import os
import shutil
import subprocess
import sys
import venv

import pytest
from notebooks import ROOT, all_notebooks

PINS = (ROOT / "requirements.txt").read_text().split()
TORCH = next(pin for pin in PINS if pin.startswith("torch=="))


@pytest.fixture(scope="module")
def bare_environment(tmp_path_factory):
    """Its python, with torch and Jupyter, and a wheel of the package that is not installed in it."""
    folder = tmp_path_factory.mktemp("colab")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([python, "-m", "pip", "install", "-q", TORCH, "jupyterlab", "nbconvert"], check=True)
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder / "wheel"), str(ROOT)]
    subprocess.run(wheel, check=True)
    return python, next((folder / "wheel").glob("*.whl"))


@pytest.mark.parametrize("path", all_notebooks(), ids=lambda p: p.stem)
def test_notebook_runs_alone(path, bare_environment, tmp_path):
    python, wheel = bare_environment
    shutil.copy(path, tmp_path)
    torch_version = [python, "-c", "import torch; print(torch.__version__, torch.__file__)"]
    before = subprocess.run(torch_version, check=True, capture_output=True, text=True).stdout
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    command = [python, "-m", "nbconvert", "--execute", "--to", "notebook", "--stdout", path.name]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment | {"RFS_SOURCE": str(wheel)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert subprocess.run(torch_version, check=True, capture_output=True, text=True).stdout == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "a notebook leaves nothing beside itself"
