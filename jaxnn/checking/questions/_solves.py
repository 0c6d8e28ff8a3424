"""Whether the backward pass of a `custom_linear_solve` solves the transposed system.

Its matrix and its solver's factors are inputs of one equation but belong together, so moving them
separately, as for other rules, would tell nothing. If y is the result of the transposed solver for
the cotangents c, then A^T y = c.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.checking.evidence import Verdict, relative_error
from jaxnn.checking.findings import RuleReport, SourceLine
from jaxnn.checking.further import LOOSE
from jaxnn.checking.tape import Record, Site
from jaxnn.numerical.float64 import RULES, Evaluation, wide_arithmetic, widen_leaf
from jaxnn.numerical.interpret import linear_solve_parts

# The position of the right-hand side among the arguments of `custom_linear_solve`.
RHS = 1


def wrong_solve(site: Site, record: Record, dtype: Any) -> RuleReport | None:
    """A report on the transposed solver of a site; None if it is correct to its tolerance."""
    run = Evaluation(dtype, RULES, set())
    with wide_arithmetic(dtype):
        inputs = [widen_leaf(record.values[slot], dtype) for slot in site.inputs]
        parts = linear_solve_parts(site.eqn.params, inputs)
        cts = [record.cotangents.get(s, jnp.zeros_like(record.values[s])) for s in site.outputs]
        y = run(parts.transposed, [*parts.transposed_consts, *cts])
        product = lambda *x: run(parts.matvec, [*parts.matvec_consts, *x])  # noqa: E731
        back = jax.vjp(product, *cts)[1](y)
    flat = lambda arrays: np.concatenate([np.ravel(x) for x in arrays])  # noqa: E731
    error = relative_error(flat(back), flat(cts))
    if not math.isfinite(error) or error <= LOOSE:
        return None
    line = SourceLine.of(site.line)
    return RuleReport(site.name, line, "transpose", Verdict.DIFFERS, RHS, error, where="")
