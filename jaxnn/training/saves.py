"""Saving and finding a run: in our own files, or by Orbax.

A checkpoint is complete in itself: the state that steps update, and the history so far. A thread
writes files one at a time, from a copy on the host.
"""

import contextlib
import os
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import assert_equal, process_allgather
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxnn._files import as_path, locked
from jaxnn._validate import is_key
from jaxnn.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from jaxnn.training.history import Log
from jaxnn.training.steps import is_sharded, replicate

# The version of a run's checkpoint contents; a run cannot resume from another version.
LAYOUT = 4
# Seconds between checkpoints if `every` is not set: the minimum at ends of epochs, and the maximum
# anywhere.
AT_EPOCHS, ANYWHERE = 10, 600
# Seconds before a checkpoint that the file system refused is written again.
PAUSES = 0.1, 1.0


class Saved(NamedTuple):
    """A run to be saved or restored.

    Attributes:
      state: of the run.
      best: the best state, if there is one.
      log: the host's record of the run.
      info: what else is saved.
    """

    state: Any
    best: Any
    log: Log
    info: dict[str, Any]

    @property
    def parts(self) -> dict[str, PyTree]:
        """The parts of a checkpoint by name."""
        states = {"": self.state} | ({} if self.best is None else {"best_": self.best})
        return {
            f"{prefix}{name}": part
            for prefix, state in states.items()
            for name, part in state._asdict().items()
            if part is not None
        }


class Files:
    """Checkpoints in a directory."""

    def __init__(self, directory: str | os.PathLike, keep: int):
        self.directory, self.keep = as_path("checkpoint", directory), keep
        self.thread: threading.Thread | None = None
        self.failure: BaseException | None = None

    def held(self) -> contextlib.AbstractContextManager:
        """Lock the directory against other runs."""
        first = jax.process_index() == 0
        return locked("checkpoint", self.directory) if first else contextlib.nullcontext()

    def found(
        self, resume: bool | str, identity: dict[str, Any], like: Any, mesh: Mesh | None
    ) -> Saved | None:
        """The checkpoint to resume from, if there is one; it must be of the run `identity`."""
        there = checkpoints(self.directory)
        if there and not resume:
            _refuse(self.directory, there[-1].name)
        found = load_checkpoint(self.directory, previous=resume == "previous") if there else None
        _require_one_directory(-1 if found is None else found.step)
        if found is None:
            return None
        _require_run(self.directory, found.info, identity)

        def state(prefix):
            placed = {}
            for name, part in like._asdict().items():
                if part is not None:
                    placed[name] = _as(found.restore(f"{prefix}{name}", part), part, mesh)
                    del found.leaves[f"{prefix}{name}"]  # frees the host's copy
            return like._replace(**placed)

        best = state("best_") if f"best_{like._fields[0]}" in found.leaves else None
        return Saved(state(""), best, Log.of(found.step, found.records), found.info)

    def save(self, run: Saved, last: bool) -> None:
        """Write a checkpoint in the background, after waiting for the previous one."""
        self.wait()
        if jax.process_index() != 0:
            return
        records, step = run.log.records_to_save, run.log.step

        def write():
            keep = {"info": run.info, "keep": self.keep}
            for pause in (*PAUSES, None):
                try:
                    save_checkpoint(self.directory, step, run.parts, records=records, **keep)
                    self.failure = None
                    return
                except BaseException as error:
                    self.failure = error
                    if pause is None or not isinstance(error, OSError):
                        return
                    time.sleep(pause)

        self.thread = threading.Thread(target=write, name="jaxnn checkpoint")
        self.thread.start()

    def wait(self) -> None:
        """Wait until pending writes are complete; raise the exception of a failed one. An OSError
        becomes a warning, as the next write may succeed.
        """
        try:
            self.finish()
        except OSError as error:
            warnings.warn(f"a checkpoint was not written: {error}", RuntimeWarning, stacklevel=2)

    def finish(self) -> None:
        """Wait until pending writes are complete; raise the exception of a failed one."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure


class Manager:
    """Checkpoints by an `orbax.checkpoint.CheckpointManager`, which decides which of them to write
    and to keep; each device's arrays are saved as they are.
    """

    def __init__(self, manager: Any):
        self.manager = manager

    def held(self) -> contextlib.AbstractContextManager:
        """Lock nothing, as Orbax has its own rules."""
        return contextlib.nullcontext()

    def found(
        self, resume: bool | str, identity: dict[str, Any], like: Any, mesh: Mesh | None
    ) -> Saved | None:
        """The checkpoint to resume from, if there is one; it must be of the run `identity`."""
        import orbax.checkpoint as ocp  # pyright: ignore[reportMissingImports]

        if resume == "previous":
            raise ValueError("`resume` must be True with an Orbax manager. Got 'previous'.")
        step = self.manager.latest_step()
        if step is not None and not resume:
            _refuse(self.manager.directory, f"step {step}")
        _require_one_directory(-1 if step is None else step)
        if step is None:
            return None
        only_info = ocp.args.Composite(info=ocp.args.JsonRestore())
        info = self.manager.restore(step, args=only_info)["info"]
        _require_run(self.manager.directory, info, identity)
        best = {"best_": like} if info["best"] else {}
        wanted = Saved(like, best.get("best_"), Log(), info).parts
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        parts = self.manager.restore(step, args=args)["state"]

        def state(prefix):
            names = [name for name in like._fields if f"{prefix}{name}" in parts]
            return like._replace(**{name: parts[f"{prefix}{name}"] for name in names})

        records = {name: np.array(values, kind) for name, kind, values in info["records"]}
        return Saved(state(""), state("best_") if best else None, Log.of(step, records), info)

    def save(self, run: Saved, last: bool) -> None:
        """Offer a checkpoint to the manager, with what was measured last; the last one is written
        in any case.
        """
        import orbax.checkpoint as ocp  # pyright: ignore[reportMissingImports]

        records = run.log.records_to_save.items()
        info = {**run.info, "best": run.best is not None}
        info["records"] = [[name, str(x.dtype), x.tolist()] for name, x in records]
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(run.parts), info=ocp.args.JsonSave(info)
        )
        measured = {name: values[-1] for name, values in run.log.records.items()}
        numbers = {name: float(x) for name, x in measured.items() if np.ndim(x) == 0}
        self.manager.save(run.log.step, args=args, metrics=numbers or None, force=last)

    def wait(self) -> None:
        """Wait until pending writes are complete."""
        self.manager.wait_until_finished()

    finish = wait


def as_place(checkpoint: Any, keep: int) -> Files | Manager:
    """The destination of checkpoints: a directory, or an Orbax manager."""
    if hasattr(checkpoint, "latest_step") and hasattr(checkpoint, "wait_until_finished"):
        return Manager(checkpoint)
    if "://" in str(checkpoint):
        raise ValueError(
            "`checkpoint` must be a local directory or, for remote ones, an "
            f"`orbax.checkpoint.CheckpointManager`. Got {str(checkpoint)!r}."
        )
    return Files(checkpoint, keep)


def on_host(state: PyTree) -> PyTree:
    """A copy of a state on the host, unaffected by donation; leaves that are sharded over processes
    are gathered one at a time.
    """

    def copy(leaf):
        if is_key(leaf):
            return jnp.copy(leaf)
        return np.array(process_allgather(leaf, tiled=True) if _is_cut(leaf) else leaf)

    return jax.tree.map(copy, state)


def is_apart(state: PyTree) -> bool:
    """Whether a state is sharded over processes, so that all of them are needed to save it."""
    return any(map(_is_cut, jax.tree.leaves(state)))


def _is_cut(leaf: Any) -> bool:
    return not (is_key(leaf) or leaf.is_fully_addressable or leaf.is_fully_replicated)


def _refuse(directory: Any, there: str) -> NoReturn:
    """Refuse to start a new run in a directory that holds one."""
    raise FileExistsError(
        f"`checkpoint` must be an empty directory unless `resume` is set. Got {str(directory)!r}, "
        f"with {there}."
    )


def _require_run(directory: Any, info: Any, asked: Mapping[str, Any]) -> None:
    """Refuse to resume from anything but the same run, naming the first setting that differs."""
    found = info.get("run") if isinstance(info, dict) else None
    if not isinstance(found, dict):
        raise ValueError(
            f"`checkpoint` must hold a run of `fit` or `train`. Got {str(directory)!r}, which "
            "holds something else."
        )
    if found.keys() != asked.keys():
        raise ValueError(
            "`checkpoint` must hold a run of this version of `fit`. Got one with "
            f"the settings {', '.join(sorted(found))}."
        )
    for name, value in asked.items():
        if found[name] != value:
            raise ValueError(f"`{name}` must be {found[name]}, as in the checkpoint. Got {value}.")


def checksum(data: PyTree) -> str:
    """A checksum of the shapes, dtypes and a sample of the values of arrays."""
    total = 0
    for leaf in jax.tree.leaves(data):
        leaf = jax.random.key_data(leaf) if is_key(leaf) else leaf
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = np.asarray(leaf.addressable_data(0))
        step = max(1, len(leaf) // SAMPLED) if leaf.ndim else 1
        some = np.asarray(leaf[::step] if leaf.ndim else leaf)
        head = f"{leaf.shape} {leaf.dtype}".encode()
        total = zlib.crc32(some.tobytes(), zlib.crc32(head, total))
    return f"{total:08x}"


# The number of examples that a checksum samples.
SAMPLED = 1000


def _as(part: PyTree, like: PyTree, mesh: Mesh | None) -> PyTree:
    """Place host arrays on devices, sharded like the arrays of `like`."""

    def place(leaf, other):
        if not is_key(leaf) and is_sharded(other):
            at: Callable = lambda index: leaf[index]  # noqa: E731
            return jax.make_array_from_callback(leaf.shape, other.sharding, at)
        return replicate(leaf, mesh)

    return jax.tree.map(place, part, like)


def _require_one_directory(step: int) -> None:
    if jax.process_count() > 1:
        message = "`checkpoint` must be a directory that all processes see."
        assert_equal(np.array(step), message)
