"""Output and checks that all commands share."""

import contextlib
import io
import json
import os
import pathlib
import sys
import traceback
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

import jaxnn
from jaxnn._terminal import erase_line, takes_codes, write


@contextlib.contextmanager
def kept_free(stream: TextIO) -> Iterator[TextIO]:
    """Reserve standard output for one result: all other output, from user functions or from native
    libraries, goes to standard error.
    """
    stream.flush()
    try:
        number = stream.fileno()
    except (OSError, ValueError, AttributeError, io.UnsupportedOperation):
        number = None
    with contextlib.ExitStack() as stack:
        if number is not None and sys.stderr is not None:
            stream = stack.enter_context(os.fdopen(os.dup(number), "w"))
            os.dup2(2, number)
            stack.callback(lambda: (sys.stdout.flush(), os.dup2(stream.fileno(), number)))
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield stream


def silent(*_: Any, **__: Any) -> None:
    """Print nothing, for commands whose output is JSON."""


@contextlib.contextmanager
def passing(doing: str) -> Iterator[None]:
    """Show on a terminal what takes time, and erase it afterwards."""
    if not takes_codes(sys.stderr):
        yield
        return
    write(sys.stderr, f"{doing} ...")
    try:
        yield
    finally:
        erase_line(sys.stderr)


def mark(found: Iterable[Any], file: str | None) -> None:
    """Under GitHub Actions, mark the lines that findings name; and write them to a SARIF file, if
    one is asked for.
    """
    from jaxnn.checking.findings import annotations, sarif

    found = list(found)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        print(*annotations(found), sep="\n", file=sys.stderr)
    if file:
        text = json.dumps(sarif(found, jaxnn.__version__), indent=1)
        pathlib.Path(file).write_text(text, encoding="utf-8")
        print(f"SARIF written to {file}", file=sys.stderr)


def print_json(value: Any, stream: TextIO | None = None) -> None:
    """Print a value as one line of JSON."""
    from jaxnn._files import without_nan

    print(json.dumps(without_nan(value)), file=stream, flush=True)


def require_place(option: str, path: str, made: str | None = None) -> None:
    """Refuse a file that could not be written, before any work is done.

    Args:
      option: the name of the option.
      path: the path of the file.
      made: a directory that will be created first.
    """
    place = pathlib.Path(path)
    beside = place.parent.is_dir() or (made and pathlib.Path(made).is_relative_to(place.parent))
    if "\0" in path or place.is_dir() or not beside:
        raise ValueError(f"`{option}` must be a file in an existing directory. Got {path!r}.")
    if option == "--html" and place.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"`{option}` must end in .html. Got {path!r}.")


def require_places(args: Any, *options: str) -> None:
    """Refuse files of these options that could not be written; a command may lack some."""
    for option in options:
        if path := getattr(args, option, None):
            require_place(f"--{option}", path)


def place_of(error: BaseException) -> list[str]:
    """The line of the user's code that an error comes from, as a list; empty if there is none."""
    frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
    ours = (sys.prefix, sys.base_prefix, str(pathlib.Path(__file__).parents[1]), sys.argv[0], "<")
    users = [frame for frame in frames if not frame.filename.startswith(ours)]
    if not users:
        return []
    return [f"(at {users[-1].filename}:{users[-1].lineno}; --debug shows the traceback)"]
