"""MuJoCo MJX 3.17.0: the derivative of the distance to a cylinder with respect to its size is 0.

    pip install mujoco-mjx==3.17.0
    jaxnn check examples/found/mjx_cylinder.py

Its JVP rule leaves out the tangent of `size`. Beside the cylinder, the distance decreases by 1 for
each unit of the radius.
"""

import jax.numpy as jnp
from mujoco.mjx._src.collision_sdf import _cylinder  # pyright: ignore[reportMissingImports]

SIZE = jnp.array([0.5, 1.0])


def check_distance_by_size(size=SIZE):
    """The distance of a point beside the cylinder."""
    return _cylinder(jnp.array([1.0, 0.5, 0.2]), size)
