"""Checkpoints: the state of a run on disk, written so that a kill at any moment leaves a complete
one behind.

A checkpoint is a ZIP of NumPy arrays (`numpy.load` opens it) with a JSON header that names every
array, its dtype and its shape. It is written to a temporary file and then renamed, with both file
and directory synced, so a reader sees either the old or the new one, never a partial one. Reading
trusts nothing: it uses no pickle, runs no code, allocates no more memory than the file has bytes,
and verifies a checksum over every byte.
"""

import contextlib
import errno
import io
import json
import math
import operator
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path
from jaxtyping import PyTree

from jaxnn._files import as_json, as_path, is_alive, made_directory, replacing
from jaxnn._notebook import paragraph
from jaxnn._validate import as_array, describe, is_key, require_arrays, require_count

_FORMAT, _VERSION = "jaxnn checkpoint", 2
_NAME = re.compile(r"step_(\d{12})\.npz")


class Checkpoint(NamedTuple):
    """The contents of a checkpoint file.

    Attributes:
      step: number of steps taken.
      leaves: for each part of the state, its arrays by path, for instance
        `leaves["params"]["['W1']"]`.
      records: arrays of any length, by name, for instance a history.
      info: further information, as JSON.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     path = save_checkpoint(directory, 7, {"params": {"w": jnp.ones(2)}}, info={"lr": 0.1})
      ...     found = load_checkpoint(directory)
      >>> found.step, found.info, list(found.leaves["params"])
      (7, {'lr': 0.1}, ["['w']"])
    """

    step: int
    leaves: dict[str, dict[str, Any]]
    records: dict[str, np.ndarray]
    info: dict[str, Any]

    def __repr__(self) -> str:
        names = ", ".join([*self.leaves, *self.records, *self.info])
        return f"<Checkpoint: step {self.step}; {names}>"

    _repr_html_ = paragraph

    def restore(self, part: str, like: PyTree) -> PyTree:
        """One part of the state, in the structure of `like`; shapes and dtypes must match.

        Raises:
          ValueError: the part does not exist, or a leaf is missing, unexpected, or of another shape
            or dtype; the message names it.
        """
        if not isinstance(part, str) or part not in self.leaves:
            raise ValueError(
                f"`part` must be one of {sorted(self.leaves)}, which the checkpoint holds. Got "
                f"{part!r}."
            )
        stored, paths = self.leaves[part], tree_flatten_with_path(like)[0]
        wanted = {keystr(path): leaf for path, leaf in paths}
        for path in [*wanted, *stored]:
            there, asked = stored.get(path), wanted.get(path)
            if (
                there is None
                or asked is None
                or (there.shape, there.dtype) != (np.shape(asked), _dtype(asked))
            ):
                has = "nothing" if there is None else describe(there)
                got = "nothing" if asked is None else describe(asked)
                raise ValueError(
                    f"`{part}{path}` must be as in the checkpoint, which holds {has}. Got {got}."
                )
        return jax.tree.unflatten(jax.tree.structure(like), [stored[path] for path in wanted])


def save_checkpoint(
    directory: str | os.PathLike,
    step: int,
    state: Mapping[str, PyTree],
    *,
    records: Mapping[str, np.ndarray] | None = None,
    info: Mapping[str, Any] | None = None,
    keep: int = 3,
) -> Path:
    """Write a checkpoint atomically, and delete all but the newest `keep`.

    Args:
      directory: where it goes; created if it does not exist.
      step: names the file; an existing checkpoint of the same step is replaced.
      state: the parts of the state by name, each a pytree of arrays of any dtype, including typed
        PRNG keys.
      records: further arrays by name; a reader need not know their lengths.
      info: anything that JSON can represent.
      keep: number of newest checkpoints to keep.

    Returns:
      The path of the file.

    Raises:
      OSError: the directory cannot be written, or the disk is full; existing checkpoints stay as
        they are.
      TypeError: a leaf of `state` is not an array.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     path = save_checkpoint(directory, 7, {"params": {"w": jnp.ones(2)}})
      ...     load_checkpoint(directory).restore("params", {"w": jnp.zeros(2)})
      {'w': array([1., 1.], dtype=float32)}
    """
    require_count("step", step, most=10**12 - 1)  # twelve digits in the name
    require_count("keep", keep, least=1)
    records, info = ({} if given is None else given for given in (records, info))
    for name, given in (("state", state), ("records", records), ("info", info)):
        if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
            raise TypeError(
                f"`{name}` must be a dictionary with strings for its keys. Got {describe(given)}."
            )
    step, folder = operator.index(step), as_path("directory", directory)
    header: dict[str, Any] = {
        "format": _FORMAT,
        "version": _VERSION,
        "step": step,
        "info": dict(info),
        "parts": list(state),
        "leaves": [],
        "records": [],
    }
    arrays = []
    for part, tree in state.items():
        require_arrays(part, tree)
        for path, leaf in tree_flatten_with_path(tree)[0]:
            array, key = _plain(leaf)
            header["leaves"].append(
                {"part": part, "path": keystr(path), "dtype": str(array.dtype), "key": key}
            )
            arrays.append(array)
    for name, given in records.items():
        array = as_array(f"records[{name!r}]", given, np.asarray)
        header["records"].append({"name": name, "dtype": str(array.dtype)})
        arrays.append(array)
    head = as_json("info", header)
    made_directory("directory", folder)
    with (
        replacing(folder / f"step_{step:012d}.npz") as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):
        archive.writestr("header.json", head)
        for number, array in enumerate(arrays):
            buffer = io.BytesIO()
            # NumPy's format lacks some dtypes (bfloat16, float8), so those are written as unsigned
            # integers with the same bits.
            known = array.dtype.isbuiltin == 1
            np.lib.format.write_array(
                buffer,
                array if known else array.view(f"u{array.dtype.itemsize}"),
                allow_pickle=False,
            )
            archive.writestr(f"{number}.npy", buffer.getvalue())
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    delete_leftovers(folder)
    return folder / f"step_{step:012d}.npz"


def load_checkpoint(source: str | os.PathLike, *, previous: bool = False) -> Checkpoint:
    """Read a checkpoint.

    Args:
      source: a file, or a directory, whose newest checkpoint is read.
      previous: if the newest in the directory is damaged, read the newest intact one.

    Returns:
      A `Checkpoint`.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the file is truncated, modified, renamed to another step, or not a checkpoint; the
        message says which, and gives the path.

    Example:
      >>> load_checkpoint("nowhere")
      Traceback (most recent call last):
        ...
      FileNotFoundError: `source` must be a checkpoint or a directory of them. Got 'nowhere'.
    """
    path = as_path("source", source)
    if path.is_dir():
        paths = checkpoints(path)[::-1]
        if not paths:
            raise FileNotFoundError(
                f"`source` must hold a checkpoint. Got {str(path)!r}, which has none."
            )
    elif path.is_file():
        paths = [path]
    else:
        raise FileNotFoundError(
            f"`source` must be a checkpoint or a directory of them. Got {str(path)!r}."
        )
    for path in paths[: -1 if previous else 0]:
        with contextlib.suppress(ValueError):
            return _read(path)
    return _read(paths[-1 if previous else 0])


def checkpoints(directory: str | os.PathLike) -> list[Path]:
    """The checkpoints in a directory, oldest first."""
    there = Path(directory).glob("step_*.npz")
    return sorted(path for path in there if _NAME.fullmatch(path.name) and path.is_file())


def delete_leftovers(folder: Path) -> None:
    """Delete partial files of processes that no longer exist."""
    for left in folder.glob(".step_*.tmp"):
        if not is_alive(left.name.split(".")[-2]):
            left.unlink(missing_ok=True)


def _plain(leaf: Any) -> tuple[np.ndarray, str | None]:
    """A leaf as a NumPy array and, for a typed key, the name of its generator."""
    if is_key(leaf):
        return np.asarray(jax.random.key_data(leaf)), str(jax.random.key_impl(leaf))
    return np.asarray(leaf), None


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


class _UnreadableError(Exception):
    """Describes the defect of a file that should be a checkpoint."""


def _read(path: Path) -> Checkpoint:
    named = _NAME.fullmatch(path.name)
    try:
        with path.open("rb") as file:
            found = _parsed(file)
        if named and int(named[1]) != found.step:
            raise _UnreadableError(f"a file renamed from step {found.step}")
        return found
    except _UnreadableError as error:
        what = str(error)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        # A changed file can make the reader seek below 0; other errors are those of the disk.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        what = f"a truncated or modified file: {error}"
    except ValueError as error:
        what = f"one with arrays or a header that cannot be read: {error}"
    except (KeyError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        what = f"one with an invalid header: {type(error).__name__} {error}"
    raise ValueError(f"{path}: must be an intact checkpoint. Got {what}.")


def _parsed(file: BinaryIO) -> Checkpoint:
    """The contents of a checkpoint, read one array at a time."""
    if file.read(4) != b"PK\x03\x04":  # the ZIP format allows other bytes before it
        raise _UnreadableError("a file that is empty or not a ZIP file")
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        # Members must be uncompressed and fit in the file, so they cannot exhaust the memory.
        members = archive.infolist()
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > size:
            raise _UnreadableError("a ZIP with compressed members")
        header = _header(archive)
        entries = [*header["leaves"], *header["records"]]
        arrays = [
            _typed(_array(archive.read(f"{n}.npy")), jnp.dtype(entry["dtype"]))
            for n, entry in enumerate(entries)
        ]
    leaves: dict[str, dict[str, Any]] = {str(part): {} for part in header["parts"]}
    count = len(header["leaves"])
    for entry, array in zip(header["leaves"], arrays[:count], strict=True):
        key = entry["key"]
        leaf = jax.random.wrap_key_data(jnp.asarray(array), impl=key) if key else array
        leaves[entry["part"]][str(entry["path"])] = leaf
    names = [str(entry["name"]) for entry in header["records"]]
    records = dict(zip(names, arrays[count:], strict=True))
    return Checkpoint(header["step"], leaves, records, header["info"])


def _header(archive: zipfile.ZipFile) -> dict[str, Any]:
    header = json.loads(archive.read("header.json"))
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise _UnreadableError("a file of another kind")
    if header["version"] != _VERSION:
        version = f"version {header['version']!r} of the format"
        raise _UnreadableError(f"{version}, where this package reads version {_VERSION}")
    step, info = header["step"], header["info"]
    if type(step) is not int or step < 0 or not isinstance(info, dict):
        raise _UnreadableError("a header without step or info")
    return header


def _typed(array: np.ndarray, dtype: Any) -> np.ndarray:
    """An array in the dtype of its header; it may be stored as unsigned integers instead."""
    if array.dtype == dtype:
        return array
    if array.dtype != f"u{dtype.itemsize}":
        raise _UnreadableError(f"an array of {array.dtype} where its header says {dtype}")
    return array.view(dtype)


def _array(content: bytes) -> np.ndarray:
    """An array in NumPy's format, whose header must match the number of bytes."""
    buffer = io.BytesIO(content)
    if np.lib.format.read_magic(buffer) != (1, 0):  # the version that we write
        raise ValueError("an array in another version of NumPy's format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(buffer)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content) - buffer.tell():
        raise ValueError(f"an array of shape {shape} and dtype {dtype} in {len(content)} bytes")
    buffer.seek(0)
    return np.lib.format.read_array(buffer, allow_pickle=False)
