"""Where an equation comes from: the user's line, and the function and the rule behind a call."""

import collections
import contextlib
import functools
import gc
import itertools
import linecache
import os
import types
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer
from jax.extend import source_info_util

from jaxnn.numerical.interpret import (
    Equation,
    Program,
    called,
    composite_of,
    equations,
    has_custom_rule,
    is_program,
    opened,
    unmapped,
)

# The folder in which packages are installed.
PACKAGES = f"{os.sep}site-packages{os.sep}"
# The folder of JAX.
JAX_FOLDER = os.path.join(os.path.dirname(jax.__file__), "")
# Where JAX has functions such as `softmax` and `solve`.
_OWN_FUNCTIONS = tuple(
    os.path.join(JAX_FOLDER, "_src", part)
    for part in ("numpy", "scipy", "nn", "ops", os.path.join("lax", "linalg"))
)
# Where `jax.custom_gradient` wraps the user's function, and `jax.lax.custom_root` makes a rule of
# several.
_CUSTOM_GRADIENT, _CUSTOM_ROOT = (
    os.path.join(JAX_FOLDER, "_src", part)
    for part in ("custom_derivatives.py", os.path.join("lax", "control_flow", "solves.py"))
)
# Types that hold other objects, and JAX modules whose objects hold functions and their arguments.
_HOLDERS = tuple, list, functools.partial, types.CellType, types.FunctionType
_OF_RULES = "jax._src.linear_util", "jax._src.util"
# How many of the user's calls around an equation are looked at.
DEEP = 64


def source(eqn: Equation) -> tuple[str, str]:
    """The name of the function that a custom-rule call wraps, and its file and line; no file if JAX
    itself makes the rule of several functions.
    """
    name, place = _declared(eqn)
    if place.startswith(_CUSTOM_ROOT):
        return "custom_root", ""
    if place.startswith(_CUSTOM_GRADIENT) and "fwd_jaxpr_thunk" in eqn.params:
        user = unwrapped(eqn.params["fwd_jaxpr_thunk"].f)
        return user.__name__, _place_of(user)
    rule = rule_source(eqn) if PACKAGES in place and not place.startswith(JAX_FOLDER) else ""
    if rule and _package(rule) != _package(place):  # a library wraps another's function
        lines = map(line_of, opened(called(eqn))[0].eqns) if not _package(rule) else ()
        inside = (line.removesuffix(")").partition(" (") for line in (*lines, rule))
        made = ((f, at) for at, _, f in inside if at and _package(at) == _package(rule))
        name, place = next(made)
    return name.rpartition("<locals>.")[2], place


def _declared(eqn: Equation) -> tuple[str, str]:
    """The name, file and line under which JAX knows the function of a custom-rule call."""
    composite = unmapped(composite_of(eqn))
    if composite is not None and not hasattr(composite, "traced"):
        return type(composite).__name__, _place_of(type(composite).expand)
    jaxpr = composite.traced.jaxpr if composite is not None else opened(called(eqn))[0]
    name, _, place = jaxpr.debug_info.func_src_info.partition(" at ")
    return name, place


def operation_name(eqn: Equation) -> str:
    """The name of an equation's primitive, or of the function that has its custom rule."""
    return source(eqn)[0] if has_custom_rule(eqn) else eqn.primitive.name


def rule_source(eqn: Equation, argument: int | None = None) -> str:
    """The source of a call's custom rule: the user's JVP, that of an argument where `defjvps` gives
    each its own, the backward function of the VJP, or the transpose of a `linear_call`; as file,
    line and name.

    Empty if it is unknown or inside JAX. JAX itself attributes a backward function's computations
    to the line of the call.
    """
    if (composite := unmapped(composite_of(eqn))) is not None:
        kinds = type(composite).vjp_bwd, type(composite).vjp_bwd_retval
        own = [f for f in kinds if not f.__module__.startswith("jax.")]
        rule: Any = getattr(composite, "bwd", own[0] if own else None)
        inside = [cell.cell_contents for cell in getattr(rule, "__closure__", None) or ()]
        for f in (rule, *inside):  # JAX 0.12 wraps the user's
            if hasattr(f, "__code__") and not f.__module__.startswith("jax."):
                return _source_of(unwrapped(f))
        return ""
    if (transpose := eqn.params.get("transpose_thunk")) is not None:
        user = unwrapped(transpose)
        return "" if user is transpose else _source_of(user)
    rule = eqn.params.get("bwd", eqn.params.get("jvp_jaxpr_fun"))
    which = len(eqn.invars) - rule_consts(eqn), argument
    if (inside := unwrapped(rule.f, which)) is not rule.f:
        return _source_of(inside)
    return _as_traced(rule)


def forward_source(eqn: Equation) -> str:
    """The source of the function that gives a call's value where it is differentiated: the forward
    function of a VJP, unless a package wraps it; else the rule.
    """
    rule, forward = rule_source(eqn), eqn.params.get("fwd_jaxpr_thunk")
    place = _as_traced(forward) if forward is not None else ""
    return place if place and _package(place) == _package(rule) else rule


def _as_traced(rule: Any) -> str:
    """The source of a rule as JAX knows it; empty if that is inside JAX."""
    name, _, place = rule.debug_info.func_src_info.partition(" at ")
    its_own = not place or place.startswith(JAX_FOLDER)
    return "" if its_own else f"{_below_decorators(*place.rsplit(':', 1))} ({name})"


def name_of(f: Callable) -> str:
    """The name of the user's function, or of its type if it has none."""
    return getattr(unwrapped(f), "__name__", type(f).__name__)


def unwrapped(f: Callable, which: tuple[int, int | None] = (1, 0), depth: int = 6) -> Callable:
    """The user's function in closures of installed packages, or that of a package that another one
    wraps; `f` itself if there is none, or if the closure bears its name. A partial function is that
    which it calls. Of a tuple of functions, as `defjvps` makes, `which` says how many it must have,
    and the one that is meant.
    """
    while isinstance(f, functools.partial):
        f = f.func
    code = getattr(f, "__code__", None)
    if code is None or hasattr(f, "__wrapped__") or PACKAGES not in code.co_filename or not depth:
        return f
    held = _in_closure(f, *which)
    held += [getattr(x, "__dict__", {}).get(name) for x in held for name in code.co_names]
    held = [getattr(g, "f", g) if type(g).__module__.startswith("jax.") else g for g in held]
    inside = [unwrapped(g, which, depth - 1) for g in held if hasattr(g, "__code__")]
    wrappers = "jax", _package(code.co_filename)
    of_others = [g for g in inside if _package(g.__code__.co_filename) not in wrappers]
    return min(of_others, key=lambda g: bool(_package(g.__code__.co_filename)), default=f)


def _package(place: str) -> str:
    """The installed package or module that a file is in; empty if it is the user's."""
    return place.partition(PACKAGES)[2].partition(os.sep)[0].partition(".")[0]


def _in_closure(f: Any, size: int, chosen: int | None) -> list[Any]:
    """What a function closes over; of a tuple of some size, the chosen item, or its only one."""
    held: list[Any] = []
    for cell in f.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            inside = cell.cell_contents
            is_chosen = chosen is not None or size == 1
            if isinstance(inside, tuple) and len(inside) == size and is_chosen:
                inside = inside[chosen or 0]
            held.append(inside)
    return held


def _place_of(f: Callable) -> str:
    """The file and line of a function."""
    return _below_decorators(f.__code__.co_filename, f.__code__.co_firstlineno)


def _below_decorators(file: str, first: str | int) -> str:
    """The file, and the line of a function's `def`, given the line of its first decorator."""
    lines = enumerate(linecache.getlines(file)[int(first) - 1 :], start=int(first))
    _, text = next(lines, (0, ""))
    defined = (number for number, line in lines if line.lstrip().startswith("def "))
    number = next(defined, first) if text.lstrip().startswith("@") else first
    return f"{file}:{number}"


def _source_of(f: Callable) -> str:
    """The file, line and name of a function."""
    return f"{_place_of(f)} ({f.__name__})"


def line_of(eqn: Equation, outside: str = "") -> str:
    """The user's line that an equation comes from: file, line and function; the innermost one that
    is not in the folder `outside`, if there is one.
    """
    lines = source_info_util.summarize(eqn.source_info, num_frames=DEEP if outside else 1)
    first, *more = reversed(lines.split("\n"))
    beyond = (line for line in (first, *more) if not (outside and line.startswith(outside)))
    return next(beyond, first)


def is_stopped_by_jax(eqn: Equation) -> bool:
    """Whether a `stop_gradient` is JAX's own, in a function such as `jnp.linalg.solve`, which has
    the derivative of its values all the same; the residual of an attention does not.
    """
    frames = getattr(eqn.source_info.traceback, "frames", ())
    # Under `vmap` it calls itself; the outermost call comes last.
    callers = (y for x, y in itertools.pairwise(frames) if x.function_name == "stop_gradient")
    caller = collections.deque(callers, maxlen=1)
    own = (frame for frame in caller if frame.file_name.startswith(_OWN_FUNCTIONS))
    return any("attention" not in frame.function_name for frame in own)


def rule_consts(eqn: Equation) -> int:
    """The number of inputs of a custom-rule call that are closed over rather than arguments."""
    return eqn.params.get("num_consts", eqn.params.get("num_callee_consts", 0))


def rules_use_traced(program: Program) -> bool:
    """Whether a custom rule in a program uses a traced value that is not one of its arguments, and
    so fails if it is called after the trace has ended.
    """
    seen: set[int] = set()
    rules = filter(has_custom_rule, equations(program))
    todo = [x for eqn in rules for x in eqn.params.values() if not is_program(x)]
    while todo:
        x = todo.pop()
        if isinstance(x, Tracer):
            return True
        if id(x) in seen:
            continue
        seen.add(id(x))
        if isinstance(x, _HOLDERS) or type(x).__module__ in _OF_RULES:
            todo += gc.get_referents(x)
    return False


def argument_paths(eqn: Equation) -> dict[int, str]:
    """The names of the arguments of a custom-rule call, and the paths in them, by position.

    Those of a VJP are the names that its forward function uses.
    """
    traced = eqn.params.get("fwd_jaxpr_thunk") or opened(called(eqn))[0]
    return dict(enumerate(getattr(traced.debug_info, "arg_names", None) or ()))
