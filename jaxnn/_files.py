"""Files that others rely on: replaced whole or not at all, and directories that one run holds."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jaxnn._validate import describe


def as_path(name: str, value: Any) -> Path:
    """A path, out of a string or a path; anything else is refused."""
    try:
        path = Path(value)
    except TypeError:
        raise TypeError(f"`{name}` must be a path. Got {describe(value)}.") from None
    if "\0" in str(path):
        raise ValueError(f"`{name}` must be a path. Got {value!r}.")
    return path


def made_directory(name: str, value: Any) -> Path:
    """A directory, made if it is not there."""
    path = as_path(name, value)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            f"`{name}` must be a directory, or a place for one. Got {str(path)!r}: "
            f"{error.strerror}."
        ) from None
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `path` when complete, and leaves no trace when not.

    Both the file and its directory are synced, so that a reader after a crash finds the old file or
    the new one.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# The directories that runs of this process hold: the system's locks are between processes.
_held: set[tuple[int, int]] = set()


@contextlib.contextmanager
def locked(name: str, directory: str | os.PathLike) -> Iterator[Path]:
    """Hold a directory for this run alone; the system lets go of it when the process ends, whatever
    its children do.

    Raises:
      BlockingIOError: another run holds it.
    """
    import fcntl  # POSIX; imported here so that the rest works without it

    folder = made_directory(name, directory)
    with (folder / ".lock").open("a+") as file:
        stat = os.fstat(file.fileno())
        place, owner = (stat.st_dev, stat.st_ino), f"process {os.getpid()} on {os.uname().nodename}"
        try:
            if place in _held:
                raise BlockingIOError
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise BlockingIOError(
                f"`{name}` must be a directory of one run. Got {str(folder)!r}, in use by "
                f"{file.read().strip() or 'another'}."
            ) from None
        _held.add(place)
        try:
            file.truncate(0)
            file.write(owner)
            file.flush()
            yield folder
        finally:
            _held.discard(place)


def is_alive(number: str) -> bool:
    """Whether a process of this machine, by its number, is there."""
    try:
        os.kill(int(number), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except OSError:
        pass  # somebody else's
    return True
