"""Losses: how far the output of a network is from its target.

All of them follow one rule: the last axis is the classes, the loss of an example is a sum over it,
and the loss of a batch is the mean over its examples. Targets are one-hot (any array with the shape
of the output) or class indices (integers, one axis fewer). Under `jit` a class index out of range
cannot raise; the result is NaN instead.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Num

from jaxnn._validate import (
    as_array,
    describe,
    is_concrete,
    require_classes,
    require_number,
)
from jaxnn.data import one_hot


def mean_squared_error(
    y: Float[ArrayLike, "*batch classes"],
    t: Num[ArrayLike, "*batch classes"] | Int[ArrayLike, "*batch"],
) -> Float[Array, ""]:
    """Half the sum of squared differences over the last axis, averaged over the batch.

    E = 1/2 sum_k (y_k - t_k)^2, mean over examples. The 1/2 makes dE/dy = y - t.

    Args:
      y: outputs; the last axis is the classes (or the components of a regression).
      t: targets with the shape of `y`, or class indices with one axis fewer.

    Returns:
      Scalar in the squared unit of `y`, with the dtype of `y`; a perfect prediction gives 0.

    Raises:
      ValueError: the shapes do not match, the batch is empty, or (outside `jit`) a class index is
        out of range.
      TypeError: `y` is not floating-point.

    Source:
      the chapter, 4.2.1.

    Example:
      >>> mean_squared_error(jnp.array([0.1, 0.8, 0.1]), jnp.array(1))
      Array(0.03, dtype=float32)
    """
    y, t = _require_loss_arguments("y", y, t)
    if t.shape != y.shape:
        t = one_hot(t, y.shape[-1], y.dtype)
    return jnp.mean(0.5 * jnp.sum((y - t) ** 2, axis=-1))


# Probabilities may exceed [0, 1] by this much, from rounding error or a finite-difference step.
PROBABLE = 0.01


def cross_entropy_error(
    y: Float[ArrayLike, "*batch classes"],
    t: Num[ArrayLike, "*batch classes"] | Int[ArrayLike, "*batch"],
    delta: float | Float[Array, ""] = 1e-7,
) -> Float[Array, ""]:
    """Cross-entropy of probabilities: minus the sum over classes of t log(y + delta), averaged over
    the batch.

    Args:
      y: probabilities (after softmax); the last axis is the classes.
      t: one-hot (or any distribution) with the shape of `y`, or class indices with one axis fewer.
      delta: keeps the logarithm and its gradient finite at y = 0.

    Returns:
      Scalar in nats with the dtype of `y`: about 0 if the prediction is perfect, `log(classes)` if
      all classes are equally probable.

    Raises:
      ValueError: the shapes do not match, the batch is empty, or (outside `jit`) a class index is
        out of range, or `y` does not hold probabilities.
      TypeError: `y` is not floating-point.

    Source:
      the chapter, 4.2.2 and, for a batch, 4.2.4.

    Example:
      >>> cross_entropy_error(jnp.array([0.1, 0.6, 0.3]), jnp.array(1)).round(4)
      Array(0.5108, dtype=float32)
    """
    y, t = _require_loss_arguments("y", y, t)
    require_number("delta", delta, dtype=y.dtype)
    if is_concrete(delta) and delta < 0:
        raise ValueError(f"`delta` must be at least 0. Got {float(delta)!r}.")
    if is_concrete(y) and (jnp.any(y < -PROBABLE) or jnp.any(y > 1 + PROBABLE)):
        wrong = float(y.ravel()[jnp.argmax(abs(y - 0.5))])
        raise ValueError(
            "`y` must be probabilities, from 0 to 1; `softmax_cross_entropy` takes scores. Got "
            f"{wrong:.4g}."
        )
    return jnp.mean(-_expected(jnp.log(y + jnp.asarray(delta, y.dtype)), t))


def softmax_cross_entropy(
    logits: Float[ArrayLike, "*batch classes"],
    t: Num[ArrayLike, "*batch classes"] | Int[ArrayLike, "*batch"],
) -> Float[Array, ""]:
    """Cross-entropy of softmax(logits): minus the sum of t log_softmax(logits), averaged over the
    batch.

    The same loss as `cross_entropy_error(softmax(logits), t)`, without its delta and its rounding
    error: the logarithm is taken before the exponential can underflow. The value and the gradient,
    softmax(logits) - t, are finite for all finite logits.

    Args:
      logits: unnormalised scores; the last axis is the classes. -inf (an excluded class) is allowed
        where t is 0.
      t: one-hot (or any distribution) with the shape of `logits`, or class indices with one axis
        fewer.

    Returns:
      Scalar in nats with the dtype of `logits`: 0 if the prediction is perfect, `log(classes)` if
      all classes are equally probable.

    Raises:
      ValueError: the shapes do not match, the batch is empty, or (outside `jit`) a class index is
        out of range.
      TypeError: `logits` is not floating-point.

    Source:
      Blanchard, Higham and Higham, IMA J. Numer. Anal. 41 (2021) 2311, on the logarithm of a
      sum of exponentials without overflow.

    Example:
      >>> softmax_cross_entropy(jnp.array([0.0, 0.0]), jnp.array(1))
      Array(0.6931472, dtype=float32)
    """
    logits, t = _require_loss_arguments("logits", logits, t)
    return jnp.mean(-_expected(jax.nn.log_softmax(logits), t))


def accuracy(
    y: Float[ArrayLike, "*batch classes"],
    t: Num[ArrayLike, "*batch classes"] | Int[ArrayLike, "*batch"],
) -> Float[Array, ""]:
    """Fraction of examples whose largest output is at the true class. Not a loss to train on: its
    gradient is zero almost everywhere.

    Args:
      y: scores or probabilities; the last axis is the classes.
      t: one-hot with the shape of `y`, or class indices with one axis fewer.

    Returns:
      Scalar between 0 and 1, mean over the batch, float32.

    Raises:
      ValueError: the shapes do not match, the batch is empty, or (outside `jit`) a class index is
        out of range.
      TypeError: `y` is not floating-point.

    Source:
      the chapter, 4.2.5, on why accuracy is not a loss.

    Example:
      >>> accuracy(jnp.array([[0.9, 0.1], [0.8, 0.2]]), jnp.array([0, 1]))
      Array(0.5, dtype=float32)
    """
    y, t = _require_loss_arguments("y", y, t)
    if t.shape == y.shape:
        t = jnp.argmax(t, axis=-1)
    return jnp.mean(jnp.argmax(y, axis=-1) == t, dtype=jnp.float32)


def _require_loss_arguments(name: str, y: Any, t: Any) -> tuple[Array, Array]:
    """Outputs and targets as arrays of matching shapes."""
    given, y, t = t, as_array(name, y), as_array("t", t)
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise TypeError(f"`{name}` must be floating-point. Got {describe(y)}.")
    if y.ndim == 0 or y.size == 0:
        raise ValueError(
            f"`{name}` must have at least one example and one class. Got shape {y.shape}."
        )
    if t.shape != y.shape and t.shape != y.shape[:-1]:
        raise ValueError(
            f"`t` must have shape {y.shape} (one-hot) or {y.shape[:-1]} (class indices), to fit "
            f"`{name}`. Got shape {t.shape}."
        )
    if not any(jnp.issubdtype(t.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise TypeError(f"`t` must be real, or class indices (integers). Got {describe(t)}.")
    if t.shape == y.shape:
        return y, t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(y.dtype)
    if not jnp.issubdtype(t.dtype, jnp.integer):
        raise TypeError(
            f"`t` must be class indices (integers) if it has one axis fewer than `{name}`. Got "
            f"{describe(t)}."
        )
    require_classes("t", given, y.shape[-1])  # before conversion, which would truncate 64 bits
    return y, t


def _expected(log_y: Array, t: Array) -> Array:
    """Sum over classes of t log_y; a class with t = 0 adds nothing, even if log_y is -inf."""
    if t.shape == log_y.shape:
        return jnp.sum(jnp.where(t == 0, 0, t * jnp.where(t == 0, 0, log_y)), axis=-1)
    classes = log_y.shape[-1]
    picked = jnp.take_along_axis(log_y, jnp.clip(t, 0, classes - 1)[..., None], axis=-1)[..., 0]
    return jnp.where((t >= 0) & (t < classes), picked, np.asarray(np.nan, log_y.dtype))
