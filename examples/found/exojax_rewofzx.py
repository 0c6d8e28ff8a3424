"""`rewofzx` of ExoJAX 2.6.0: a term of its derivative with respect to `y` lacks the cotangent.

    pip install exojax==2.6.0
    jaxnn check examples/found/exojax_rewofzx.py

The gradient of the function itself is right, as its cotangent is 1 there; that of twice the
function is not twice as large.
"""

import jax.numpy as jnp
from exojax.special.faddeeva import rewofzx  # pyright: ignore[reportMissingImports]


def check_twice_the_function(x=0.5, y=0.3):
    """Twice the real part of the Faddeeva function."""
    return 2 * jnp.asarray(rewofzx(x, y))
