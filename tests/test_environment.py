"""The dependency lists agree with each other and with what the book promises."""

import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = pytest.importorskip("tomli", reason="Python 3.10 has no tomllib")

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements: list[str]) -> dict[str, Requirement]:
    return {Requirement(line).name.replace("-", "_"): Requirement(line) for line in requirements}


def test_conda_and_pip_install_the_same():
    text = (ROOT / "environment.yml").read_text()
    listed = re.findall(r"^      - ([a-z_]\S+)$", text, flags=re.MULTILINE)
    assert sorted(listed) == sorted(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["lab"])
    assert f"python{PROJECT['requires-python']}" in text


def test_the_cpu_build_of_torch_is_one_uncommented_line_away():
    text = (ROOT / "environment.yml").read_text()
    option = "--extra-index-url https://download.pytorch.org/whl/cpu"
    pip = yaml.safe_load(text.replace(f"# - {option}", f"- {option}"))["dependencies"][-1]["pip"]
    assert pip == [option, *yaml.safe_load(text)["dependencies"][-1]["pip"]]


def test_pins_lie_within_the_ranges():
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    pinned = names([line for line in lines if line])
    extras = PROJECT["optional-dependencies"]
    ranges = names(PROJECT["dependencies"] + extras["lab"] + extras["dev"] + extras["book"])
    assert pinned.keys() == ranges.keys()
    for name, pin in pinned.items():
        (exact,) = pin.specifier
        assert exact.operator == "==" and exact.version in ranges[name].specifier, name


def test_shipped_models_are_small():
    for name in ("tiny-base", "tiny-reasoning"):
        files = [p for p in (ROOT / "rfs_utils" / "weights" / name).iterdir() if p.is_file()]
        assert {p.name for p in files} >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
        assert sum(p.stat().st_size for p in files) <= 5_000_000
