"""What training costs: `python tests/benchmarks/training.py`; `pip install torch` adds PyTorch.

2,000 steps of SGD on a 784-50-10 network, batches of 100, in the chapter's NumPy, in PyTorch, in a
Python loop of jitted steps (batches from NumPy, the loss read each step), in a hand-written jitted
scan, and in `jaxnn.fit`: all on the same examples, after one run that compiles. Then `fit` measures
loss and accuracy on all 10,000 examples and on 1,000 others after each epoch of 100 steps. The last
rows say how much of that is arithmetic: as many steps on one batch, which is neither drawn nor
gathered, and as many measurements. Then what a checkpoint costs."""

import argparse
import io
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxnn

EXAMPLES, BATCH, EPOCHS, RATE = 10_000, 100, 20, 0.1
STEPS = EPOCHS * EXAMPLES // BATCH


def chapter(params, x, t):
    """As the chapter's class and loop do it: float64 weights, backpropagation, and the loss by
    another forward pass.
    """
    w1, b1, w2, b2 = (np.array(params[name], np.float64) for name in ("W1", "b1", "W2", "b2"))
    losses, rng = [], np.random.default_rng(0)

    def predict(x):
        hidden = 1 / (1 + np.exp(-(x @ w1 + b1)))
        scores = hidden @ w2 + b2
        y = np.exp(scores - scores.max(1, keepdims=True))
        return hidden, y / y.sum(1, keepdims=True)

    for _ in range(STEPS):
        rows = rng.choice(len(x), BATCH)
        batch, classes = x[rows], t[rows]
        hidden, y = predict(batch)
        y[np.arange(BATCH), classes] -= 1
        y /= BATCH
        back = (y @ w2.T) * hidden * (1 - hidden)
        w2 -= RATE * hidden.T @ y
        b2 -= RATE * y.sum(0)
        w1 -= RATE * batch.T @ back
        b1 -= RATE * back.sum(0)
        losses.append(-np.mean(np.log(predict(batch)[1][np.arange(BATCH), classes] + 1e-7)))
    return losses


def pytorch(params, x, t):
    import torch

    net = torch.nn.Sequential(torch.nn.Linear(784, 50), torch.nn.Sigmoid(), torch.nn.Linear(50, 10))
    optimizer, error = torch.optim.SGD(net.parameters(), RATE), torch.nn.CrossEntropyLoss()
    x, t = torch.from_numpy(x.copy()), torch.from_numpy(t.astype(np.int64))
    losses = []
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            value = error(net(x[rows]), t[rows])
            value.backward()
            optimizer.step()
            losses.append(value.detach())
    return torch.stack(losses).numpy()


OPTIMIZER = optax.sgd(RATE)


@jax.jit
def step(params, state, x, t):
    value, gradient = jax.value_and_grad(jaxnn.loss)(params, x, t)
    updates, state = OPTIMIZER.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


def python_loop(params, x, t):
    state, losses = OPTIMIZER.init(params), []
    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(EXAMPLES).reshape(-1, BATCH)
        for rows in order:
            params, state, value = step(params, state, x[rows], t[rows])
            losses.append(float(value))
    return losses


@jax.jit
def _scan(params, x, t, key):
    def epoch(carry, number):
        order = jax.random.permutation(jax.random.fold_in(key, number), EXAMPLES).reshape(-1, BATCH)
        return lax.scan(
            lambda c, rows: ((out := step(*c, x[rows], t[rows]))[:2], out[2]), carry, order
        )

    return lax.scan(epoch, (params, OPTIMIZER.init(params)), jnp.arange(EPOCHS))


def by_hand(params, x, t):
    return np.asarray(_scan(params, x, t, jax.random.key(1))[1])


@jax.jit
def _one_batch(params, x, t):
    return lax.scan(
        lambda c, _: ((out := step(*c, x, t))[:2], out[2]),
        (params, OPTIMIZER.init(params)),
        length=STEPS,
    )


def steps_alone(params, x, t):
    return np.asarray(_one_batch(params, x[:BATCH], t[:BATCH])[1])


@jax.jit
def _measure(params, x, t):
    return jaxnn.loss(params, x, t), metrics(params, x, t)


def measurements_alone(params, x, t):
    for _ in range(EPOCHS):
        jax.block_until_ready([_measure(params, x, t), _measure(params, x[:1000], t[:1000])])


def ours(params, x, t, **options):
    return jaxnn.fit(
        jaxnn.loss,
        params,
        (x, t),
        OPTIMIZER,
        key=jax.random.key(1),
        epochs=EPOCHS,
        batch_size=BATCH,
        **options,
    ).history.step_loss


def metrics(params, x, t):
    return {"accuracy": jaxnn.accuracy(jaxnn.predict(params, x), t)}


def watched(params, x, t):
    return ours(
        params,
        x,
        t,
        measuring=jaxnn.Measuring(test=(x[:1000], t[:1000]), metrics=metrics),
        reporting=jaxnn.Reporting(jaxnn.show_progress(io.StringIO())),
    )


def once(train, *args):
    start = time.perf_counter()
    train(*args)
    return time.perf_counter() - start


def main():
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    rng = np.random.default_rng(0)
    x, t = (
        rng.uniform(size=(EXAMPLES, 784)).astype(np.float32),
        rng.integers(0, 10, EXAMPLES).astype(np.int32),
    )
    params = jaxnn.init_network(jax.random.key(0), (784, 50, 10))
    on_device = jax.tree.map(jnp.asarray, (x, t))
    rows = [
        ("chapter's loop, NumPy", chapter, (x, t)),
        ("Python loop of jitted steps", python_loop, (x, t)),
        ("hand-written jitted scan", by_hand, on_device),
        ("jaxnn.fit", ours, on_device),
        ("  measured and shown each epoch", watched, on_device),
        ("the steps' arithmetic alone", steps_alone, on_device),
        ("the measurements alone", measurements_alone, on_device),
    ]
    try:
        import torch
    except ImportError:
        pass
    else:
        rows.insert(1, (f"PyTorch {torch.__version__}, eager", pytorch, (x, t)))
    for _, train, data in rows:
        train(params, *data)
    times = {name: [] for name, _, _ in rows}
    for _ in range(5):  # in turns, so that all meet the same machine
        for name, train, data in rows:
            times[name].append(once(train, params, *data))
    base = statistics.median(times["hand-written jitted scan"])
    device = jax.devices()[0]
    print(
        f"{STEPS} steps; jax {jax.__version__} on {device.device_kind}; medians of 5, ± half their "
        f"range"
    )
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        spread = (max(seconds) - min(seconds)) / 2 / middle
        print(f"{name:34}{middle:8.3f} s ±{spread:4.0%}{middle / base:8.2f} times the scan")
    state = {"params": (large := jaxnn.init_network(jax.random.key(0), (784, 100, 10)))}
    state["opt_state"] = optax.adam(1e-3).init(large)
    with tempfile.TemporaryDirectory() as directory:
        saves = [once(jaxnn.save_checkpoint, directory, number, state) for number in range(20)]
    size = sum(leaf.size for leaf in jax.tree.leaves(large))
    print(
        f"a checkpoint of {size:,} parameters with Adam's state: "
        f"{1e3 * statistics.median(saves):.1f} ms"
    )


if __name__ == "__main__":
    main()
