"""A line on a terminal that says how far a long check is."""

import sys
import time
from typing import Any, TextIO

# Checks that are over before this many seconds say nothing; and how often the line changes.
SILENCE, BETWEEN = 2.0, 0.2


class Watch:
    """Told what is asked; writes one line, which it takes back at the end."""

    def __init__(self, stream: TextIO | None):
        self.stream, self.began, self.written = stream, time.monotonic(), 0.0
        self.known, self.leaves = 0, 0

    @classmethod
    def of(cls, progress: bool | None) -> "Watch":
        """On stderr, if that is asked for, or if it is a terminal and nothing is said."""
        if progress not in (None, True, False):
            raise ValueError(f"`progress` must be True, False or None. Got {progress!r}.")
        wanted = sys.stderr.isatty() if progress is None else progress
        return cls(sys.stderr if wanted else None)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: Any) -> None:
        if self.written and self.stream is not None:
            self.stream.write("\r\033[K" if self.stream.isatty() else "\n")
            self.stream.flush()

    def done(self, known: int, leaves: int) -> None:
        """Of so many leaves enough is known."""
        self.known, self.leaves = known, leaves

    def tell(self, line: Any) -> None:
        """A question is about to be asked of a line."""
        now = time.monotonic()
        if self.stream is None or now - self.began < SILENCE or now - self.written < BETWEEN:
            return
        self.written = now
        of = f" of {self.leaves}" if self.leaves else ""
        self.stream.write(
            f"\rchecking: {self.known}{of} leaves known, {line.evaluations} values, "
            f"{now - self.began:.0f} s "
        )
        self.stream.flush()
