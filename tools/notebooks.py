"""Notebook chores: `python tools/notebooks.py export|run|clean|practice [NOTEBOOK ...]`.

export    write the modules of `#| export` cells into rfs_utils
clean     normalise metadata and cell ids, so that differences show only what was changed
run       execute from top to bottom in place, then clean
practice  write NAME_practice.ipynb beside a notebook of exercises: the same without the solutions
Without names, all notebooks of the book.
"""

import ast
import hashlib
import os
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("ch06", "ch07", "exercises")
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def all_notebooks() -> list[Path]:
    """Every notebook of the book, in reading order; those for practice are made from them."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.ipynb"))]
    return [path for path in paths if not path.stem.endswith("_practice")]


def export(path: Path, lib_path: Path = ROOT / "rfs_utils") -> Path | None:
    """Write a notebook's exported cells to its module below `lib_path`; None when it exports nothing."""
    from nbdev.export import nb_export

    source = "\n".join(cell.source for cell in nbformat.read(path, 4).cells)
    name = re.search(r"^#\| default_exp ([\w.]+)$", source, flags=re.MULTILINE)
    if not name:
        return None
    nb_export(path, lib_path=lib_path)
    return lib_path / f"{name[1].replace('.', '/')}.py"


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
    # What is stored must not tell of other processes on the author's machine, as rfs_utils/threads.py would.
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(path.parent)}}).execute()
    nbformat.write(notebook, path)
    clean(path)


def practice_path(path: Path) -> Path:
    """Where the practice notebook of a notebook stands."""
    return path.with_name(f"{path.stem}_practice.ipynb")


def has_solutions(path: Path) -> bool:
    """Whether a notebook holds exercises with solutions."""
    return any("solution" in cell.metadata.get("tags", []) for cell in nbformat.read(path, 4).cells)


def practice(path: Path, out: Path | None = None) -> Path | None:
    """Write the notebook without solutions and outputs, to `out` or its usual place; None when it has no solutions."""
    if not has_solutions(path):
        return None
    out = out or practice_path(path)
    notebook = nbformat.read(path, 4)
    notebook.cells[0].source = practice_head(notebook.cells[0].source, path.stem)
    for cell in notebook.cells[1:]:
        # The module is exported from the notebook with the solutions alone.
        lines = [line for line in cell.source.splitlines() if not line.startswith("#|")]
        cell.source = "\n".join(lines) if cell.cell_type == "code" else cell.source
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "solution" in cell.metadata.get("tags", []):
            cell.source = without_body(cell.source)
    notebook.cells = [cell for cell in notebook.cells if cell.source.strip()]
    nbformat.write(notebook, out)
    clean(out)
    return out


def practice_head(head: str, stem: str) -> str:
    """The first cell, with a title and a note of its own; its badge opens the practice notebook as it is."""
    title, rest = head.split("\n", 1)
    rest = "\n".join(line for line in rest.splitlines() if f"({stem}_practice.ipynb)" not in line)  # it points here
    note = (
        f"The functions are yours to write; [{stem}.ipynb]({stem}.ipynb) has them, with all results. No results are "
        "stored here: run the notebook from the top. Until you have written a function, its check says so, and the "
        "book's own takes its place, so that everything after it runs."
    )
    rest = rest.rstrip("\n")
    return f"{title}: practice\n{rest}\n\n{note}"


def without_body(source: str) -> str:
    """The one function of a cell with signature and docstring, and a body that says whose turn it is."""
    (function,) = ast.parse(source).body  # exactly one statement
    docstring = function.body[0]
    kept = source.splitlines()[: docstring.end_lineno]
    yours = ("    # Your turn: put the function in place of this line and the next.", "    raise NotImplementedError")
    return "\n".join([*kept, *yours])


def main() -> int:
    chores = {"export": export, "clean": clean, "run": run, "practice": practice}
    if len(sys.argv) < 2 or sys.argv[1] not in chores:
        print(__doc__)
        return 2
    for path in [Path(name).resolve() for name in sys.argv[2:]] or all_notebooks():
        if sys.argv[1] == "practice" and not has_solutions(path):
            continue
        chores[sys.argv[1]](path)
        print(f"{sys.argv[1]}: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
