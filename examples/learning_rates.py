# %% [markdown]
"""Many learning rates in one `vmap`: too small, right, too large, and diverging.

Run it:  python examples/learning_rates.py
"""

# %%
import jax
import jax.numpy as jnp

import jaxnn
from jaxnn.surfaces import bowl

START = jnp.array([-3.0, 4.0])


# %%
@jax.jit
@jax.vmap
def paths(lr):
    return jaxnn.descent_path(bowl, START, lr, 20)


# %%
def main():
    rates = jnp.array([1e-3, 0.1, 0.5, 0.95, 1.1])
    print("learning rate   loss after 0, 5, 10 and 20 steps")
    for rate, losses in zip(rates, paths(rates).losses, strict=True):
        print(f"{rate:13g}   " + "  ".join(f"{losses[step]:10.3g}" for step in (0, 5, 10, 20)))


# %%
if __name__ == "__main__":
    main()
