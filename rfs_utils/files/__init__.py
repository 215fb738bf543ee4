"""Files written whole or not at all, JSON read with a check of every field, CSV logs in which no line is ragged."""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .kinds import Kind

# ------------------------------------------------------------------ writing


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that the final name never stands for half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: bytes) -> None:
    """`replace_file`, with one sentence as a ValueError when the file cannot be written."""
    try:
        replace_file(Path(path), content)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    replace_file(path, text.encode())


def write_json(path: Path, content: dict | list) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


# ------------------------------------------------------------------ reading


def parse_json(text: str | bytes, line: int = 1) -> Any:
    """The value of a JSON text that begins at a line of its file; ValueError, naming the line, when it has none.

    Text that is nested too deep to be read, and numbers too long for Python, are no valid JSON either.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {line + error.lineno - 1}: not valid JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError(f"line {line}: not valid JSON (nested too deep)") from None
    except ValueError as error:  # no UTF-8, or a number of thousands of digits
        raise ValueError(f"line {line}: not valid JSON ({str(error).partition(';')[0]})") from None


def read_object(path: str | Path) -> dict:
    """The object in a JSON file; ValueError, naming the file, when it is missing, damaged or something else."""
    try:
        content = parse_json(Path(path).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return content


def check_fields(content: Mapping, kinds: Mapping[str, Kind], where: str | Path) -> None:
    """ValueError, saying where, for the first field that is missing or not of its kind."""
    for name, kind in kinds.items():
        if name not in content:
            raise ValueError(f"{where} is damaged: it lacks {name}, {kind.text}")
        try:
            kind.check(name, content[name])
        except ValueError as error:
            raise ValueError(f"{where} is damaged: {error}") from None


def read_fields(path: str | Path, kinds: Mapping[str, Kind]) -> dict:
    """`read_object`, with each of these fields there and of its kind."""
    content = read_object(path)
    check_fields(content, kinds, path)
    return content


# ------------------------------------------------------------------ CSV logs


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
