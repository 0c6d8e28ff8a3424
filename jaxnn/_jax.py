"""What JAX's versions have in different places."""

import jax
import jax.experimental

VERSION = jax.__version_info__
# XLA of JAX 0.10 makes one loop on a CPU of a sum of arrays, a product with it and a reduction, and
# computes the sum anew for each entry of the product: 20 times as slow for 8 rows by 2,200.
OF_VALUES = {"xla_cpu_experimental_ynn_fusion_type": ""} if VERSION[:2] == (0, 10) else None
enable_x64 = getattr(jax if VERSION >= (0, 8) else jax.experimental, "enable_x64")  # noqa: B009
