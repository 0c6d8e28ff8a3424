"""Ordinary use, for type checkers: `tests/test_types.py` runs pyright and mypy on it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxnn

digits: jaxnn.Digits = jaxnn.load_digits()
params: dict[str, jax.Array] = jaxnn.init_network(jax.random.key(0), (64, 50, 10))
batch = digits.x_train[:10], digits.t_train[:10]
value: jax.Array = jaxnn.loss(params, *batch)
of_numpy: jax.Array = jaxnn.mean_squared_error(np.ones(3), np.zeros(3))
of_a_batch: jax.Array = jaxnn.softmax_cross_entropy(np.ones((2, 3)), np.array([0, 1]))
part: jax.Array = jaxnn.accuracy(np.eye(3), np.arange(3))


def bowl(x: jax.Array) -> jax.Array:
    return jnp.sum(x**2)


slope: jax.Array = jaxnn.numerical_diff(jnp.exp, 1.0)
gradient = jaxnn.numerical_grad(bowl)(np.array([3.0, 4.0]))
also = jaxnn.numerical_gradient(bowl, np.array([3.0, 4.0]))
hessian = jaxnn.numerical_hessian(bowl)(jnp.array([3.0, 4.0]))
report: jaxnn.GradientReport = jaxnn.check_gradient(jaxnn.loss, params, *batch)
leaf: jaxnn.LeafReport = report.leaves[0]
digits_right: float = leaf.digits
if not report.ok:
    report.raise_if_wrong()
jaxnn.assert_gradient(bowl, jnp.ones(2), order=2, seed=1)
lines: tuple[jaxnn.Birth, ...] = jaxnn.explain(bowl, jnp.ones(2)).births
end = jaxnn.gradient_descent(bowl, jnp.array([-3.0, 4.0]), lr=0.1, step_num=100)
path: jaxnn.DescentPath = jaxnn.descent_path(bowl, np.array([-3.0, 4.0]), 0.1)
found: jaxnn.Minimum = jaxnn.minimize(bowl, jnp.ones(2), optax.adam(0.1))
result: jaxnn.Fit = jaxnn.fit(
    jaxnn.loss,
    params,
    (np.asarray(digits.x_train), np.asarray(digits.t_train)),
    optax.adam(0.01),
    key=jax.random.key(1),
    epochs=1,
    reporting=jaxnn.Reporting(jaxnn.show_progress()),
)
losses: np.ndarray = result.history.step_loss
runs: list[jaxnn.Fit] = jaxnn.sweep(
    jaxnn.loss, params, batch, optax.sgd, jnp.array([0.1, 0.2]), key=jax.random.key(1), epochs=1
)
