"""A status line that shows what a long check is doing, and for how long."""

import sys
import threading
import time
from typing import Any, TextIO

from jaxnn._terminal import erase_line, is_open, takes_codes, write

# Seconds before the line first appears, and between updates.
SILENCE, BETWEEN = 2.0, 1.0


class Status:
    """Writes a status line from a thread, and erases it at the end."""

    def __init__(self, stream: TextIO | None):
        self.stream, self.doing = stream, "tracing the function"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write, name="jaxnn status", daemon=True)

    @classmethod
    def of(cls, progress: bool | None) -> "Status":
        """A status line on stderr if `progress` is true, or if it is None and stderr a terminal."""
        if progress not in (None, True, False):
            raise ValueError(f"`progress` must be True, False or None. Got {progress!r}.")
        stream = sys.stderr  # None in programs without a terminal
        wanted = is_open(stream) and (stream.isatty() if progress is None else progress)
        return cls(stream if wanted else None)

    def __enter__(self) -> "Status":
        if self.stream is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        if self.stream is not None:
            self._thread.join()

    def say(self, doing: str) -> None:
        """Set what the check is doing now."""
        self.doing = doing

    def _write(self) -> None:
        assert self.stream is not None
        began, wait, width = time.monotonic(), SILENCE, 0
        while not self._over.wait(wait):
            text = f"checking: {self.doing} ({time.monotonic() - began:.0f} s) "
            write(self.stream, f"\r{text:{width}}")
            wait, width = BETWEEN, len(text)
        if width and takes_codes(self.stream):
            erase_line(self.stream)
        elif width:
            write(self.stream, "\n")
