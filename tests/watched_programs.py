"""What a program must show when it is watched, for the tests of programs with and without other
libraries. A program is a function of a unit, and returns what it computed.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import watching


def unit(factor):
    """tanh, with a rule that is off by a factor."""
    f = jax.custom_vjp(lambda x: jnp.tanh(x))
    f.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (factor * g * (1 - jnp.tanh(x) ** 2),))
    return f


def require_watched(program):
    """Watching changes no bit of the results, finds nothing in a right program, and names the rule
    of a wrong unit.
    """
    alone = program(unit(1.0))
    with watching() as right:
        watched = program(unit(1.0))
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), alone, watched)
    assert all(jax.tree.leaves(same)), "the results are equal to the bit"
    assert right.report.exit_code == 0, str(right.report)
    with watching() as wrong:
        program(unit(1.05))
    assert wrong.report.exit_code == 1 and not wrong.report, str(wrong.report)
    first = wrong.report.places[0].reports[0]
    assert first.rules[0].rule.file.endswith("watched_programs.py"), str(wrong.report)
    assert "factor * g" in first.rules[0].rule.text
