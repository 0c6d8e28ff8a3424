# %% [markdown]
"""Finite differences against `jax.grad` on the chapter's network: every parameter, side by side.

Run it:  python examples/gradients_two_ways.py
"""

# %%
import jax
import jax.numpy as jnp

import jaxnn


# %%
def main():
    digits = jaxnn.load_digits()
    batch = jaxnn.sample_batch(jax.random.key(0), (digits.x_train, digits.t_train), 20)
    params = jaxnn.init_network(jax.random.key(1), (64, 20, 10), weight_scale=0.1)

    print("numerically and automatically:")
    numerical = jaxnn.numerical_grad(jaxnn.loss)(params, *batch)
    automatic = jax.grad(jaxnn.loss)(params, *batch)

    print("parameter  entries  largest entry  largest difference")
    for name in params:
        difference = jnp.max(jnp.abs(numerical[name] - automatic[name]))
        print(
            f"{name:9} {params[name].size:8} {jnp.max(jnp.abs(automatic[name])):14.2e} "
            f"{difference:19.1e}"
        )


# %%
if __name__ == "__main__":
    main()
