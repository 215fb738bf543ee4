"""Folders that are replaced as a whole: at every moment the old one or the new one stands at its place."""

import ctypes
import fnmatch
import glob
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # on Windows
    fcntl = None  # type: ignore[assignment]  # a module's name has no other type

UNFINISHED = ".unfinished"  # the end of the names of folders that are being filled


@contextmanager
def new_folder(directory: str | Path, own: Collection[str] = ()) -> Iterator[Path]:
    """A temporary folder to be filled, which then takes the place of `directory`, or is removed after an error.

    What an older `directory` holds goes with it only where its name, or its path below the folder, is of one of the
    patterns `own`, or is written anew. Everything else is kept, as links to the same files where the file system can.
    Raises OSError when it cannot be written; the older folder then is as it was.
    """
    directory = Path(os.path.realpath(directory))
    directory.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(directory)
    temporary = Path(tempfile.mkdtemp(UNFINISHED, f".{directory.name}-", directory.parent))
    lock = locked(temporary)
    try:
        yield temporary
        replace_folder(temporary, directory, own)
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(temporary, ignore_errors=True)


def remove_abandoned(directory: Path) -> None:
    """Remove what earlier processes that were killed have left of `new_folder`: nobody holds a lock on it any more."""
    for folder in directory.parent.glob(f".{glob.escape(directory.name)}-*{UNFINISHED}"):
        if time.time() - folder.stat().st_mtime > 60:  # a new one has no lock yet
            lock = locked(folder)
            if lock is not None:
                os.close(lock)
                shutil.rmtree(folder, ignore_errors=True)


def locked(folder: Path) -> int | None:
    """A lock on a folder, to be closed; it goes with its process. None where another one has it, or there are none."""
    if fcntl is None:
        return None
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


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
