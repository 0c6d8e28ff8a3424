"""What JAX's versions have in different places."""

import jax
import jax.experimental

VERSION = jax.__version_info__
enable_x64 = getattr(jax if VERSION >= (0, 8) else jax.experimental, "enable_x64")  # noqa: B009
