"""Print the oldest versions that pyproject.toml allows, as pins for pip; torch, which is large, is the caller's."""

import re
from pathlib import Path

LEFT_OUT = {"torch", "nbdev", "ruff", "mypy", "types-requests", "types-tqdm"}  # of the tools, tests need none of these


def pins(text: str) -> list[str]:
    """`name==lowest` of the dependencies and of what the tests need, from the text of a pyproject.toml."""
    lists = re.findall(r"^(?:dependencies|dev) = \[(.*?)^\]", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r'"([\w-]+)>=([\w.]+)', "".join(lists))
    return [f"{name}=={version}" for name, version in found if name not in LEFT_OUT and name != "tomli"]


if __name__ == "__main__":
    print(*pins((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")))
