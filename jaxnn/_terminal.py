"""What a terminal can be told: a line that is taken back when it has served."""

import os
from typing import Any


def is_open(stream: Any) -> bool:
    """Whether there is a stream that can be written to."""
    return stream is not None and not getattr(stream, "closed", False)


def takes_codes(stream: Any) -> bool:
    """Whether it is a terminal that understands more than plain text, by TERM and NO_COLOR
    (https://no-color.org).
    """
    plain = os.environ.get("TERM") == "dumb" or bool(os.environ.get("NO_COLOR"))
    return is_open(stream) and stream.isatty() and not plain


def write(stream: Any, text: str) -> None:
    """Text that is seen at once."""
    stream.write(text)
    stream.flush()


def erase_line(stream: Any) -> None:
    """Take the last line back."""
    write(stream, "\r\033[K")
