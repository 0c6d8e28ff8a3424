"""The processes of one run: that they begin alike, decide together, and end together."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

# Bytes of what a process says of its failure to the others.
SAID = 400


class Vote(NamedTuple):
    """What a process wants between two stretches; the least or the most of all is done.

    Attributes:
      stopped: whether somebody ended the run.
      interrupted: whether a signal came.
      failed: whether something was raised.
      due: whether a checkpoint is.
      pace: steps in the next stretch.
    """

    stopped: bool
    interrupted: bool
    failed: bool
    due: bool
    pace: int

    def agreed(self) -> "Vote":
        """What all processes do."""
        if jax.process_count() == 1:
            return self
        of_all = multihost_utils.process_allgather(np.array(self, np.int32))
        flags = (bool(flag) for flag in of_all[:, :-1].any(axis=0))
        return Vote(*flags, pace=int(of_all[:, -1].min()))


def failure_of_others(mine: BaseException | None) -> RuntimeError | None:
    """What the first process that failed says of it, told to all."""
    if jax.process_count() == 1:
        return None
    said = "" if mine is None else f"{type(mine).__name__}: {mine}"
    line = np.zeros(SAID, np.uint8)
    content = np.frombuffer(said.encode()[:SAID], np.uint8)
    line[: len(content)] = content
    lines = multihost_utils.process_allgather(line)
    number = int(np.argmax(lines.any(axis=1)))
    text = bytes(lines[number]).rstrip(b"\0").decode(errors="replace")
    return RuntimeError(f"process {number} ended the run: {text}")


def require_same(parts: Mapping[str, Any]) -> None:
    """Refuse processes that begin a run differently, naming what differs and where.

    Args:
      parts: what has to be the same, by name; told apart by how it is printed.

    Raises:
      ValueError: in all processes.
    """
    if jax.process_count() == 1:
        return
    digests = np.stack(
        [np.frombuffer(digest(repr(part).encode()), np.uint32) for part in parts.values()]
    )
    of_all = multihost_utils.process_allgather(digests)
    for place, name in enumerate(parts):
        others = (of_all[:, place] != of_all[0, place]).any(axis=-1)
        if others.any():
            which = ", ".join(map(str, np.flatnonzero(others)))
            raise ValueError(
                f"`{name}` must be the same in all processes. Got another than that of process 0 "
                f"in process {which}."
            )


def digest(content: bytes) -> bytes:
    """Eight bytes that differ where the content does."""
    return hashlib.sha256(content).digest()[:8]
