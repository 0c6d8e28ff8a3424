"""Does a wrong gradient come from the phases of complex singular vectors or eigenvectors?

Each such vector is determined up to a factor of modulus 1, and JAX differentiates for one choice of
it. If other factors change the value of the function, its gradient is a matter of that choice.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives

from jaxnn.checking.evidence import Verdict, same_value
from jaxnn.checking.measure import Checked
from jaxnn.numerical.float64 import RULES, Evaluation, wide_arithmetic, wide_dtype, widen_leaf
from jaxnn.numerical.interpret import Equation, bind, equations

_DECOMPOSITIONS = (primitives.svd_p, primitives.eigh_p, primitives.eig_p)


def applies(checked: Checked) -> bool:
    """Whether a leaf differs, and the function computes complex vectors of a decomposition."""
    if not (checked.is_automatic and checked.wrong):
        return False
    return any(
        eqn.primitive in _DECOMPOSITIONS and len(eqn.outvars) > 1 and _is_complex(eqn)
        for eqn in equations(checked.programs.program)
    )


def ask(checked: Checked) -> bool:
    """Whether other phases change the value."""
    dtype, program = wide_dtype(), checked.programs.program
    turned = Evaluation(dtype, {**RULES, **dict.fromkeys(_DECOMPOSITIONS, _turned)}, set())
    with wide_arithmetic(dtype):
        inputs = [widen_leaf(x, dtype) for x in checked.values]
        value = float(jax.jit(lambda inputs: turned(program, inputs)[0])(inputs))
    return not same_value(checked.centre, value, float(jnp.finfo(dtype).eps))


def say(checked: Checked, is_free: bool) -> Checked:
    """The results, with wrong leaves "unresolved" unless another rule is wrong, too."""
    if not is_free:
        return checked
    names = {primitive.name for primitive in _DECOMPOSITIONS}  # a user's function may have one
    rules = tuple(rule for rule in checked.rules if rule.where or rule.name not in names)
    checked = checked._replace(rules=rules)
    if rules:
        return checked
    hint = (
        "the function depends on the phases of complex singular vectors or eigenvectors, which "
        "are arbitrary: no derivative is right for every choice"
    )
    return checked.excusing(lambda leaf: leaf.verdict is Verdict.DIFFERS, hint)


def _is_complex(eqn: Equation) -> bool:
    return any(jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in eqn.outvars)


def _turned(eqn: Equation, inputs: list, _: Evaluation) -> list:
    """The outputs of a decomposition, with complex vectors turned by different phases."""
    outputs = bind(eqn, inputs)
    if not _is_complex(eqn):
        return outputs
    phases = jnp.asarray(np.exp(1j * np.arange(1, max(inputs[0].shape[-2:]) + 1)))
    if eqn.primitive is primitives.svd_p:
        s, u, vh = outputs  # the singular values alone are real
        back = jnp.conj(phases[: vh.shape[-2]])[:, None]
        return [s, u * phases[: u.shape[-1]], vh * back]
    return [y * phases if y.ndim == inputs[0].ndim else y for y in outputs]
