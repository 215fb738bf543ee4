"""Each notebook runs alone, as in Colab: an empty folder, an environment with torch and Jupyter only.

nbval executes it there, so that the stored outputs are compared at the same time. The notebooks for practice have none,
since the outputs are the answers; with nothing written by the reader they must run to their end all the same.
"""

import os
import shutil
import subprocess
import sys
import venv

import pytest
from notebooks import ROOT, all_notebooks, has_solutions, practice_path

PINS = (ROOT / "requirements.txt").read_text().split()
TORCH = next(pin for pin in PINS if pin.startswith("torch=="))
# The versions that made the stored outputs; a URI, because pip splits the variable at blanks.
PINNED = {"PIP_CONSTRAINT": (ROOT / "requirements.txt").as_uri()}


@pytest.fixture(scope="module")
def bare_environment(tmp_path_factory):
    """Its python, with torch and Jupyter, a wheel of the package that is not installed in it, a folder for Matplotlib.

    Matplotlib keeps a list of the fonts it found, for all environments of a user, and warns when it has to make it anew
    or misses one. With a list of its own, complete from the start, no cell has such a warning in its output.
    """
    folder = tmp_path_factory.mktemp("colab")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    install = [python, "-m", "pip", "install", "-q", TORCH, "jupyterlab", "pytest", "nbval"]
    subprocess.run(install, check=True, env=os.environ | PINNED)
    # From a copy: a build leaves files beside what it builds, and another process may be building, too.
    source = folder / "source"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "rfs_utils", source / "rfs_utils", ignore=shutil.ignore_patterns("__pycache__"))
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder / "wheel"), str(source)]
    subprocess.run(wheel, check=True)
    fonts = folder / "matplotlib"
    listed = [sys.executable, "-c", "import matplotlib.font_manager"]
    subprocess.run(listed, check=True, env=os.environ | {"MPLCONFIGDIR": str(fonts)})
    return python, next((folder / "wheel").glob("*.whl")), fonts


NOTEBOOKS = all_notebooks()
PRACTICE = [practice_path(path) for path in NOTEBOOKS if has_solutions(path)]


@pytest.mark.parametrize("path", [*NOTEBOOKS, *PRACTICE], ids=lambda p: p.stem)
def test_notebook_runs_alone(path, bare_environment, tmp_path):
    python, wheel, fonts = bare_environment
    shutil.copy(path, tmp_path)
    torch_version = [python, "-c", "import torch; print(torch.__version__, torch.__file__)"]
    before = subprocess.run(torch_version, check=True, capture_output=True, text=True).stdout
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= PINNED | {"RFS_SOURCE": str(wheel), "MPLCONFIGDIR": str(fonts)}
    compare = "--nbval-lax" if path in PRACTICE else "--nbval"
    options = [compare, "--nbval-current-env", "--nbval-cell-timeout=900", "-p", "no:cacheprovider", "-q"]
    command = [python, "-m", "pytest", *options, path.name]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert subprocess.run(torch_version, check=True, capture_output=True, text=True).stdout == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "a notebook leaves nothing beside itself"
