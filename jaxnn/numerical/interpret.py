"""Access to JAX's programs (jaxprs): walking them, the programs inside calls, loops and branches,
and binding equations again.

JAX promises no compatibility here, and its releases do differ; `tests/test_jax.py` states each fact
that this module relies on. Primitives are compared as objects, never by name, since a user's own
primitive may have any name.
"""

import functools
import itertools
import pathlib
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import io_callback
from jax.extend import core, source_info_util
from jax.extend.core import primitives
from jax.sharding import AxisType

from jaxnn._jax import VERSION, enable_x64

# Source lines should point into the user's code. JAX skips its own files; these parts of this
# package only pass functions on, so they are skipped too.
for _part in ("checking/", "numerical/", "_arguments.py", "_programs.py", "descent.py"):
    source_info_util.register_exclusion(str(pathlib.Path(__file__).parents[1] / _part))

Program = Any  # a ClosedJaxpr; since JAX 0.12 one class with Jaxpr
Equation = Any  # a JaxprEqn, whose variables have shapes and dtypes
Run = Callable[[Program, Sequence[Any]], list[Any]]  # evaluates a program in some arithmetic


def private(module: str, name: str) -> Any:
    """A primitive that only a private module defines; a program that uses it has imported it."""
    return getattr(sys.modules.get(f"jax._src.{module}"), name, None)


_REMAT = getattr(primitives, "remat_p", None) or private("ad_checkpoint", "remat_p")
LINEAR_CALL = private("custom_derivatives", "linear_call_p")

# Primitives that stand for a program, and the parameter that holds it. Custom derivative rules do
# not affect values.
_CALLS = {
    primitives.jit_p: "jaxpr",
    _REMAT: "jaxpr",
    primitives.call_p: "call_jaxpr",
    primitives.closed_call_p: "call_jaxpr",
    primitives.custom_jvp_call_p: "call_jaxpr",
    primitives.custom_vjp_call_p: "call_jaxpr",
    LINEAR_CALL: "callee",
}
_NUMBER = jax.ShapeDtypeStruct((), np.float32)
_CUSTOM_RULES = frozenset([primitives.custom_jvp_call_p, primitives.custom_vjp_call_p, LINEAR_CALL])


def named(names: str) -> frozenset[core.Primitive]:
    """The primitives that `jax.extend` exports under these names."""
    return frozenset(getattr(primitives, f"{name}_p") for name in names.split())


# Primitives whose derivative is zero by JAX's rules: no cotangent passes through them.
FLAT = named("ceil floor nextafter round sign stop_gradient")
LOOPS = frozenset([primitives.while_p, primitives.scan_p])
# Primitives whose output at each position depends on their inputs at that position alone.
ELEMENTWISE = named(
    "abs acos acosh add and asin asinh atan atan2 atanh cbrt ceil clamp complex conj "
    "convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt "
    "imag integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not "
    "or pow real reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient "
    "sub tan tanh xor"
)
# Primitives that reduce the axes in their parameter `axes`, and those that go along one axis.
REDUCTIONS = named(
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin"
)
CUMULATIVE = named("cumsum cumprod cummax cummin cumlogsumexp")


def make_jaxpr(f: Callable, **options: Any) -> Callable:
    """`jax.make_jaxpr`; numbers in the program have the dtypes of the trace before JAX 0.8, too."""
    if VERSION >= (0, 8):
        return jax.make_jaxpr(f, **options)

    def trace(*args):
        made = jax.make_jaxpr(f, **options)(*args)
        _fix_dtypes(made[0] if options.get("return_shape") else made)
        return made

    return trace


def _fix_dtypes(program: Program) -> None:
    """Give each Python number in a program the dtype of its trace, for evaluations in another."""
    jaxpr, typed = opened(program)[0], private("literals", "LiteralArray")
    for atom in itertools.chain(jaxpr.outvars, *(eqn.invars for eqn in jaxpr.eqns)):
        if isinstance(atom, core.Literal) and isinstance(atom.val, int | float | complex):
            aval: Any = atom.aval
            atom.val = typed(np.asarray(atom.val, aval.dtype), aval.weak_type)
    for eqn in jaxpr.eqns:
        for inner in _programs_in(list(eqn.params.values())):
            _fix_dtypes(inner)


def trace_context() -> Hashable:
    """The settings that JAX traces by, such as x64 and the precision of products."""
    return private("config", "trace_context")()


# The primitives of JAX itself, as far as it exports them.
OF_JAX = frozenset(x for x in vars(primitives).values() if isinstance(x, core.Primitive))


def derivative_rules() -> Hashable:
    """The derivative rules of all primitives as they are now: a program may replace one."""
    names = "primitive_jvps primitive_linearizations primitive_transposes fancy_transposes"
    tables = (private("interpreters.ad", name) or {} for name in names.split())
    return tuple(tuple(table.values()) for table in tables)


@functools.cache
def keep_effects_under_vmap() -> None:
    """Let `custom_vmap` keep its function's effects, which JAX dropped before 0.9."""
    if VERSION < (0, 9):
        effectful = lambda *_, call, **__: (call.out_avals, call.effects)  # noqa: E731
        private("custom_batching", "custom_vmap_p").def_effectful_abstract_eval(effectful)


class Scan(NamedTuple):
    """The parts of a scan: its body, its inputs by role, and its options."""

    body: Program
    consts: list[Any]
    carry: list[Any]
    xs: list[Any]
    options: dict[str, Any]


class While(NamedTuple):
    """The parts of a while loop: two programs, the constants of each, and the carry."""

    condition: Program
    body: Program
    condition_consts: list[Any]
    body_consts: list[Any]
    carry: list[Any]


class LinearSolve(NamedTuple):
    """The parts of a `custom_linear_solve`: A as a function, a solver, the solver for its transpose
    if there is one, and the right-hand sides.
    """

    matvec: Program
    solve: Program
    matvec_consts: list[Any]
    solve_consts: list[Any]
    transposed: Program | None
    transposed_consts: list[Any]
    rhs: list[Any]


class ShardMap(NamedTuple):
    """The parts of a `shard_map`: the per-device program, and the arguments of `jax.shard_map`."""

    body: Program
    options: dict[str, Any]


def opened(program: Program) -> tuple[core.Jaxpr, Sequence[Any]]:
    """A program's jaxpr, and its constants."""
    return getattr(program, "jaxpr", program), getattr(program, "consts", ())


def form_of(aval: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array's type, and how it is cut along explicit axes of a mesh."""
    sharding = getattr(aval, "sharding", None)
    if sharding is not None and AxisType.Explicit not in sharding.mesh.axis_types:
        sharding = None
    weak = getattr(aval, "weak_type", False)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=weak, sharding=sharding)


def avals_of(variables: Sequence[Any]) -> list[Any]:
    """The forms of a program's variables."""
    return [form_of(v.aval) for v in variables]


def emptied(program: Program) -> Any:
    """A program's jaxpr without the values of its constants, which are inputs that come first."""
    jaxpr, _ = opened(program)
    # since JAX 0.12 a jaxpr holds its constants
    return core.ClosedJaxpr(jaxpr, []) if getattr(jaxpr, "consts", ()) else jaxpr


def evaluate(
    program: Program,
    args: Sequence[Any],
    step: Callable[[Equation, list[Any]], Sequence[Any]],
    lift: Callable[[Any], Any] = lambda constant: constant,
) -> list[Any]:
    """Evaluate a program once, in any arithmetic.

    Args:
      program: the program.
      args: its inputs, in whatever form represents arrays in this arithmetic.
      step: `(equation, inputs) -> outputs`.
      lift: converts a constant or a literal to an input.

    Returns:
      The outputs.
    """
    jaxpr, consts = opened(program)
    values = dict(zip(jaxpr.constvars, map(lift, consts), strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))

    def read(atom):
        return lift(atom.val) if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        with eqn.ctx.manager:  # the user's contexts around the operation: compute_on, a mesh
            outputs = step(eqn, [read(atom) for atom in eqn.invars])
        values |= dict(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def bind(eqn: Equation, inputs: Sequence[Any], **changed: Any) -> list[Any]:
    """Bind an equation's primitive to other inputs, with the parameters in `changed` replaced."""
    with eqn.ctx.manager:
        params = eqn.primitive.get_bind_params(eqn.params | changed)
        functions, params = params if isinstance(params, tuple) else ((), params)  # before JAX 0.10
        outputs = eqn.primitive.bind(*functions, *inputs, **params)
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def called(eqn: Equation) -> Program | None:
    """The program that an equation stands for, or None if it is not a call."""
    if (name := _CALLS.get(eqn.primitive)) is not None:
        return eqn.params[name]
    if (composite := composite_of(eqn)) is None:
        return None

    def expanded(*leaves):
        return jax.tree.leaves(composite.expand(*jax.tree.unflatten(composite.in_tree, leaves)))

    return make_jaxpr(expanded)(*avals_of(eqn.invars))


def dependencies(
    program: Program, passes: Callable[[Equation, Sequence[frozenset[int]]], bool]
) -> list[frozenset[int]]:
    """For each output of a program, the inputs that it depends on, by number.

    Args:
      program: the program.
      passes: whether an equation passes on what its operands depend on; it is given both.
    """
    nothing: frozenset[int] = frozenset()

    def step(eqn, inputs):
        if not passes(eqn, inputs):
            return [nothing] * len(eqn.outvars)
        if (inner := called(eqn)) is not None:
            return evaluate(inner, inputs, step, lambda _: nothing)
        return [nothing.union(*inputs)] * len(eqn.outvars)

    starts = [frozenset([k]) for k in range(len(program.in_avals))]
    return evaluate(program, starts, step, lambda _: nothing)


def has_custom_rule(eqn: Equation) -> bool:
    """Whether an equation is a call of a function with a derivative rule that is not JAX's."""
    if eqn.primitive in _CUSTOM_RULES:
        return True
    if (composite := unmapped(composite_of(eqn))) is None:
        return False
    is_users = not type(composite).__module__.startswith("jax.")
    return is_users or hasattr(composite, "bwd") or hasattr(composite, "tangent_solve")


@functools.cache
def rule_primitives() -> frozenset[core.Primitive]:
    """The primitives of calls that may have a custom rule."""
    composite = private("hijax", "call_hi_primitive_p")
    return _CUSTOM_RULES | ({composite} if composite is not None else frozenset())


def composite_of(eqn: Equation) -> Any:
    """The operation that an equation stands for and that is made of others, or None: `custom_root`
    since JAX 0.12, `custom_vjp` under `jax_custom_vjp3`, and the user's own.
    """
    composite = eqn.params.get("_prim")
    return composite if hasattr(composite, "expand") else None


def unmapped(composite: Any) -> Any:
    """The operation that `vmap` has made an operation of JAX's own of; others as they are."""
    while type(composite).__module__.startswith("jax.") and hasattr(composite, "prim"):
        composite = composite.prim
    return composite


def equations(program: Program) -> Iterator[Equation]:
    """Yield the equations of a program and of all programs inside it."""
    for eqn in opened(program)[0].eqns:
        yield eqn
        yield from equations_inside(eqn)


def equations_inside(eqn: Equation) -> Iterator[Equation]:
    """The equations of the programs that an equation calls, at any depth."""
    for inner in programs_inside(eqn):
        yield from equations(inner)


def programs_inside(eqn: Equation) -> Iterable[Program]:
    """The programs that an equation calls."""
    is_composite = composite_of(eqn) is not None
    return [called(eqn)] if is_composite else _programs_in(list(eqn.params.values()))


def is_program(value: Any) -> bool:
    """Whether an equation's parameter is a program."""
    return hasattr(getattr(value, "jaxpr", value), "eqns")


def replaced(program: Program, change: Callable[[Program], Program]) -> Program:
    """Apply `change` to a parameter's program, keeping its form: with constants or without.

    A program whose constants are passed in from elsewhere is returned unchanged.
    """
    if isinstance(program, core.ClosedJaxpr):
        return change(program)
    if program.constvars:
        return program
    return change(core.ClosedJaxpr(program, ())).jaxpr


def pruned(program: Program) -> Program:
    """The program without the equations that no output needs."""
    jaxpr, consts = opened(program)
    needed, needful = set(_variables(jaxpr.outvars)), []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            needed.update(_variables(eqn.invars))
            needful.append(eqn)
    return core.ClosedJaxpr(jaxpr.replace(eqns=needful[::-1]), consts)


def silent(program: Program) -> Program:
    """The program without what it prints itself; loops and functions in it may still print."""
    jaxpr, consts = opened(program)
    eqns = [eqn for eqn in jaxpr.eqns if eqn.primitive not in prints()]
    return core.ClosedJaxpr(jaxpr.replace(eqns=eqns), consts)


def with_own_constants(program: Program) -> Program:
    """The program with copies of the NumPy arrays that it closes over, and with arrays in place of
    values of the user's own types.
    """
    if any(not hasattr(v.aval, "dtype") for eqn in equations(program) for v in eqn.outvars):
        program = private("interpreters.partial_eval", "lower_jaxpr2")(program)
    jaxpr, consts = opened(program)
    if any(map(_is_ref, consts)):
        return with_own_constants(_with_own_refs(program))
    pairs = zip(jaxpr.constvars, consts, strict=True)
    own: Callable[[Any, Any], Any] = lambda v, c: np.array(c, v.aval.dtype)  # noqa: E731
    copies = [own(v, c) if isinstance(c, np.ndarray) else c for v, c in pairs]
    return core.ClosedJaxpr(jaxpr, copies)


def _is_ref(x: Any) -> bool:
    return isinstance(x, jax.Ref)


def _with_own_refs(program: Program) -> Program:
    """The program with a reference of its own, which has the same content, for each that it closes
    over: evaluating it changes nothing outside.
    """
    jaxpr, consts = opened(program)
    contents = [x[...] if _is_ref(x) else x for x in consts]

    def own(*args):
        pairs = zip(contents, consts, strict=True)
        refs = [jax.new_ref(x) if _is_ref(const) else x for x, const in pairs]
        return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, refs))(*args)

    return make_jaxpr(own)(*avals_of(jaxpr.invars))


def without_refs(program: Program) -> Program:
    """The program with array references replaced by values that are passed on; the program itself
    if it creates none, or if JAX cannot do so.
    """
    creates = private("core", "internal_mutable_array_effect")
    if creates not in opened(program)[0].effects:
        return program
    avals, step = avals_of(opened(program)[0].invars), _with_values_in_loops
    try:
        return _values_for_refs(make_jaxpr(lambda *args: evaluate(program, args, step))(*avals))
    except Exception:  # a primitive of the user's that takes a reference
        return program


def _values_for_refs(program: Program) -> Program:
    return private("state.discharge", "discharge_state")(program, lower=False)


def _with_values_in_loops(eqn: Equation, inputs: list[Any]) -> list[Any]:
    """The outputs of an equation at the same line; a scan gets what the references that it closes
    over hold, and returns it, since JAX drops derivative rules in loops that write to references.
    """
    source = eqn.source_info
    with private("source_info_util", "user_context")(
        source.traceback, name_stack=source.name_stack
    ):
        places = [i for i, v in enumerate(eqn.invars) if hasattr(v.aval, "inner_aval")]
        if eqn.primitive is not primitives.scan_p or not places:
            return bind(eqn, inputs)
        parts, refs = scan_parts(eqn.params, inputs), [inputs[i] for i in places]
        body, count = _values_for_refs(parts.body), len(parts.carry)
        ends = len(opened(parts.body)[0].outvars)

        def step(carry, x):
            consts = list(parts.consts)
            for i, value in zip(places, carry[count:], strict=True):
                consts[i] = value
            outputs = core.jaxpr_as_fun(body)(*consts, *carry[:count], *x)
            return [*outputs[:count], *outputs[ends:]], outputs[count:ends]

        held = [ref[...] for ref in refs]
        carry, ys = lax.scan(step, [*parts.carry, *held], parts.xs, **parts.options)
        for ref, value in zip(refs, carry[count:], strict=True):
            ref[...] = value
        return [*carry[:count], *ys]


def outputs_that_change(program: Program, changing: Sequence[bool]) -> list[bool]:
    """Whether each output of a program depends on a changing input."""
    jaxpr, _ = opened(program)
    reached = {v for v, changes in zip(jaxpr.invars, changing, strict=True) if changes}
    for eqn in jaxpr.eqns:
        if reached.intersection(_variables(eqn.invars)):
            reached.update(eqn.outvars)
    return [bool(reached.intersection(_variables([v]))) for v in jaxpr.outvars]


def axes(program: Program) -> list[str]:
    """The names of the axes that a program's collective operations use and it does not bind."""
    kinds = ("axes", "axis_name")
    used = [eqn.params.get(kind, ()) for eqn in equations(program) for kind in kinds]
    names = {name for name in jax.tree.leaves(used) if isinstance(name, str)}
    for eqn in equations(program):
        if (mapped := shard_map_parts(eqn)) is not None:
            names -= set(mapped.options["mesh"].axis_names)
    return sorted(names)


def branches(eqn: Equation) -> Sequence[Program]:
    """The branch programs of a `cond`."""
    return eqn.params["branches"]


def standalone(program: Program) -> Program:
    """The program with all constants its own, and with the function itself in place of each call
    that has a derivative rule.

    Constants and rules inside calls and control flow would be kept alive with the equations.
    """
    if not any(map(_holds_more, equations(program))):
        return program

    def step(eqn, inputs):
        if any(map(_holds_more, [eqn, *equations_inside(eqn)])):
            if (inner := called(eqn)) is not None:
                return run(inner, inputs)
            if eqn.primitive in CONTROL_FLOW:
                return CONTROL_FLOW[eqn.primitive](eqn, inputs, run)
        return bind(eqn, inputs)

    def run(program, inputs):
        return evaluate(program, inputs, step)

    jaxpr, consts = opened(program)
    plain = lambda consts, args: run(core.ClosedJaxpr(jaxpr, consts), args)  # noqa: E731
    of_consts = [jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in consts]
    inside = (v for eqn in equations(program) for v in (*eqn.invars, *eqn.outvars))
    avals = (v.aval for v in (*jaxpr.invars, *inside))
    # Inputs in float64 would otherwise be traced as float32. In JAX's usual mode there are none,
    # and primitives of other libraries may refuse their own float32 once float64 is enabled.
    wide = any(getattr(getattr(aval, "dtype", None), "itemsize", 0) > 4 for aval in avals)
    with enable_x64(wide):
        traced = make_jaxpr(plain)(of_consts, avals_of(jaxpr.invars))
    n = len(consts)
    bare = traced.jaxpr.replace(
        constvars=[*traced.jaxpr.constvars, *traced.jaxpr.invars[:n]],
        invars=traced.jaxpr.invars[n:],
    )
    return core.ClosedJaxpr(bare, [*traced.consts, *consts])


def scan_sizes(params: Mapping[str, Any]) -> tuple[int, int]:
    """The number of constants and the number of carries among a scan's inputs."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # since JAX 0.12
    return len(consts), len(carry)


def scan_parts(params: Mapping[str, Any], inputs: Sequence[Any]) -> Scan:
    """The parts of a scan, from its parameters and inputs."""
    n, m = scan_sizes(params)
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    inputs = list(inputs)
    return Scan(params["jaxpr"], inputs[:n], inputs[n : n + m], inputs[n + m :], options)


def only_carries(eqn: Equation) -> bool:
    """Whether a scan has no per-step inputs or outputs, as a `fori_loop` has none."""
    n, m = scan_sizes(eqn.params)
    return n + m == len(eqn.invars) and m == len(eqn.outvars)


def while_parts(params: Mapping[str, Any], inputs: Sequence[Any]) -> While:
    """The parts of a while loop, from its parameters and inputs."""
    n, m = params["cond_nconsts"], params["body_nconsts"]
    inputs = list(inputs)
    programs = params["cond_jaxpr"], params["body_jaxpr"]
    return While(*programs, inputs[:n], inputs[n : n + m], inputs[n + m :])


def linear_solve_parts(params: Mapping[str, Any], inputs: Sequence[Any]) -> LinearSolve:
    """The parts of a linear solve, from its parameters and inputs."""
    programs, rest = params["jaxprs"], iter(inputs)
    take = lambda count: list(itertools.islice(rest, count))  # noqa: E731
    matvec_consts, _, solve_consts, back_consts = map(take, params["const_lengths"])
    transposed = programs.transpose_solve, back_consts
    return LinearSolve(
        programs.matvec, programs.solve, matvec_consts, solve_consts, *transposed, list(rest)
    )


def _cond(eqn: Equation, inputs: list[Any], run: Run) -> list[Any]:
    choices = [lambda *args, branch=branch: run(branch, args) for branch in branches(eqn)]
    return lax.switch(inputs[0], choices, *inputs[1:])


def while_step(parts: While, run: Run) -> tuple[Callable, Callable]:
    """The condition and the body of a while loop as functions of its carry."""

    def going(carry):
        return run(parts.condition, [*parts.condition_consts, *carry])[0]

    def step(carry):
        return run(parts.body, [*parts.body_consts, *carry])

    def step_of_those_that_go_on(carry):
        on = going(carry)
        return [
            jnp.where(on.reshape(on.shape + (1,) * (old.ndim - on.ndim)), new, old)
            for old, new in zip(carry, step(carry), strict=True)
        ]

    # Under `vmap` a batch of loops is one loop whose condition has the batch's shape.
    batched = parts.condition.out_avals[0].shape != ()
    return (lambda carry: jnp.any(going(carry))), (step_of_those_that_go_on if batched else step)


def _while(eqn: Equation, inputs: list[Any], run: Run) -> list[Any]:
    parts = while_parts(eqn.params, inputs)
    return lax.while_loop(*while_step(parts, run), parts.carry)


def scan_step(parts: Scan, run: Run) -> Callable:
    """The body of a scan in the form that `lax.scan` takes."""

    def step(carry, x):
        outputs = run(parts.body, [*parts.consts, *carry, *x])
        return outputs[: len(carry)], outputs[len(carry) :]

    return step


def _scan(eqn: Equation, inputs: list[Any], run: Run) -> list[Any]:
    parts = scan_parts(eqn.params, inputs)
    carry, ys = lax.scan(scan_step(parts, run), parts.carry, parts.xs, **parts.options)
    return [*carry, *ys]


def solved(parts: LinearSolve, rhs: Sequence[Any], run: Run) -> list[Any]:
    """The output of a `custom_linear_solve`'s solver for right-hand sides."""
    return run(parts.solve, [*parts.solve_consts, *rhs])


def _linear_solve(eqn: Equation, inputs: list[Any], run: Run) -> list[Any]:
    parts = linear_solve_parts(eqn.params, inputs)
    return solved(parts, parts.rhs, run)


def implicit_solve(eqn: Equation, inputs: list[Any], run: Run) -> list[Any]:
    """A `custom_linear_solve` that is differentiated through its matrix, as JAX does."""
    parts = linear_solve_parts(eqn.params, inputs)
    return lax.custom_linear_solve(
        lambda x: run(parts.matvec, [*parts.matvec_consts, *x]),
        list(parts.rhs),
        lambda _, b: solved(parts, b, run),
        parts.transposed and (lambda _, b: run(parts.transposed, [*parts.transposed_consts, *b])),
    )


# Control flow, traced anew with each of its programs run by `run(program, inputs)`.
CONTROL_FLOW: Mapping[core.Primitive, Callable[[Equation, list[Any], Run], list[Any]]] = {
    primitives.cond_p: _cond,
    primitives.while_p: _while,
    primitives.scan_p: _scan,
    primitives.linear_solve_p: _linear_solve,
}


def shard_map_parts(eqn: Equation) -> ShardMap | None:
    """The parts of a `shard_map`, or None for any other equation."""
    if eqn.primitive is not private("shard_map", "shard_map_p"):
        return None
    manual = "newly_manual_axes" if VERSION >= (0, 10) else "manual_axes"
    names = {"mesh": "mesh", "check_vma": "check_vma", manual: "axis_names"}
    options = {argument: eqn.params[name] for name, argument in names.items()}
    options |= {"in_specs": tuple(eqn.params["in_specs"])}
    options |= {"out_specs": list(eqn.params["out_specs"])}
    return ShardMap(eqn.params["jaxpr"], options)


def varying(variable: Any) -> tuple[str, ...]:
    """The axes of a mesh along which the devices of a `shard_map` hold different values."""
    if VERSION < (0, 10):
        return tuple(sorted(getattr(variable.aval, "vma", ())))
    return tuple(sorted(getattr(getattr(variable.aval, "mat", None), "varying", ())))


def varied(x: Any, axes: tuple[str, ...]) -> Any:
    """An array that may hold different values along these axes of a mesh."""
    if not axes:
        return x
    if VERSION >= (0, 9):
        return lax.pcast(x, axes, to="varying")
    return getattr(lax, "pvary")(x, axes)  # noqa: B009


def is_foreign(primitive: core.Primitive) -> bool:
    """Whether a primitive runs code outside JAX: a host callback, a foreign function, a kernel."""
    kernel = private("pallas.pallas_call", "pallas_call_p")
    return primitive is kernel or primitive in _callbacks()


@functools.cache
def prints() -> frozenset[core.Primitive]:
    """The primitives of `jax.debug.callback` and `jax.debug.print`, which return nothing."""
    return _first_primitives(
        lambda x: jax.debug.callback(lambda x: None, x), lambda x: jax.debug.print("{}", x)
    )


@functools.cache
def _callbacks() -> frozenset[core.Primitive]:
    """The primitives of host callbacks and foreign functions."""
    return prints() | _first_primitives(
        lambda x: jax.pure_callback(lambda x: x, _NUMBER, x),
        lambda x: io_callback(lambda x: x, _NUMBER, x),
        lambda x: jax.ffi.ffi_call("none", _NUMBER)(x),
    )


def _first_primitives(*calls: Callable) -> frozenset[core.Primitive]:
    """The first primitive of each call's trace, since JAX exports none of them publicly."""
    return frozenset(make_jaxpr(call)(_NUMBER).eqns[0].primitive for call in calls)


def _variables(atoms: Sequence[Any]) -> list[Any]:
    return [atom for atom in atoms if not isinstance(atom, core.Literal)]


def _holds_more(eqn: Equation) -> bool:
    """Whether an equation holds a derivative rule, or a program with constants of its own."""
    inner = _programs_in(list(eqn.params.values()))
    return has_custom_rule(eqn) or any(opened(program)[1] for program in inner)


def _programs_in(params: Any) -> Iterator[Program]:
    return filter(is_program, jax.tree.leaves(params, is_leaf=is_program))
