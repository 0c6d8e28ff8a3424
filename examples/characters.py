# %% [markdown]
"""A small transformer that learns to write Python, character by character.

The text is the source of some modules of Python's own library, as installed on your machine (Python
Software Foundation License). Batches come from a function of the epoch; the optimiser has a
warm-up, a cosine schedule and clipping, and adds up the gradients of two steps; the arithmetic is
in bfloat16, the parameters in float32. With --checkpoint DIR the run is saved and continues when
it is started again.

Run it:  python examples/characters.py
"""

# %%
import argparse
import functools
import inspect
import json.decoder
import textwrap
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxnn

MODULES = (argparse, functools, json.decoder, textwrap, typing)
TEXT = "".join(c for module in MODULES for c in inspect.getsource(module) if c.isascii())
LETTERS = sorted(set(TEXT))
CODES = np.array([LETTERS.index(c) for c in TEXT], np.int32)
HELD_OUT = len(CODES) // 10  # the last tenth is for testing
CONTEXT, WIDTH, HEADS, LAYERS, BATCH = 64, 96, 4, 2, 32


# %% The model: parameters in, scores out
def init(key):
    keys = iter(jax.random.split(key, 99))
    normal = lambda *shape: jax.random.normal(next(keys), shape) * shape[0] ** -0.5  # noqa: E731
    layer = lambda: {  # noqa: E731
        "attention": normal(WIDTH, 3 * WIDTH),
        "out": normal(WIDTH, WIDTH),
        "up": normal(WIDTH, 4 * WIDTH),
        "down": normal(4 * WIDTH, WIDTH),
        "norms": jnp.ones((2, WIDTH)),
    }
    return {
        "letters": 0.02 * jax.random.normal(next(keys), (len(LETTERS), WIDTH)),
        "places": 0.02 * jax.random.normal(next(keys), (CONTEXT, WIDTH)),
        "layers": [layer() for _ in range(LAYERS)],
        "norm": jnp.ones(WIDTH),
    }


def normed(x, scale):
    """Divided by its root mean square, in float32."""
    wide = x.astype(jnp.float32)
    size = jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-6)
    return (wide * size).astype(x.dtype) * scale


def attention(layer, x):
    split = lambda y: y.reshape(*y.shape[:-1], HEADS, -1)  # noqa: E731
    q, k, v = map(split, jnp.split(x @ layer["attention"], 3, -1))
    y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return y.reshape(x.shape) @ layer["out"]


def scores(params, letters):
    """Scores of the letter after each letter."""
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    x = params["letters"][letters] + params["places"][: letters.shape[-1]]
    for layer in params["layers"]:
        x = x + attention(layer, normed(x, layer["norms"][0]))
        x = x + jax.nn.gelu(normed(x, layer["norms"][1]) @ layer["up"]) @ layer["down"]
    return (normed(x, params["norm"]) @ params["letters"].T).astype(jnp.float32)


def loss(params, windows):
    """Nats per letter; guessing among a hundred letters gives 4.6."""
    return jaxnn.softmax_cross_entropy(scores(params, windows[:, :-1]), windows[:, 1:])


# %% Batches: windows of the text at random places, fixed by the number of the epoch
def batches(steps, begin, end):
    def of_epoch(epoch):
        rng = np.random.default_rng(epoch)
        for _ in range(steps):
            starts = rng.integers(begin, end - CONTEXT - 1, BATCH)
            yield (CODES[starts[:, None] + np.arange(CONTEXT + 1)],)

    return of_epoch


# %% What it writes
def written(params, key, length=400):
    """How the network continues text that it has not seen."""
    text = jnp.asarray(CODES[None, -HELD_OUT : CONTEXT - HELD_OUT])
    step = jax.jit(lambda text, key: jax.random.categorical(key, 1.5 * scores(params, text)[0, -1]))
    letters = []
    for i in range(length):
        letter = step(text, jax.random.fold_in(key, i))
        text = jnp.concatenate([text[:, 1:], letter[None, None]], 1)
        letters.append(LETTERS[int(letter)])
    return "".join(letters)


# %%
def main(steps, checkpoint):
    params = init(jax.random.key(0))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{len(TEXT):,} letters of {len(MODULES)} modules; {size:,} parameters")
    updates = steps // 2
    rates = optax.warmup_cosine_decay_schedule(0.0, 1e-2, updates // 10, updates)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rates))
    result = jaxnn.fit(
        loss,
        params,
        batches(steps // 10, 0, len(CODES) - HELD_OUT),
        optax.MultiSteps(optimizer, 2).gradient_transformation(),
        key=jax.random.key(1),
        epochs=10,
        measuring=jaxnn.Measuring(test=batches(10, len(CODES) - HELD_OUT, len(CODES))),
        saving=jaxnn.Saving(checkpoint, resume=checkpoint is not None),
        reporting=jaxnn.Reporting(jaxnn.show_progress()),
    )
    print(f"{result.status.step} steps in {result.history.seconds.sum():.0f} s; it writes:")
    print(textwrap.indent(written(result.params, jax.random.key(2)).strip("\n"), "    "))


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="50 steps instead of 2,000")
    parser.add_argument("--checkpoint", metavar="DIR", help="save the run there, or resume it")
    given = parser.parse_args()
    main(50 if given.short else 2000, given.checkpoint)
