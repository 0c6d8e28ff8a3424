"""What every command prints and asks in the same way."""

import json
import math
import pathlib
from typing import Any


def print_json(value: Any) -> None:
    """One line of JSON."""

    def finite(x):
        if isinstance(x, float) and not math.isfinite(x):
            return None  # JSON has no NaN; a reader of strict JSON would refuse the file
        if isinstance(x, dict):
            return {key: finite(item) for key, item in x.items()}
        return [finite(item) for item in x] if isinstance(x, list | tuple) else x

    print(json.dumps(finite(value)))


def require_place(option: str, path: str, made: str | None = None) -> None:
    """Refuse a file that could not be written, before the work that it is to hold.

    Args:
      option: its name.
      path: of the file.
      made: a directory that will be made first.
    """
    place = pathlib.Path(path)
    beside = place.parent.is_dir() or (made and pathlib.Path(made).is_relative_to(place.parent))
    if "\0" in path or place.is_dir() or not beside:
        raise ValueError(f"`{option}` must be a file in a directory that is there. Got {path!r}.")
