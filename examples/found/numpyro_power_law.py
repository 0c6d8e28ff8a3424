"""`DoublyTruncatedPowerLaw.log_prob` of NumPyro 0.22.0: its derivatives with respect to `low` and
`high` are wrong.

    pip install numpyro==0.22.0
    jaxnn check examples/found/numpyro_power_law.py

The density is x^alpha over an integral from low to high, so the derivative of its logarithm with
respect to `high` is -high^alpha over that integral: -1/6 at (alpha, low, high) = (-2, 1, 3). The
custom rule gives 1/9.
"""

import jax.numpy as jnp
import numpyro.distributions as dist  # pyright: ignore[reportMissingImports]


def check_slopes_by_the_ends(low=1.0, high=3.0):
    """The log density at 1.5."""
    return dist.DoublyTruncatedPowerLaw(-2.0, low, high).log_prob(jnp.array(1.5))
