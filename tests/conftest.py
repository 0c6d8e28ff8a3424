"""Shapes in signatures are checked at run time here, and only here."""

import contextlib

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

jaxtyping.install_import_hook("jaxnn", "beartype.beartype")


@pytest.fixture
def own_errors():
    """The package's own errors, not those of the shape checker that would come first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Both dtypes; float64 with x64 on."""
    with jax.enable_x64(True) if request.param == "float64" else contextlib.nullcontext():
        yield jnp.dtype(request.param)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
