"""Functions traced in their own dtypes and evaluated in float64.

A difference quotient keeps three significant digits in float32 and ten in float64. Calling `f` on
float64 arguments would change the function: random draws differ, a scan whose carry starts in
float32 fails, and an internal cast goes back to float32. So `f` is traced once with its own dtypes,
and its program is evaluated with every narrower float, casts included, replaced by the wide dtype.
Operations that cannot be widened (host callbacks, bitcasts) keep their own dtypes.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.extend.core import primitives
from jaxtyping import PyTree

from jaxnn._jax import enable_x64
from jaxnn._programs import Traced
from jaxnn.numerical.interpret import (
    CONTROL_FLOW,
    Equation,
    Program,
    bind,
    called,
    equations,
    evaluate,
    is_foreign,
    is_program,
    make_jaxpr,
    named,
    prints,
    replaced,
    shard_map_parts,
    with_own_constants,
)

# These are defined on bits or draw random numbers, so they must run in the dtypes they were traced
# with.
OWN_DTYPE = named("bitcast_convert_type random_gamma rng_uniform")
# The platforms of accelerators that have no float64.
_WITHOUT_FLOAT64 = frozenset(["tpu", "METAL"])


def host() -> Any:
    """The CPU, if the accelerator that JAX uses by default has no float64; else None."""
    if jax.default_backend() not in _WITHOUT_FLOAT64:
        return None
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # `JAX_PLATFORMS` leaves it out
        return None


def wide_dtype() -> Any:
    """float64; float32 on an accelerator that has no float64."""
    config: Any = jax.config
    chosen = config.jax_default_device
    on_cpu = getattr(chosen, "platform", chosen) == "cpu"
    narrow = jax.default_backend() in _WITHOUT_FLOAT64 and not on_cpu
    return jnp.float32 if narrow else jnp.float64


@contextlib.contextmanager
def wide_arithmetic(dtype: Any) -> Iterator[None]:
    """Set up JAX so that `dtype` exists and products are exact to its rounding.

    By default a float32 product runs in TF32 on a GPU and in bfloat16 on a TPU. Programs are
    compiled even under `jax.disable_jit`: what was traced has nothing to step through. Random keys
    are used again at each step, and what was traced may promote: its literals have no dtype.
    """
    x64 = enable_x64(True) if dtype == jnp.float64 else contextlib.nullcontext()
    precise, compiled = jax.default_matmul_precision("highest"), jax.disable_jit(False)
    dtypes, ranks = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with x64, precise, compiled, dtypes, ranks, jax.debug_key_reuse(False):
        yield


def widen_leaf(leaf: Any, dtype: Any) -> Any:
    """A leaf, cast to the wide dtype if it is a narrower float or complex."""
    leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    wide = _widened_dtype(leaf.dtype, dtype)
    return leaf if wide == leaf.dtype else lax.convert_element_type(leaf, wide)


def widen_form(form: Any, dtype: Any) -> Any:
    """The form or type of an array, with the wide dtype in place of a narrower one."""
    return form.update(dtype=_widened_dtype(form.dtype, dtype))


class Evaluation(NamedTuple):
    """Evaluate programs in `dtype`, by `rules` if there is one; collect what was left narrow:
    names of primitives, and the dtypes that they kept.
    """

    dtype: Any
    rules: Mapping[core.Primitive, Callable]
    narrow: set[tuple[str, Any]]

    def __call__(self, program: Program, args: Sequence[Any]) -> list[Any]:
        """The outputs of a program for wide arguments."""
        return evaluate(program, args, self.step, self._widen)

    def widened(self, program: Program) -> Program:
        """A program that takes and returns the wide dtype in place of narrower ones."""
        avals = [widen_form(aval, self.dtype) for aval in program.in_avals]
        return make_jaxpr(lambda *args: self(program, args))(*avals)

    def step(self, eqn: Equation, inputs: list[Any]) -> list[Any]:
        """The outputs of one equation for wide inputs."""
        inputs = [self._widen(x) for x in inputs]
        if (rule := self.rules.get(eqn.primitive)) is not None:
            outputs = rule(eqn, inputs, self)
        elif eqn.primitive in prints():  # the run in the user's own dtypes prints
            outputs = []
        elif (program := called(eqn)) is not None:
            outputs = self(program, inputs)
        elif (mapped := shard_map_parts(eqn)) is not None:
            # Traced again on its mesh: its axis names mean nothing elsewhere.
            body = lambda *args: self(mapped.body, args)  # noqa: E731
            outputs = jax.shard_map(body, **mapped.options)(*inputs)
        else:
            outputs = self._bind(eqn, inputs)
        return [self._widen(x) for x in outputs]

    def _bind(self, eqn: Equation, inputs: list[Any]) -> list[Any]:
        """Bind a primitive without a rule: wide if it accepts that, else in its own dtypes."""
        narrow = [v for v in (*eqn.invars, *eqn.outvars) if self._is_narrow(v.aval)]
        if not narrow:
            return bind(eqn, inputs)
        if eqn.primitive not in OWN_DTYPE and not is_foreign(eqn.primitive):
            # JAX lists nowhere which primitives take float64, so try: binding checks the dtypes.
            with contextlib.suppress(TypeError, ValueError, NotImplementedError):
                params = {name: self._widened_param(value) for name, value in eqn.params.items()}
                return bind(eqn, inputs, **params)
        if any(self._is_narrow(v.aval) for v in eqn.invars):  # otherwise the output is a constant
            self.narrow.update((eqn.primitive.name, v.aval.dtype) for v in narrow)
        pairs = zip(inputs, eqn.invars, strict=True)
        return bind(
            eqn, [x if x.dtype == v.aval.dtype else x.astype(v.aval.dtype) for x, v in pairs]
        )

    def _widen(self, x: Any) -> Any:
        return widen_leaf(x, self.dtype)

    def _is_narrow(self, aval: Any) -> bool:
        return _widened_dtype(aval.dtype, self.dtype) != aval.dtype

    def _widened_param(self, value: Any) -> Any:
        """A parameter with its dtypes and programs widened and precision settings dropped."""
        if is_program(value):
            return self._widened_program(value)
        if isinstance(value, lax.Precision | lax.DotAlgorithm | lax.DotAlgorithmPreset):
            return None
        if isinstance(value, jnp.dtype | type) and jnp.issubdtype(value, jnp.inexact):
            return _widened_dtype(jnp.dtype(value), self.dtype)
        return value

    def _widened_program(self, program: Any) -> Any:
        """A program that a primitive takes as a parameter, widened. It is the same one each time,
        as JAX compiles a primitive again for a new one.
        """
        if self.rules is not RULES:
            return replaced(program, self.widened)
        known = _widened_programs.setdefault(program, {})
        if self.dtype not in known:
            known[self.dtype] = replaced(program, self.widened)
        return known[self.dtype]


_widened_programs: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()
Rules = Mapping[core.Primitive, Callable] | None


def widen(f: Callable, args: Sequence[Any], dtype: Any, rules: Rules = None) -> Callable:
    """Trace `f` at `args`, to be evaluated in `dtype`.

    Args:
      f: a traceable function of `args`.
      args: example arguments; their dtypes and shapes determine the trace.
      dtype: the floating dtype that replaces narrower ones.
      rules: `(equation, inputs, evaluation) -> outputs`, overrides of how primitives are
        evaluated.

    Returns:
      A function of arguments like those of the trace, narrow or wide, that returns what `f` does,
      widened. Call it inside `wide_arithmetic(dtype)`.
    """
    # Trace a temporary function whose constants are copies: for each NumPy array that a living
    # trace closes over, JAX remembers its precision, and a later trace under the other x64 setting
    # would reuse it.
    program, shapes = make_jaxpr(lambda *args: f(*args), return_shape=True)(*args)
    program = with_own_constants(program)
    return lambda *args: _evaluated(program, shapes, args, dtype, rules, set())


def widened(
    traced: Traced, dtype: Any, rules: Rules = None, narrow: set[tuple[str, Any]] | None = None
) -> Callable[..., PyTree]:
    """Evaluate a traced function in `dtype`, given its constants and its arguments.

    Call the result inside `wide_arithmetic(dtype)`. `rules` is as for `widen`. A call adds to
    `narrow` the primitives that keep a narrow dtype, such as host callbacks, and that dtype.
    """
    narrow = set() if narrow is None else narrow

    def call(consts, *args):
        program = core.ClosedJaxpr(traced.jaxpr, list(consts))
        return _evaluated(program, traced.shapes, args, dtype, rules, narrow)

    return call


def _evaluated(
    program: Program, shapes: PyTree, args: Any, dtype: Any, rules: Rules, narrow: set
) -> PyTree:
    leaves = [widen_leaf(leaf, dtype) for leaf in jax.tree.leaves(args)]
    outputs = Evaluation(dtype, {**RULES, **(rules or {})}, narrow)(program, leaves)
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs)


def coarsest(dtypes: Iterable[Any]) -> float:
    """The largest relative rounding error of those dtypes that are narrower than float32, or 0."""
    kinds = [jnp.finfo(dtype) for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    return max((float(kind.eps) for kind in kinds if kind.bits < 32), default=0.0)


def is_wide(program: Program, dtype: Any) -> bool:
    """Whether no value of a program is narrower than `dtype`."""
    kinds = {v.aval.dtype for eqn in equations(program) for v in (*eqn.invars, *eqn.outvars)}
    return all(_widened_dtype(kind, dtype) == kind for kind in kinds)


@functools.cache
def _widened_dtype(dtype: Any, wide: Any) -> Any:
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < jnp.finfo(wide).bits:
        return jnp.dtype(wide)
    if jnp.issubdtype(dtype, jnp.complexfloating) and wide == jnp.float64:
        return jnp.dtype(jnp.complex128)
    return dtype


def _reduce_precision(eqn: Equation, inputs: list[Any], evaluation: Evaluation) -> list[Any]:
    """Skip the rounding to a narrower format, as all narrowing casts here do."""
    return inputs


RULES: Mapping[core.Primitive, Callable] = {
    primitives.reduce_precision_p: _reduce_precision,
    **CONTROL_FLOW,
}
