"""All that is known here of JAX's programs (jaxprs): how one is walked, what its calls, loops and
branches hold, and how an equation is bound again.

JAX promises no compatibility in these matters, and its releases do differ; each fact that this
module relies on is stated in `tests/test_jax.py`. Primitives are compared as objects, never by
name: a user's own primitive may be called anything.
"""

import functools
import itertools
import math
import os
import pathlib
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.experimental import io_callback
from jax.extend import core, source_info_util
from jax.extend.core import primitives

from jaxnn._validate import is_key

# Lines that JAX names are where a function is written: not its own code, which it leaves out
# anyway, nor the parts of this package that only pass functions on.
for _part in ("checking/", "numerical/", "_arguments.py", "_programs.py", "descent.py"):
    source_info_util.register_exclusion(str(pathlib.Path(__file__).parents[1] / _part))

Program = Any  # a ClosedJaxpr; since JAX 0.12 one class with Jaxpr
Equation = Any  # a JaxprEqn, whose variables have shapes and dtypes

# Primitives that stand for the program they hold, and the parameter that holds it. For a value,
# custom derivative rules play no part.
_CALLS = {
    primitives.jit_p: "jaxpr",
    primitives.remat_p: "jaxpr",
    primitives.call_p: "call_jaxpr",
    primitives.closed_call_p: "call_jaxpr",
    primitives.custom_jvp_call_p: "call_jaxpr",
    primitives.custom_vjp_call_p: "call_jaxpr",
}
_NUMBER = jax.ShapeDtypeStruct((), np.float32)
CUSTOM_RULES = frozenset([primitives.custom_jvp_call_p, primitives.custom_vjp_call_p])
# Primitives whose derivative is nothing, by JAX's rules: no cotangent passes.
FLAT = frozenset(
    getattr(primitives, f"{name}_p")
    for name in "ceil floor nextafter round sign stop_gradient".split()
)
# Bytes of an array that is still compared by value.
LARGE = 4096
LOOPS = frozenset([primitives.while_p, primitives.scan_p])
# Primitives whose outputs have, at each place, what their inputs make of that place alone.
ELEMENTWISE = frozenset(
    getattr(primitives, f"{name}_p")
    for name in (
        "abs acos acosh add and asin asinh atan atan2 atanh cbrt ceil clamp complex conj "
        "convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor "
        "ge gt imag integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg "
        "nextafter not or pow real reduce_precision rem round rsqrt select_n sign sin sinh sqrt "
        "square stop_gradient sub tan tanh xor"
    ).split()
)
# Primitives whose output has the entries of their input in their order, where it has as many.
_IN_ORDER = frozenset(
    getattr(primitives, f"{name}_p")
    for name in "broadcast_in_dim convert_element_type copy reshape squeeze".split()
)


class Scan(NamedTuple):
    """The parts of a scan: its body, its inputs by what they are to it, and its options."""

    body: Program
    consts: list[Any]
    carry: list[Any]
    xs: list[Any]
    options: dict[str, Any]


class While(NamedTuple):
    """The parts of a while loop: two programs, the constants of each, and what is carried."""

    condition: Program
    body: Program
    condition_consts: list[Any]
    body_consts: list[Any]
    carry: list[Any]


class LinearSolve(NamedTuple):
    """The parts of a `custom_linear_solve`: A as a function, a solver, and the right-hand sides."""

    matvec: Program
    solve: Program
    matvec_consts: list[Any]
    solve_consts: list[Any]
    rhs: list[Any]


class ShardMap(NamedTuple):
    """The parts of a `shard_map`: what each device runs, and the arguments of `jax.shard_map`."""

    body: Program
    options: dict[str, Any]


def opened(program: Program) -> tuple[core.Jaxpr, Sequence[Any]]:
    """A program's jaxpr, and its constants."""
    return getattr(program, "jaxpr", program), getattr(program, "consts", ())


def evaluate(
    program: Program,
    args: Sequence[Any],
    step: Callable[[Equation, list[Any]], Sequence[Any]],
    lift: Callable[[Any], Any] = lambda constant: constant,
) -> list[Any]:
    """Walk a program once, in any arithmetic.

    Args:
      program: what to evaluate.
      args: its inputs, whatever stands for an array in this arithmetic.
      step: `(equation, inputs) -> outputs`.
      lift: makes an input out of a constant or a literal.

    Returns:
      The outputs.
    """
    jaxpr, consts = opened(program)
    values = dict(zip(jaxpr.constvars, map(lift, consts), strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))

    def read(atom):
        return lift(atom.val) if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        with eqn.ctx.manager:  # what the user wrote around the operation: compute_on, a mesh
            outputs = step(eqn, [read(atom) for atom in eqn.invars])
        values |= dict(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def bind(eqn: Equation, inputs: Sequence[Any], **changed: Any) -> list[Any]:
    """The outputs of an equation's primitive for other inputs, and parameters where `changed`."""
    with eqn.ctx.manager:
        params = eqn.primitive.get_bind_params(eqn.params | changed)
        outputs = eqn.primitive.bind(*inputs, **params)
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def called(eqn: Equation) -> Program | None:
    """The program that an equation stands for, or None if it is no call."""
    if (name := _CALLS.get(eqn.primitive)) is not None:
        return eqn.params[name]
    composite: Any = eqn.params.get("_prim")  # since JAX 0.12, what `custom_root` becomes
    if not hasattr(composite, "expand"):
        return None

    def expanded(*leaves):
        return jax.tree.leaves(composite.expand(*jax.tree.unflatten(composite.in_tree, leaves)))

    avals = [jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype) for atom in eqn.invars]
    return jax.make_jaxpr(expanded)(*avals)


def equations(program: Program) -> Iterator[Equation]:
    """The equations of a program and of all programs inside it."""
    for eqn in opened(program)[0].eqns:
        yield eqn
        for inner in _programs_in(list(eqn.params.values())):
            yield from equations(inner)


def is_program(value: Any) -> bool:
    """Whether an equation's parameter is a program."""
    return hasattr(getattr(value, "jaxpr", value), "eqns")


def replaced(program: Program, change: Callable[[Program], Program]) -> Program:
    """A parameter's program changed, in the form that the parameter has: with constants or without.

    One that takes its constants from elsewhere stays as it is.
    """
    if isinstance(program, core.ClosedJaxpr):
        return change(program)
    if program.constvars:
        return program
    return change(core.ClosedJaxpr(program, ())).jaxpr


def pruned(program: Program) -> Program:
    """The same program without the equations that no output needs."""
    jaxpr, consts = opened(program)
    needed, needful = set(_variables(jaxpr.outvars)), []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            needed.update(_variables(eqn.invars))
            needful.append(eqn)
    return core.ClosedJaxpr(jaxpr.replace(eqns=needful[::-1]), consts)


def with_own_constants(program: Program) -> Program:
    """The same program with copies of the NumPy arrays that it closes over."""
    jaxpr, consts = opened(program)
    pairs = zip(jaxpr.constvars, consts, strict=True)
    own: Callable[[Any, Any], Any] = lambda v, c: np.array(c, v.aval.dtype)  # noqa: E731
    copies = [own(v, c) if isinstance(c, np.ndarray) else c for v, c in pairs]
    return core.ClosedJaxpr(jaxpr, copies)


def outputs_that_change(program: Program, changing: Sequence[bool]) -> list[bool]:
    """Which outputs of a program depend on an input that changes."""
    jaxpr, _ = opened(program)
    reached = {v for v, changes in zip(jaxpr.invars, changing, strict=True) if changes}
    for eqn in jaxpr.eqns:
        if reached.intersection(_variables(eqn.invars)):
            reached.update(eqn.outvars)
    return [bool(reached.intersection(_variables([v]))) for v in jaxpr.outvars]


def branches(eqn: Equation) -> Sequence[Program]:
    """The programs that a `cond` chooses from."""
    return eqn.params["branches"]


def fingerprint(program: Program) -> Hashable:
    """A key that two programs share if they compute the same: equations, shapes, parameters.

    Left out are the values of constants, lines of code, and derivative rules, which play no part in
    a value.

    Raises:
      TypeError: something in the program cannot be compared by value: a host callback, say.
    """
    jaxpr, _ = opened(program)
    numbers: dict[Any, int] = {}

    def atom(x):
        if isinstance(x, core.Literal):
            value = np.asarray(x.val)
            return x.aval, value.dtype.str, value.tobytes()
        return numbers.setdefault(x, len(numbers))

    def given(variables):
        return tuple((atom(v), v.aval) for v in variables)

    inputs = given(jaxpr.constvars), given(jaxpr.invars)
    body = tuple(
        (
            eqn.primitive,
            tuple(map(atom, eqn.invars)),
            given(eqn.outvars),
            _fingerprint_of_parameters(eqn),
            _fingerprint_of_context(eqn.ctx),
        )
        for eqn in jaxpr.eqns
    )
    return inputs, body, tuple(map(atom, jaxpr.outvars))


def without_rules(program: Program) -> Program:
    """The same program with its custom rules gone: their functions are evaluated in its place."""
    if not any(eqn.primitive in CUSTOM_RULES for eqn in equations(program)):
        return program

    def step(eqn, inputs):
        if eqn.primitive in CUSTOM_RULES:
            return evaluate(called(eqn), inputs, step)
        changed = {
            name: jax.tree.map(inner, value, is_leaf=is_program)
            for name, value in eqn.params.items()
            if any(map(is_program, jax.tree.leaves(value, is_leaf=is_program)))
        }
        return bind(eqn, inputs, **changed)

    def inner(value):
        return replaced(value, without_rules) if is_program(value) else value

    avals = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in program.in_avals
    ]
    jaxpr, consts = opened(program)
    plain = lambda consts, args: evaluate(core.ClosedJaxpr(jaxpr, consts), args, step)  # noqa: E731
    of_consts = [jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in consts]
    traced = jax.make_jaxpr(plain)(of_consts, avals)
    n = len(consts)
    bare = traced.jaxpr.replace(
        constvars=[*traced.jaxpr.constvars, *traced.jaxpr.invars[:n]],
        invars=traced.jaxpr.invars[n:],
    )
    return core.ClosedJaxpr(bare, [*traced.consts, *consts])


def same_program(first: Program, second: Program) -> bool:
    """Whether two traces of a function are of one function: alike in equations and constants."""
    consts = [opened(program)[1] for program in (first, second)]
    if len(consts[0]) != len(consts[1]) or not all(map(_same_array, *consts)):
        return False
    pairs = itertools.zip_longest(equations(first), equations(second))
    return all(a is not None and b is not None and _same_equation(a, b) for a, b in pairs)


def scan_sizes(params: Mapping[str, Any]) -> tuple[int, int]:
    """How many of a scan's inputs are constants, and how many are carried."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # since JAX 0.12
    return len(consts), len(carry)


def scan_parts(params: Mapping[str, Any], inputs: Sequence[Any]) -> Scan:
    """A scan's parameters and inputs, sorted."""
    n, m = scan_sizes(params)
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    inputs = list(inputs)
    return Scan(params["jaxpr"], inputs[:n], inputs[n : n + m], inputs[n + m :], options)


def only_carries(eqn: Equation) -> bool:
    """Whether a scan neither takes nor gives anything step by step: a `fori_loop`."""
    n, m = scan_sizes(eqn.params)
    return n + m == len(eqn.invars) and m == len(eqn.outvars)


def while_parts(params: Mapping[str, Any], inputs: Sequence[Any]) -> While:
    """A while loop's parameters and inputs, sorted."""
    n, m = params["cond_nconsts"], params["body_nconsts"]
    inputs = list(inputs)
    programs = params["cond_jaxpr"], params["body_jaxpr"]
    return While(*programs, inputs[:n], inputs[n : n + m], inputs[n + m :])


def linear_solve_parts(params: Mapping[str, Any], inputs: Sequence[Any]) -> LinearSolve:
    """A linear solve's parameters and inputs, sorted."""
    lengths, programs, inputs = params["const_lengths"], params["jaxprs"], list(inputs)
    start = lengths.matvec + lengths.vecmat
    consts = inputs[: lengths.matvec], inputs[start : start + lengths.solve]
    return LinearSolve(programs.matvec, programs.solve, *consts, inputs[sum(lengths) :])


def shard_map_parts(eqn: Equation) -> ShardMap | None:
    """The parts of a `shard_map`, or None if the equation is another."""
    if eqn.primitive is not _private("shard_map", "shard_map_p"):
        return None
    names = {"mesh": "mesh", "check_vma": "check_vma", "newly_manual_axes": "axis_names"}
    options = {argument: eqn.params[name] for name, argument in names.items()}
    options |= {"in_specs": tuple(eqn.params["in_specs"])}
    options |= {"out_specs": list(eqn.params["out_specs"])}
    return ShardMap(eqn.params["jaxpr"], options)


def is_end_to_end(eqn: Equation) -> bool:
    """Whether an equation gives the entries of its inputs end to end, as they are, and no more."""
    given, made = eqn.invars[0].aval, eqn.outvars[0].aval
    if eqn.primitive is primitives.concatenate_p:
        return math.prod(made.shape[: eqn.params["dimension"]]) == 1
    if eqn.primitive is _private("lax.lax", "stack_p"):
        return math.prod(made.shape[: eqn.params["axis"]]) == 1
    if eqn.primitive is primitives.reshape_p and eqn.params["dimensions"]:
        return False
    return eqn.primitive in _IN_ORDER and (made.size, made.dtype) == (given.size, given.dtype)


def is_foreign(primitive: core.Primitive) -> bool:
    """Whether a primitive's code is not JAX's: a host callback, a foreign function, a kernel."""
    kernel = _private("pallas.pallas_call", "pallas_call_p")
    return primitive is kernel or primitive in _callbacks()


@functools.cache
def prints() -> frozenset[core.Primitive]:
    """The primitives of `jax.debug.callback` and `jax.debug.print`, which give nothing back."""
    return _first_primitives(
        lambda x: jax.debug.callback(lambda x: None, x), lambda x: jax.debug.print("{}", x)
    )


def source(eqn: Equation) -> tuple[str, str]:
    """The name of the function that a call with a custom rule stands for, and its file and line."""
    name, _, place = opened(called(eqn))[0].debug_info.func_src_info.partition(" at ")
    return name, place


def rule_source(eqn: Equation) -> str:
    """Where the rule of a call stands, as JAX sums lines up: the user's JVP, or the backward
    function of the VJP, whose computations JAX takes for the line of the call. Empty if it is not
    known, or JAX's own, as that of `defjvps` is.
    """
    rule = eqn.params.get("bwd", eqn.params.get("jvp_jaxpr_fun"))
    name, _, place = rule.debug_info.func_src_info.partition(" at ")
    its_own = not place or place.startswith(os.path.dirname(jax.__file__))
    return "" if its_own else f"{place} ({name})"


def line_of(eqn: Equation) -> str:
    """The user's line that an equation comes from: file, line and function."""
    return source_info_util.summarize(eqn.source_info)


def rule_consts(eqn: Equation) -> int:
    """How many of the inputs of a call with a custom rule are closed over, not arguments."""
    return eqn.params.get("num_consts", 0)


@functools.cache
def _callbacks() -> frozenset[core.Primitive]:
    """Host callbacks and foreign functions."""
    return prints() | _first_primitives(
        lambda x: jax.pure_callback(lambda x: x, _NUMBER, x),
        lambda x: io_callback(lambda x: x, _NUMBER, x),
        lambda x: jax.ffi.ffi_call("none", _NUMBER)(x),
    )


def _first_primitives(*calls: Callable) -> frozenset[core.Primitive]:
    """Found in programs that hold one each, as JAX names none of them in public."""
    return frozenset(jax.make_jaxpr(call)(_NUMBER).eqns[0].primitive for call in calls)


def _private(module: str, name: str) -> Any:
    """A primitive that only a private module names; a program that holds one has loaded it."""
    return getattr(sys.modules.get(f"jax._src.{module}"), name, None)


def _variables(atoms: Sequence[Any]) -> list[Any]:
    return [atom for atom in atoms if not isinstance(atom, core.Literal)]


def _same_equation(first: Equation, second: Equation) -> bool:
    if first.primitive is not second.primitive or len(first.invars) != len(second.invars):
        return False
    for a, b in zip(first.invars, second.invars, strict=True):
        if isinstance(a, core.Literal) != isinstance(b, core.Literal):
            return False
        if isinstance(a, core.Literal) and not _same_array(a.val, b.val):
            return False
    numbers = [
        [p for p in jax.tree.leaves(list(eqn.params.values())) if isinstance(p, int | float)]
        for eqn in (first, second)
    ]
    return numbers[0] == numbers[1]


def _same_array(a: Any, b: Any) -> bool:
    if a is b or isinstance(a, Tracer):
        return True
    if is_key(a):
        return is_key(b) and _same_array(jax.random.key_data(a), jax.random.key_data(b))
    a, b = np.asarray(a), np.asarray(b)
    return np.array_equal(a, b, equal_nan=a.dtype.kind in "fc" and b.dtype.kind in "fc")


def _fingerprint_of_parameters(eqn: Equation) -> Hashable:
    if is_foreign(eqn.primitive):
        raise TypeError(f"`{eqn.primitive.name}` runs code that is not JAX's")
    if eqn.primitive in CUSTOM_RULES:
        return fingerprint(called(eqn))
    batched = eqn.primitive is _private("custom_batching", "custom_vmap_p")
    package = __name__.partition(".")[0]
    if batched and str(getattr(eqn.params["rule"], "__module__", "")).startswith(f"{package}."):
        return _fingerprint_of(eqn.params["call"])  # this package's own batching rule
    return tuple((name, _fingerprint_of(value)) for name, value in sorted(eqn.params.items()))


def _fingerprint_of_context(context: Any) -> Hashable:
    """What the user wrote around an operation: a device, a mesh, how random bits are drawn."""
    names = "compute_type", "threefry_partitionable", "cur_abstract_mesh", "xla_metadata"
    return tuple(_fingerprint_of(getattr(context, name, None)) for name in names)


def _fingerprint_of(value: Any) -> Hashable:
    """A parameter of an equation by value; what is JAX's own is compared as it is."""
    if is_program(value):
        consts = opened(value)[1]
        arrays = [np.asarray(x) for x in consts if not isinstance(x, Tracer)]
        if len(arrays) < len(consts) or any(x.nbytes > LARGE for x in arrays):
            raise TypeError("a program inside has constants of its own")
        return fingerprint(value), tuple((x.shape, x.dtype.str, x.tobytes()) for x in arrays)
    if isinstance(value, tuple | list):
        return type(value), tuple(map(_fingerprint_of, value))
    if isinstance(value, dict):
        return tuple((name, _fingerprint_of(x)) for name, x in sorted(value.items()))
    if callable(value) and not isinstance(value, type | np.dtype | core.Primitive):
        whose = str(getattr(value, "__module__", "")).partition(".")[0]
        if whose not in ("jax", "numpy") or getattr(value, "__closure__", None):
            raise TypeError("a function of the user's is a parameter")
    if isinstance(value, float):  # 0.0 and -0.0 are equal
        return float, value.hex()
    hash(value)
    return type(value), value


def _programs_in(params: Any) -> Iterator[Program]:
    return filter(is_program, jax.tree.leaves(params, is_leaf=is_program))
