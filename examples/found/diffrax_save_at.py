"""Diffrax 0.7.2: gradients through `SaveAt(ts=...)` are wrong for some `max_steps`.

    pip install diffrax==0.7.2 equinox==0.13.8
    jaxnn check examples/found/diffrax_save_at.py

Sixty Euler steps of y' = -p y, saved at 16 times, with the default adjoint: the gradient is 5% off
with `max_steps=500`, and correct with 4096 or with `DirectAdjoint()`.
"""

import diffrax  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp

jax.config.update("jax_enable_x64", True)
DECAY = diffrax.ODETerm(lambda t, y, p: -p * y)


def check_saved_values(p=1.3):
    """The sum of squares of the saved values."""
    saved = diffrax.SaveAt(ts=jnp.linspace(0.0, 3.0, 16))
    solution = diffrax.diffeqsolve(
        DECAY, diffrax.Euler(), 0.0, 3.0, 0.05, jnp.array(1.0), p, saveat=saved, max_steps=500
    )
    return jnp.sum(solution.ys**2)
