"""Two networks in turn: a generator of points on a ring, and a critic that tells them from data.

Run it:  python examples/steps/gan.py
"""

import jax
import jax.numpy as jnp
import optax

import jaxnn

ANGLES = 2 * jnp.pi * jnp.arange(400) / 400
RING = jnp.stack([jnp.cos(ANGLES), jnp.sin(ANGLES)], 1)
FIRST, SECOND = jax.random.split(jax.random.key(0))
GENERATOR = jaxnn.init_network(FIRST, (4, 32, 2), 0.5)
CRITIC = jaxnn.init_network(SECOND, (2, 32, 1), 0.5)
OPTIMIZER = optax.adam(2e-3, b1=0.5)


def scores(critic, points):
    hidden = jax.nn.leaky_relu(points @ critic["W1"] + critic["b1"])
    return (hidden @ critic["W2"] + critic["b2"])[:, 0]


def points(generator, noise):
    hidden = jnp.tanh(noise @ generator["W1"] + generator["b1"])
    return hidden @ generator["W2"] + generator["b2"]


def critic_loss(critic, generator, real, noise):
    fake = points(generator, noise)
    return jnp.mean(jax.nn.softplus(-scores(critic, real)) + jax.nn.softplus(scores(critic, fake)))


def generator_loss(generator, critic, noise):
    return jnp.mean(jax.nn.softplus(-scores(critic, points(generator, noise))))


def descend(loss, params, opt_state, *given):
    value, gradient = jax.value_and_grad(loss)(params, *given)
    updates, opt_state = OPTIMIZER.update(gradient, opt_state)
    return value, optax.apply_updates(params, updates), opt_state


def step(state, batch, key):
    (real,) = batch
    noise = jax.random.normal(key, (len(real), 4))
    critic, of_critic = state["critic"]
    generator, of_generator = state["generator"]
    told, critic, of_critic = descend(critic_loss, critic, of_critic, generator, real, noise)
    loss, generator, of_generator = descend(generator_loss, generator, of_generator, critic, noise)
    state = {"critic": (critic, of_critic), "generator": (generator, of_generator)}
    return state, {"loss": loss, "critic": told}


STATE = {
    "critic": (CRITIC, OPTIMIZER.init(CRITIC)),
    "generator": (GENERATOR, OPTIMIZER.init(GENERATOR)),
}
RUN = {"key": jax.random.key(1), "batch_size": 100}

if __name__ == "__main__":
    result = jaxnn.train(step, STATE, (RING,), epochs=1000, **RUN)
    made = points(result.state["generator"][0], jax.random.normal(jax.random.key(2), (1000, 4)))
    radius = jnp.linalg.norm(made, axis=1)
    print(f"{result.status.step} steps; radius {radius.mean():.2f} +- {radius.std():.2f}, data: 1")
