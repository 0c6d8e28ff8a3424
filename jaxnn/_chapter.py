"""The chapter's examples, shared by its numbers and its pictures."""

from typing import Any

# Outputs for an image of a 2: first, a confident 2; second, a confident 7.
SAYS_TWO = (0.1, 0.05, 0.6, 0.0, 0.05, 0.1, 0.0, 0.1, 0.0, 0.0)
SAYS_SEVEN = (0.1, 0.05, 0.1, 0.0, 0.05, 0.1, 0.0, 0.6, 0.0, 0.0)
# The smallest network: two inputs, three scores, fixed weights.
WEIGHTS = ((0.47355232, 0.9977393, 0.84668094), (0.85557411, 0.03563661, 0.69422093))
INPUT = (0.6, 0.9)
TARGET = (0, 0, 1)


def braking(t: Any) -> Any:
    """The distance in km of a car that brakes steadily and covers 300 km in 3 hours."""
    return 150.0 * t - 50.0 * t**2 / 3
