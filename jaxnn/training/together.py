"""The processes of one run start from the same settings, decide together, and end together."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

# Bytes of a failure message that one process sends to the others.
SAID = 400


class Vote(NamedTuple):
    """What a process wants between two chunks; `agreed` combines the votes of all processes.

    Attributes:
      stopped: whether the user stopped the run.
      interrupted: whether a signal arrived.
      failed: whether an exception was raised.
      due: whether a checkpoint is due.
      digest: of the examples that all processes should share; 0 if there are none.
      pace: number of steps in the next chunk.
    """

    stopped: bool
    interrupted: bool
    failed: bool
    due: bool
    digest: int
    pace: int

    def agreed(self) -> "Vote":
        """The joint decision: a flag is set if any process sets it; the smallest pace wins; the
        digest is -1 if there are different ones.
        """
        if jax.process_count() == 1:
            return self
        of_all = multihost_utils.process_allgather(np.array(self, np.int32))
        flags = (bool(flag) for flag in of_all[:, :-2].any(axis=0))
        digests = np.unique(of_all[:, -2])
        digest = -1 if np.count_nonzero(digests) > 1 else int(digests[-1])
        return Vote(*flags, digest=digest, pace=int(of_all[:, -1].min()))


def failure_of_others(mine: BaseException | None) -> RuntimeError | None:
    """An error with the message of the first process that failed, shared with all processes."""
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
    """Refuse processes whose settings differ, naming the setting and the processes.

    Args:
      parts: settings by name, compared by their `repr`.

    Raises:
      ValueError: the settings differ; raised in all processes.
    """
    if jax.process_count() == 1:
        return
    hashes = (hashlib.sha256(repr(part).encode()).digest()[:8] for part in parts.values())
    digests = np.stack([np.frombuffer(hashed, np.uint32) for hashed in hashes])
    of_all = multihost_utils.process_allgather(digests)
    for place, name in enumerate(parts):
        others = (of_all[:, place] != of_all[0, place]).any(axis=-1)
        if others.any():
            which = ", ".join(map(str, np.flatnonzero(others)))
            raise ValueError(
                f"`{name}` must be the same in all processes. Got one value in process {which}, "
                "another in process 0."
            )
