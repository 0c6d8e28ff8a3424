"""Q-learning from recorded moves, with a target network that is a Polyak average.

A walker on ten places earns 1 for a step to the right from the last one; moves are drawn at random.

Run it:  python examples/steps/target_network.py
"""

import jax
import jax.numpy as jnp
import optax

import jaxnn

PLACES, DISCOUNT = 10, 0.9
KEYS = jax.random.split(jax.random.key(0), 3)
PLACE = jax.random.randint(KEYS[0], (4000,), 0, PLACES)
MOVE = jax.random.randint(KEYS[1], (4000,), 0, 2)
REWARD = jnp.where((PLACE == PLACES - 1) & (MOVE == 1), 1.0, 0.0)
NEXT = jnp.clip(PLACE + 2 * MOVE - 1, 0, PLACES - 1)
DATA = {"place": PLACE, "move": MOVE, "reward": REWARD, "next": NEXT}
PARAMS = jaxnn.init_network(KEYS[2], (PLACES, 32, 2), 0.2)
OPTIMIZER = optax.adam(3e-3)


def values(params, place):
    """The values of both moves."""
    hidden = jax.nn.relu(jax.nn.one_hot(place, PLACES) @ params["W1"] + params["b1"])
    return hidden @ params["W2"] + params["b2"]


def error(params, target, batch):
    future = values(target, batch["next"]).max(1)
    wanted = batch["reward"] + DISCOUNT * future
    taken = jnp.take_along_axis(values(params, batch["place"]), batch["move"][:, None], 1)[:, 0]
    return jnp.mean((taken - wanted) ** 2)


def step(state, batch, key):
    loss, gradient = jax.value_and_grad(error)(state["params"], state["target"], batch)
    updates, opt_state = OPTIMIZER.update(gradient, state["opt_state"])
    params = optax.apply_updates(state["params"], updates)
    target = optax.incremental_update(params, state["target"], 0.05)
    return {"params": params, "target": target, "opt_state": opt_state}, {"loss": loss}


STATE = {"params": PARAMS, "target": PARAMS, "opt_state": OPTIMIZER.init(PARAMS)}
RUN = {"key": jax.random.key(1), "batch_size": 200}

if __name__ == "__main__":
    result = jaxnn.train(step, STATE, DATA, epochs=100, **RUN)
    best = values(result.state["target"], jnp.arange(PLACES))
    right = bool((best[:, 1] > best[:, 0]).all())
    print(f"{result.status.step} steps; goes right everywhere: {right}; ", end="")
    print(f"value of the last place {best[-1, 1]:.2f}, exactly {1 / (1 - DISCOUNT):.2f}")
