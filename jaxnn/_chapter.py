"""The chapter's examples, which its numbers and its pictures share."""

from typing import Any

# Ten outputs for a picture of a 2, once confident that it is a 2, once that it is a 7.
SAYS_TWO = (0.1, 0.05, 0.6, 0.0, 0.05, 0.1, 0.0, 0.1, 0.0, 0.0)
SAYS_SEVEN = (0.1, 0.05, 0.1, 0.0, 0.05, 0.1, 0.0, 0.6, 0.0, 0.0)
# The smallest network: two inputs, three scores, fixed weights.
WEIGHTS = ((0.47355232, 0.9977393, 0.84668094), (0.85557411, 0.03563661, 0.69422093))
INPUT = (0.6, 0.9)
TARGET = (0, 0, 1)


def braking(t: Any) -> Any:
    """The way in km of a car that does 300 km in 3 hours, ever slower."""
    return 150.0 * t - 50.0 * t**2 / 3
