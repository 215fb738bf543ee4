"""Say where on GitHub the project lives: `python tools/address.py [OWNER/NAME]`, by default as git's remote says.

It is written to pyproject.toml, CITATION.cff, README.md, and every notebook's badge and setup cell.
"""

import re
import subprocess
import sys
from pathlib import Path

from notebooks import FOLDERS, ROOT, clean

ADDRESS = r"[A-Za-z0-9][\w.-]*/[\w.-]*[A-Za-z0-9_]"


def known_address(root: Path = ROOT) -> str:
    """OWNER/NAME as pyproject.toml has it."""
    found = re.search(rf'^Repository = "https://github\.com/({ADDRESS})"$', (root / "pyproject.toml").read_text(), re.M)
    if found is None:
        raise ValueError(f'{root / "pyproject.toml"} has no line Repository = "https://github.com/OWNER/NAME"')
    return found[1]


def remote_address(root: Path = ROOT) -> str | None:
    """OWNER/NAME of git's remote `origin`; None where there is none, or it is not on GitHub."""
    ask = ["git", "-C", str(root), "remote", "get-url", "origin"]
    url = subprocess.run(ask, capture_output=True, text=True).stdout.strip().removesuffix(".git")
    found = re.search(rf"github\.com[:/]({ADDRESS})$", url)
    return found and found[1]


def places(root: Path = ROOT) -> list[Path]:
    """The files that have the address."""
    notebooks = [path for folder in FOLDERS for path in sorted((root / folder).glob("*.ipynb"))]
    return [root / "pyproject.toml", root / "CITATION.cff", root / "README.md", *notebooks]


def set_address(address: str, root: Path = ROOT) -> list[Path]:
    """Put another address in place of the known one; returns the files that were changed."""
    if not re.fullmatch(ADDRESS, address):
        raise ValueError(f"an address is OWNER/NAME, as in https://github.com/OWNER/NAME; got {address!r}")
    old, changed = known_address(root), []
    pattern = re.compile(rf"(github(?:\.com)?/){re.escape(old)}(?![\w-])")
    for path in reversed(places(root)):  # pyproject.toml last: until then it says what there is to replace
        before = path.read_text(encoding="utf-8")
        text = pattern.sub(rf"\g<1>{address}", before)
        if text != before:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
            if path.suffix == ".ipynb":
                clean(path)  # ids of cells follow their texts
    return changed


def main() -> int:
    address = sys.argv[1] if len(sys.argv) == 2 else remote_address()
    if len(sys.argv) > 2 or address is None:
        print(__doc__ if len(sys.argv) > 2 else "git has no remote on GitHub; say OWNER/NAME", file=sys.stderr)
        return 2
    try:
        changed = set_address(address)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{address}: {len(changed)} files changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
