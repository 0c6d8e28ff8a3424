"""A fully connected network as pure functions over a pytree of parameters.

The parameters are a dictionary with the chapter's names: `W1`, `b1`, `W2`, `b2`, ... Layer i
computes x @ Wi + bi. The activation follows every layer but the last, which returns scores
(logits) for `softmax_cross_entropy`. Biases are optional: the chapter's 2x3 network is `{"W1": W}`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, Num

from jaxnn._validate import (
    as_array,
    describe,
    require_arrays,
    require_callable,
    require_count,
    require_floating_dtype,
    require_key,
    require_number,
)
from jaxnn.losses import softmax_cross_entropy

Params = Mapping[str, Float[ArrayLike, "..."]]


def init_network(
    key: Key[Array, ""], sizes: Sequence[int], weight_scale: float = 0.01, dtype: Any = jnp.float32
) -> dict[str, Float[Array, "..."]]:
    """Parameters of a fully connected network: normal weights with standard deviation
    `weight_scale`, zero biases.

    Args:
      key: a PRNG key, from `jax.random.key`.
      sizes: number of units of each layer, input first: `(784, 50, 10)` has one hidden layer.
      weight_scale: standard deviation of the weights.
      dtype: floating dtype of the parameters. It is explicit, so that the draw does not depend on
        the x64 setting.

    Returns:
      `{"W1": (sizes[0], sizes[1]), "b1": (sizes[1],), "W2": ...}`.

    Raises:
      ValueError: fewer than two sizes, or a size below 1.
      TypeError: a size is not an integer, or `dtype` is not floating.

    Source:
      the chapter, 4.5.1.

    Example:
      >>> {name: p.shape for name, p in init_network(jax.random.key(0), (2, 3)).items()}
      {'W1': (2, 3), 'b1': (3,)}
    """
    require_key("key", key)
    if not hasattr(sizes, "__len__") or isinstance(sizes, str | Mapping):
        raise TypeError(f"`sizes` must be a sequence of integers. Got {describe(sizes)}.")
    if len(sizes) < 2:
        raise ValueError(
            f"`sizes` must name at least an input and an output layer. Got {tuple(sizes)}."
        )
    for i, size in enumerate(sizes):
        require_count(f"sizes[{i}]", size, least=1)
    require_floating_dtype("dtype", dtype)
    require_number("weight_scale", weight_scale, dtype=dtype)
    params = {}
    for i, (rows, columns) in enumerate(zip(sizes[:-1], sizes[1:], strict=True), start=1):
        key, subkey = jax.random.split(key)
        params[f"W{i}"] = jnp.asarray(weight_scale, dtype) * jax.random.normal(
            subkey, (rows, columns), dtype
        )
        params[f"b{i}"] = jnp.zeros(columns, dtype)
    return params


def predict(
    params: Params, x: Float[ArrayLike, "*batch inputs"], activation: Callable = jax.nn.sigmoid
) -> Float[Array, "*batch classes"]:
    """Scores (logits) of the network: affine layers with `activation` between them.

    Args:
      params: from `init_network`, or any dictionary with `W1`, ..., `Wn` and optional `b1`, ...,
        `bn`.
      x: one example or a batch of them; the last axis is the inputs.
      activation: applied after every layer but the last; the chapter's is the sigmoid.

    Returns:
      Unnormalised scores; `jax.nn.softmax` converts them to probabilities.

    Raises:
      TypeError: a parameter is not an array, or `x` does not hold numbers.
      ValueError: there is no `W1`, or a parameter has the wrong shape; the message names it.

    Source:
      the chapter, 4.5.1.

    Example:
      >>> predict({"W1": jnp.eye(2)}, jnp.array([0.6, 0.9]))
      Array([0.6, 0.9], dtype=float32)
    """
    if not isinstance(params, Mapping) or not all(isinstance(name, str) for name in params):
        raise TypeError(f"`params` must be a dictionary of arrays by name. Got {describe(params)}.")
    require_arrays("params", params)
    require_callable("activation", activation)
    y: Any = as_array("x", x)
    if not any(jnp.issubdtype(y.dtype, kind) for kind in (jnp.number, jnp.bool_)):
        raise TypeError(f"`x` must hold numbers. Got {describe(y)}.")
    depth = max(1, sum(name.startswith("W") for name in params))
    for i in range(1, depth + 1):
        y = _layer(params, i, y)
        if i < depth:
            y = as_array("activation(...)", activation(y))
    return y


def _layer(params: Params, i: int, x: Any) -> Any:
    """The affine layer `i`, applied to its input."""
    if f"W{i}" not in params:
        raise ValueError(f"`params` must hold {f'W{i}'!r}. Got {sorted(params)}.")
    weight: Any = params[f"W{i}"]
    bias: Any = params.get(f"b{i}")
    width = x.shape[-1] if x.ndim else None
    if getattr(weight, "ndim", None) != 2 or weight.shape[0] != width:
        raise ValueError(
            f"`params['W{i}']` must have shape ({width}, outputs), to fit its input. Got "
            f"{describe(weight)}."
        )
    y = x @ weight
    if bias is None:
        return y
    if getattr(bias, "shape", ()) != weight.shape[1:]:
        raise ValueError(
            f"`params['b{i}']` must have shape {weight.shape[1:]}. Got {describe(bias)}."
        )
    # The explicit broadcast also works under jax_numpy_rank_promotion="raise".
    return y + jnp.broadcast_to(bias, y.shape)


def loss(
    params: Params,
    x: Float[ArrayLike, "*batch inputs"],
    t: Num[ArrayLike, "*batch classes"] | Int[ArrayLike, "*batch"],
    activation: Callable = jax.nn.sigmoid,
) -> Float[Array, ""]:
    """Softmax cross-entropy of the network's scores, in nats, averaged over the batch.

    Args:
      params: as for `predict`.
      x: one example or a batch of them.
      t: one-hot targets with the shape of the scores, or class indices with one axis fewer.
      activation: as for `predict`.

    Returns:
      Scalar; `log(classes)` if all classes are equally probable.

    Raises:
      ValueError: shapes do not match, as for `predict` and `softmax_cross_entropy`.

    Source:
      the chapter, 4.4.2 and 4.5.1.

    Example:
      >>> loss({"W1": jnp.zeros((2, 3))}, jnp.array([0.6, 0.9]), jnp.array(2))
      Array(1.0986123, dtype=float32)
    """
    return softmax_cross_entropy(predict(params, x, activation), t)
