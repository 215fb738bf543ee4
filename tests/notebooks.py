"""Notebook chores: `python tests/notebooks.py export|run|clean [NOTEBOOK ...]`.

export  write the modules of `#| export` cells into rfs_utils
clean   normalise metadata and cell ids, so that differences show only what was changed
run     execute from top to bottom in place, then clean
Without names, all notebooks of the book.
"""

import hashlib
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("ch06", "ch07", "exercises")
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def all_notebooks() -> list[Path]:
    """Every notebook of the book, in reading order."""
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.ipynb"))]


def export(path: Path, lib_path: Path = ROOT / "rfs_utils") -> Path | None:
    """Write a notebook's exported cells to its module below `lib_path`; None when it exports nothing."""
    from nbdev.export import nb_export

    source = "\n".join(cell.source for cell in nbformat.read(path, 4).cells)
    name = re.search(r"^#\| default_exp (\w+)$", source, flags=re.MULTILINE)
    if not name:
        return None
    nb_export(path, lib_path=lib_path)
    return lib_path / f"{name[1]}.py"


def clean(path: Path) -> None:
    """Keep tags, outputs and execution counts; drop what else the machine that ran it has left."""
    notebook = nbformat.read(path, 4)
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        digest = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        if cell.cell_type == "code":
            cell.outputs = join_streams(cell.outputs)
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def join_streams(outputs: list) -> list:
    """Outputs as a page shows them: neighbouring pieces of a stream put together, progress bars in their last state."""
    joined: list = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last and output.output_type == "stream" == last.output_type and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    for output in joined:
        if output.output_type == "stream":  # of a progress bar, only its last state
            output.text = re.sub(r"[^\n]*\r(?=[^\n])", "", output.text)
    return joined


def run(path: Path) -> None:
    """Execute a notebook in its own folder, in place."""
    from nbclient import NotebookClient

    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(path.parent)}}).execute()
    nbformat.write(notebook, path)
    clean(path)


def main() -> int:
    chores = {"export": export, "clean": clean, "run": run}
    if len(sys.argv) < 2 or sys.argv[1] not in chores:
        print(__doc__)
        return 2
    for path in [Path(name).resolve() for name in sys.argv[2:]] or all_notebooks():
        chores[sys.argv[1]](path)
        print(f"{sys.argv[1]}: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
