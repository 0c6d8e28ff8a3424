"""`jax.scipy.special.spence` of JAX 0.10.2: its gradient is NaN from 1 to 2, and 0 at 1.

    jaxnn check examples/found/jax_spence.py

The derivative is log(x) / (1 - x), which is -0.693 at 2, and -1 in the limit at 1. A logarithm of a
negative number is masked only after it was taken.
"""

import jax.numpy as jnp
from jax.scipy.special import spence


def check_at_two(x=2.0):
    """NaN instead of -0.693."""
    return spence(jnp.asarray(x))


def check_at_one(x=1.0):
    """0 instead of -1."""
    return spence(jnp.asarray(x))
