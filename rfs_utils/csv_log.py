"""Rows appended to a CSV file, so that every line has as many cells as the header."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .files import replace_file


def append_rows(path: str | Path, rows: Sequence[Mapping[str, str]], key: str = "step") -> None:
    """Append rows, all with the same columns, to a CSV file, which gets a header when it is new or empty.

    Where their columns are not the file's, it gets those that it lacks, empty in the lines before. ValueError when the
    file is something else: without the column `key`, or with a line of more or fewer cells than its header.
    """
    path, columns = Path(path), list(rows[0])
    header, ends_well = _read_ends(path)
    if header == columns and ends_well:
        with path.open("a", newline="", encoding="utf-8") as file:
            file.write(_format(row.values() for row in rows))
        return
    header, lines = read_rows(path, key)
    names = list(dict.fromkeys([*header, *columns]))
    lines = [line + [""] * (len(names) - len(line)) for line in lines]
    lines += [[row.get(name, "") for name in names] for row in rows]
    replace_file(path, _format([names, *lines]).encode())


def read_rows(path: str | Path, key: str = "step") -> tuple[list[str], list[list[str]]]:
    """Header and lines of a CSV file, both empty where there is none; ValueError when it is something else."""
    path = Path(path)
    if not path.exists() or path.stat().st_size == 0:
        return [], []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = [line for line in csv.reader(file) if line] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if key not in header or len(set(header)) < len(header):
        raise ValueError(f"{path} is something else than a log; expected a header that has {key}, and each name once")
    for number, line in enumerate(lines, 2):
        if len(line) != len(header):
            raise ValueError(f"{path}, line {number}: expected {len(header)} cells, found {len(line)}")
    return header, lines


def _read_ends(path: Path) -> tuple[list[str], bool]:
    """The header as it stands, and whether the last line is whole."""
    if not path.is_file() or path.stat().st_size == 0:
        return [], False
    with path.open("rb") as file:
        header = file.readline(2**20).decode("utf-8", errors="replace")
        file.seek(-1, io.SEEK_END)
        return next(csv.reader([header]), []), file.read() == b"\n"


def _format(lines: Iterable[Iterable[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
