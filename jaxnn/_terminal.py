"""Terminal output: colours, immediate writes, and erasing the current line."""

import os
from typing import Any


def is_open(stream: Any) -> bool:
    """Whether a stream exists and can be written to."""
    return stream is not None and not getattr(stream, "closed", False)


def takes_codes(stream: Any) -> bool:
    """Whether a stream is a terminal that accepts escape codes, by TERM and NO_COLOR
    (https://no-color.org).
    """
    plain = os.environ.get("TERM") == "dumb" or bool(os.environ.get("NO_COLOR"))
    return is_open(stream) and stream.isatty() and not plain


def coloured(text: str, exit_code: int) -> str:
    """A text in the terminal's colour for an exit code: green, red or yellow."""
    return f"\x1b[{(32, 31, 33)[exit_code]}m{text}\x1b[0m"


def write(stream: Any, text: str) -> None:
    """Write text and flush it."""
    stream.write(text)
    stream.flush()


def erase_line(stream: Any) -> None:
    """Erase the current line."""
    write(stream, "\r\033[K")
