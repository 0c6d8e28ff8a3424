"""Files that are replaced atomically, and directories that one run at a time may lock."""

import contextlib
import errno
import json
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jaxnn._validate import describe

# Errors from file systems, often on networks, that cannot lock files or sync directories.
_CANNOT = frozenset([errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP])


def as_path(name: str, value: Any) -> Path:
    """Convert a string or path to a `Path`; refuse anything else."""
    try:
        path = Path(value)
    except TypeError:
        raise TypeError(f"`{name}` must be a path. Got {describe(value)}.") from None
    if "\0" in str(path):
        raise ValueError(f"`{name}` must be a path. Got {value!r}.")
    return path


def without_nan(value: Any) -> Any:
    """A value for JSON, which has no NaN: non-finite numbers become None, and arrays lists."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, dict):
        return {name: without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(name: str, value: Any) -> str:
    """A value as JSON; refuse what JSON does not represent."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"`{name}` must be JSON-compatible. Got something else: {error}.") from None


def made_directory(name: str, value: Any) -> Path:
    """A directory, created if it does not exist."""
    path = as_path(name, value)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            f"`{name}` must be a usable directory. Got {str(path)!r}: {error.strerror}."
        ) from None
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a new file that replaces `path` once complete, and is deleted on failure.

    Both the file and, if possible, its directory are synced, so after a crash a reader finds either
    the old file or the new one.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.unlink(missing_ok=True)  # of an earlier process with this number
    try:
        with beside.open("xb") as file:
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
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    finally:
        os.close(folder)


# Directories locked by runs of this process; the system's locks only work between processes.
_held: set[tuple[int, int]] = set()


@contextlib.contextmanager
def locked(name: str, directory: str | os.PathLike) -> Iterator[Path]:
    """Lock a directory for this run. The system releases the lock when the process ends, even if
    its children live on.

    Raises:
      BlockingIOError: another run has locked it.

    Warns:
      RuntimeWarning: the file system has no locks.
    """
    import fcntl  # POSIX only; imported here so that the rest works without it

    folder = made_directory(name, directory)
    # The file is ours alone: its name is nobody else's, and a link is not followed.
    lock = os.open(folder / ".jaxnn.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with os.fdopen(lock, "r+") as file:
        stat = os.fstat(file.fileno())
        place, owner = (stat.st_dev, stat.st_ino), f"process {os.getpid()} on {os.uname().nodename}"
        try:
            if place in _held:
                raise BlockingIOError
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise BlockingIOError(
                f"`{name}` must be used by one run at a time. Got {str(folder)!r}, in use by "
                f"{file.read().strip() or 'another run'}."
            ) from None
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            warnings.warn(
                f"`{name}` {str(folder)!r} is on a file system without locks: a second run in "
                "this directory would not be detected",
                RuntimeWarning,
                stacklevel=2,
            )
        _held.add(place)
        try:
            file.truncate(0)
            file.write(owner)
            file.flush()
            yield folder
        finally:
            _held.discard(place)


def is_alive(number: str) -> bool:
    """Whether a process with this number exists on this machine."""
    try:
        os.kill(int(number), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except OSError:
        pass  # another user's process
    return True
