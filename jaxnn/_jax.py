"""What JAX's versions have in different places, and its options by their variables."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.experimental

VERSION = jax.__version_info__
# XLA of JAX 0.10 makes one loop on a CPU of a sum of arrays, a product with it and a reduction, and
# computes the sum anew for each entry of the product: 20 times as slow for 8 rows by 2,200.
OPTIMISED: dict[str, Any] = (
    {"xla_cpu_experimental_ynn_fusion_type": ""} if VERSION[:2] == (0, 10) else {}
)
UNOPTIMISED = OPTIMISED | {"xla_backend_optimization_level": 0}
if VERSION < (0, 11):  # later versions have no other emitters
    UNOPTIMISED |= {"xla_cpu_use_fusion_emitters": False}
enable_x64 = getattr(jax if VERSION >= (0, 8) else jax.experimental, "enable_x64")  # noqa: B009

_TRUE = ("y", "yes", "t", "true", "on", "1")


def set_from(environment: Mapping[str, str]) -> None:
    """Set the options of JAX that these environment variables name, as importing JAX does."""
    for variable, text in environment.items():
        if (option := variable.lower()) in jax.config.values:
            now = jax.config.values[option]
            kind = type(now) if isinstance(now, int | float) else str
            jax.config.update(option, text.lower() in _TRUE if kind is bool else kind(text))
