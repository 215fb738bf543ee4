"""Folders that are replaced as a whole: at every moment the old one or the new one stands at its place."""

import ctypes
import fnmatch
import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(directory: str | Path, own: Collection[str] = ()) -> Iterator[Path]:
    """A temporary folder to be filled, which then takes the place of `directory`, or is removed after an error.

    What an older `directory` holds goes with it only where its name, or its path below the folder, is of one of the
    patterns `own`, or is written anew. Everything else is kept, as links to the same files where the file system can.
    Raises OSError when it cannot be written; the older folder then is as it was.
    """
    directory = Path(os.path.realpath(directory))
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield temporary
        replace_folder(temporary, directory, own)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(temporary: Path, directory: Path, own: Collection[str] = ()) -> None:
    """Put a finished folder where another one may be; `own` as in `new_folder`. An older folder is gone afterwards."""
    sync_folder(temporary)
    restore(directory)
    exists = directory.is_dir()
    if exists:
        keep_others(directory, temporary, own)
    temporary.chmod(directory.stat().st_mode & 0o7777 if exists else 0o755)
    if not exists:
        os.replace(temporary, directory)
    elif not exchange(temporary, directory):  # then there is a moment with neither of them, which `restore` knows
        os.replace(directory, aside(directory))
        os.replace(temporary, directory)
    sync(directory.parent)
    shutil.rmtree(temporary, ignore_errors=True)  # where an exchange has put the older one
    shutil.rmtree(aside(directory), ignore_errors=True)


def aside(directory: Path) -> Path:
    """Where the older folder waits, on systems where two folders cannot change places in one operation."""
    return directory.with_name(f".{directory.name}.replaced")


def standing(directory: Path) -> Path:
    """The folder, or the older one of its name where its replacement was interrupted between two renames."""
    waiting = aside(Path(os.path.realpath(directory)))
    return waiting if not directory.exists() and waiting.is_dir() else directory


def restore(directory: Path) -> None:
    """Put an older folder back whose replacement was interrupted between two renames, or remove what is left of it."""
    waiting = aside(directory)
    if not waiting.is_dir():
        return
    if directory.exists():
        shutil.rmtree(waiting)
    else:
        os.replace(waiting, directory)


def exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one operation; False where the system or the file system cannot."""
    here = -100  # AT_FDCWD: paths are relative to the current folder
    name, arguments = {
        "linux": ("renameat2", (here, os.fsencode(one), here, os.fsencode(other), 2)),  # 2 is RENAME_EXCHANGE
        "darwin": ("renamex_np", (os.fsencode(one), os.fsencode(other), 2)),  # 2 is RENAME_SWAP
    }.get(sys.platform, ("", ()))
    call = getattr(ctypes.CDLL(None), name, None) if name else None
    return call is not None and call(*arguments) == 0


def is_own(path: str, own: Collection[str]) -> bool:
    """Whether a path below a folder, with "/" between its parts, is of one of the patterns."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in own)


def others(directory: Path, own: Collection[str]) -> list[str]:
    """What a folder holds besides its `own` files: paths below it of files, links and empty folders, in order."""
    found = []
    for folder, folders, files in os.walk(directory):
        place = Path(folder).relative_to(directory)
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        found += [(place / name).as_posix() for name in [*files, *links]]
        if not files and not folders and folder != str(directory):
            found.append(place.as_posix())
    return sorted(path for path in found if not is_own(path, own))


def keep_others(source: Path, target: Path, own: Collection[str]) -> None:
    """Give a new folder all that an older one holds besides its `own` files, unless it has it already."""
    for path in others(source, own):
        old, new = source / path, target / path
        if os.path.lexists(new):
            continue
        new.parent.mkdir(parents=True, exist_ok=True)
        if old.is_symlink():
            new.symlink_to(os.readlink(old), target_is_directory=old.is_dir())
        elif old.is_dir():
            new.mkdir()
        else:
            link_or_copy(old, new)


def link_or_copy(old: Path, new: Path) -> None:
    """Give a file a second name, or copy it where the file system has no such links."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copy2(old, new)


def sync_folder(directory: Path) -> None:
    """Wait until everything in a folder is on the disk."""
    for folder, _, files in os.walk(directory):
        for name in files:
            path = Path(folder) / name
            if path.is_file():
                sync(path)
        sync(Path(folder))


def sync(path: Path) -> None:
    """Wait until a file or directory is on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems cannot
        pass
    finally:
        os.close(handle)
