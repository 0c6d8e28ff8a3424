"""Parameters of which some stand for all: the others are slow, for `pytest -m slow`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(quick: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """Values of a parameter (or tuples, of several), slow but for the quick ones."""

    def marked(value):
        several = value if isinstance(value, tuple) else (value,)
        return pytest.param(*several, marks=[] if value in quick else pytest.mark.slow)

    return [marked(value) for value in values]


# For tests to which the dtype matters little.
float32_quickly = pytest.mark.parametrize(
    "dtype", slow_but(["float32"], ["float32", "float64"]), indirect=True
)
