"""Tests of what JAX itself has, or compiles to the same bits, only since a version."""

import jax
import pytest


def since(*version):
    """A mark for such a test."""
    name = ".".join(map(str, version))
    return pytest.mark.skipif(jax.__version_info__ < version, reason=f"of JAX since {name}")
