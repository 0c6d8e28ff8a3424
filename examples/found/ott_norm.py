"""`ott.math.utils.norm` of OTT-JAX 0.6.0: under differentiation the norm of 0 is not 0.

    pip install ott-jax==0.6.0
    jaxnn check examples/found/ott_norm.py

Its JVP rule replaces zeros by ones before it computes the norm, and returns that as the value: for
four zeros, `jax.value_and_grad` says 2.
"""

import jax.numpy as jnp
from ott.math import utils  # pyright: ignore[reportMissingImports]

ZEROS = jnp.zeros(4)


def check_value_under_differentiation(x=ZEROS):
    """The norm at zero."""
    return utils.norm(x)
