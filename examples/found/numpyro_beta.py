"""`Beta.log_prob` of NumPyro 0.22.0 at the ends of the interval: its slopes are 0.

    pip install numpyro==0.22.0
    jaxnn check examples/found/numpyro_beta.py

The logarithm of the density at 1 is -log B(a, 1) = log(a) if b is 1, so its derivative with
respect to `a` is 1/a: 0.5 at a = 2. At 0 and 1 the value is corrected inside `stop_gradient`,
which cuts off `a` as well.
"""

import jax.numpy as jnp
import numpyro.distributions as dist  # pyright: ignore[reportMissingImports]


def check_slope_by_the_first_parameter(a=2.0):
    """The log density at 1, where b is 1."""
    return dist.Beta(a, 1.0).log_prob(jnp.array(1.0))
