"""The tape of a program: the inputs and outputs of its equations in forward and backward pass."""

from jaxnn.checking.tape.inside import Inside, insides, tape_of
from jaxnn.checking.tape.layout import Site, avals_of, is_inexact
from jaxnn.checking.tape.walk import (
    Cut,
    Place,
    Record,
    Tape,
    arithmetic,
    evaluated,
    of_active,
    seeds_of,
)

__all__ = [
    "Cut",
    "Inside",
    "Place",
    "Record",
    "Site",
    "Tape",
    "arithmetic",
    "avals_of",
    "evaluated",
    "insides",
    "is_inexact",
    "of_active",
    "seeds_of",
    "tape_of",
]
