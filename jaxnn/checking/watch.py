"""`watching`: notes every gradient that a program takes, to check it afterwards.

While a program is watched, `jax.grad` and its relatives are wrapped (`noting`). A wrapped call does
what it did before, and then traces its function once more, for the check. The point is sent to the
host the first time that the call runs, even inside `jit`, `scan` and `vmap`. Once all points have
arrived, JAX traces and compiles the program again without sending them. The first gradient that is
not finite is sent with its inputs.
"""

import contextlib
import dataclasses
import functools
import linecache
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.extend import core
from jax.extend.core import primitives
from jax.interpreters import ad
from jax.sharding import AxisType

from jaxnn._arguments import readable
from jaxnn._jax import enable_x64
from jaxnn._programs import trace_again
from jaxnn._validate import is_concrete, is_key, reason_of
from jaxnn.checking.findings import SourceLine
from jaxnn.checking.tape.layout import is_inexact
from jaxnn.numerical.interpret import (
    Program,
    axes,
    emptied,
    equations,
    make_jaxpr,
    opened,
    silent,
    varied,
    varying,
)
from jaxnn.numerical.sources import JAX_FOLDER, name_of, rules_use_traced

# How many kinds of one gradient are noted, such as for other shapes.
KINDS = 100
# What JAX raises where a function needs values.
_NEED_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
# How many times, at most, programs are traced again for each point that is kept.
RETRACES = 8
# After a gradient was taken this many times as often, a further point of it is kept.
SPACING = 4


class Form(NamedTuple):
    """How a transformation differentiates its function.

    Attributes:
      order: 2 for `jax.hessian`.
      forward: whether forward mode is used.
      gradient: the gradient in the result of a call, given whether there is an auxiliary result;
        None if the result does not contain it.
    """

    order: int = 1
    forward: bool = False
    gradient: Callable[[Any, bool], Any] | None = None


class Point(NamedTuple):
    """Where a gradient was taken.

    Attributes:
      consts: the constants of the program.
      leaves: the leaves that are differentiated.
      program: the function as a program of `consts` and `leaves`, without their values.
      names: names of the constants: the path of an argument, or empty.
      keys: the implementation of each constant that is a random key; None for the others.
      x64: whether JAX had 64-bit types there.
      mesh: the mesh there; its manual axes are those of a `shard_map`.
    """

    consts: list[Any]
    leaves: list[Any]
    program: Program
    names: list[str]
    keys: list[Any]
    x64: bool
    mesh: Any

    def at(self, values: Any) -> "Point":
        """The same program at other values. These may still be on their way: a callback that waits
        for them holds a thread that another device may need.
        """
        consts, leaves = values
        return self._replace(consts=consts, leaves=leaves)

    def fetched(self) -> "Point":
        """The same point with NumPy arrays, or arrays sharded along the explicit axes of a mesh if
        their types say so.
        """
        jaxpr, _ = opened(self.program)

        def on_host(x, variable):
            x, sharding = np.asarray(x), getattr(variable.aval, "sharding", None)
            if sharding is None or AxisType.Explicit not in sharding.mesh.axis_types:
                return x
            devices = _devices(sharding.mesh)
            return jax.device_put(x, jax.sharding.NamedSharding(devices, sharding.spec))

        # Since JAX 0.12, the constants are the first inputs.
        variables = *jaxpr.constvars, *jaxpr.invars
        values, count = (*self.consts, *self.leaves), len(self.consts)
        fetched = [on_host(x, v) for x, v in zip(values, variables, strict=True)]
        return self._replace(consts=fetched[:count], leaves=fetched[count:])

    @contextlib.contextmanager
    def surroundings(self) -> Iterator[None]:
        """JAX has the same precision inside, and no mesh: arrays say how they are sharded."""
        none = jax.sharding.Mesh(np.empty((), object), ())
        with enable_x64(self.x64), jax.set_mesh(none):  # the program may have set one
            yield


@dataclasses.dataclass(eq=False)
class Taken:
    """A gradient that a program takes: a line of code, a function, and the kinds of its arguments.

    Attributes:
      line: the user's line.
      name: name of the function.
      form: how it is differentiated.
      tree: structure of the differentiated arguments.
      argnums: their positions.
      calls: how often the gradient was taken, if that is counted.
      points: the first point, later ones, and a spare one, in case a gradient is 0 or not
        finite at the others.
      due: the number of the call from which the next point is wanted.
      asked: the latest such number for which programs were traced again.
      latest: the number of the call of the latest point.
      bad: the first point whose gradient is not finite.
      bad_call: the number of that call.
      bad_calls: in how many calls the gradient was not finite.
      trouble: why the function could not be traced.
      is_counted: whether calls are counted.
      is_judged: whether it was checked.
    """

    line: SourceLine
    name: str
    form: Form
    tree: Any = None
    argnums: tuple[int, ...] = ()
    calls: int = 0
    points: list[Point] = dataclasses.field(default_factory=list)
    due: int = 1
    asked: int = 0
    latest: int = 0
    bad: Point | None = None
    bad_call: int = 0
    bad_calls: int = 0
    trouble: str = ""
    is_counted: bool = False
    is_judged: bool = False

    @property
    def went_on(self) -> bool:
        """Whether gradients were finite again later. Counts from a running program may arrive a
        call late.
        """
        return self.calls - self.bad_call - self.bad_calls >= 1

    def fetch(self) -> None:
        """Wait for the values of all points."""
        self.points = [point.fetched() for point in self.points]
        self.bad = self.bad and self.bad.fetched()

    def arguments(self, point: Point) -> list[Any]:
        """The differentiated arguments at their positions, None elsewhere."""
        args: list[Any] = [None] * (max(self.argnums) + 1)
        chosen = jax.tree.unflatten(self.tree, point.leaves)
        for i, arg in zip(self.argnums, chosen, strict=True):
            args[i] = arg
        return args

    def function(self, point: Point) -> Callable:
        """The function of the differentiated arguments, with the constants of a point."""
        jaxpr, _ = opened(point.program)

        def run(consts, *leaves):
            pairs = zip(consts, point.keys, strict=True)
            consts = [
                x if key is None else jax.random.wrap_key_data(x, impl=key) for x, key in pairs
            ]
            return core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, consts))(*leaves)

        for name in set(axes(point.program)) - set(point.mesh.manual_axes):
            run = _alone_on(name, run)  # the point is that of one example of a mapped axis
        if point.mesh.manual_axes:
            run = _on_all_of(point.mesh, jaxpr, run)

        def f(*args):
            outputs = run(point.consts, *jax.tree.leaves([args[i] for i in self.argnums]))
            return outputs[0] if len(outputs) == 1 else outputs

        f.__name__ = self.name
        return f


def _alone_on(name: str, run: Callable) -> Callable:
    """A function on a named axis of length 1."""

    def alone(*args):
        one = jax.tree.map(lambda x: jnp.asarray(x)[None], args)
        return [y[0] for y in jax.vmap(run, axis_name=name)(*one)]

    return alone


def _on_all_of(mesh: Any, jaxpr: core.Jaxpr, run: Callable) -> Callable:
    """A function of one device's part, run in a `shard_map` with that part on every device."""
    inputs = *jaxpr.constvars, *jaxpr.invars
    vary = any(map(varying, (*inputs, *jaxpr.outvars)))

    def local(consts, *leaves):
        pairs = zip((*consts, *leaves), inputs, strict=True)
        given = [varied(x, varying(v)) for x, v in pairs]
        n = len(consts)
        pairs = zip(run(given[:n], *given[n:]), jaxpr.outvars, strict=True)
        return [lax.pmean(y, varying(v)) if varying(v) else y for y, v in pairs]

    kinds = (AxisType.Auto,) * len(mesh.axis_names)
    each = jax.sharding.PartitionSpec()
    devices = _devices(mesh, kinds)
    return jax.shard_map(local, mesh=devices, in_specs=each, out_specs=each, check_vma=vary)


def _devices(mesh: Any, kinds: Sequence[AxisType] | None = None) -> jax.sharding.Mesh:
    """A mesh of devices for an abstract one, whose axes are of these kinds or of its own."""
    axis_types = tuple(kinds or mesh.axis_types)
    return jax.make_mesh(mesh.axis_sizes, mesh.axis_names, axis_types=axis_types)


def _send(
    take: Callable[[Any], None], values: Any, wanted: Callable[[Any], Any], given: Any
) -> None:
    """Send values to the host, from where the program runs, if `wanted(given)`. Under `vmap`, those
    of one example are sent: without a rule of its own, a condition would send them all.
    """

    @custom_vmap
    def send(given, values):
        is_wanted = wanted(given)
        lax.cond(is_wanted, lambda v: jax.debug.callback(take, v), lambda v: None, values)
        return is_wanted

    @send.def_vmap
    def one_example(size, batched, given, values):
        in_axes = jax.tree.map(lambda many: 0 if many else None, batched[0])
        which = size // 2  # the first is often a special one, such as the border of a grid
        if any(jax.tree.leaves(batched[0])):
            which = jnp.argmax(jax.vmap(wanted, (in_axes,))(given))
        chosen = jax.tree.map(lambda x, many: x[which] if many else x, [given, values], batched)
        return send(*chosen), False

    send(*lax.stop_gradient((given, values)))


@functools.cache
def allow_transposing() -> None:
    """Let JAX transpose functions that send: what depends on a linear argument has no value there,
    and nothing is sent.
    """
    sent = make_jaxpr(lambda x: _send(print, x, jnp.all, x))(1.0)

    def transpose_of(primitive):
        def transpose(cotangents, *arguments, **params):
            given = cotangents if primitive.multiple_results else [cotangents]
            if all(type(ct) is ad.Zero for ct in given):
                return [None] * len(arguments)
            raise NotImplementedError(f"Transpose rule for '{primitive}' not implemented")

        return transpose

    for eqn in opened(sent)[0].eqns:
        ad.primitive_transposes.setdefault(eqn.primitive, transpose_of(eqn.primitive))


class Call(NamedTuple):
    """A call of a transformed function: which arguments are differentiated, and all of them."""

    argnums: tuple[int, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    has_aux: bool

    @classmethod
    def of_all(cls, primals: Sequence[Any], has_aux: bool = False) -> "Call":
        """A call whose arguments are all differentiated."""
        return cls(tuple(range(len(primals))), tuple(primals), {}, has_aux)

    def of_leaves(self, f: Callable, tree: Any) -> Callable:
        """The function's floating-point outputs as a function of the leaves; all else is
        constant.
        """

        def of(*leaves):
            full = list(self.args)
            for i, arg in zip(self.argnums, jax.tree.unflatten(tree, leaves), strict=True):
                full[i] = arg
            out = f(*full, **self.kwargs)
            return list(filter(is_inexact, jax.tree.leaves(out[0] if self.has_aux else out)))

        return of

    def names_of(self, consts: Sequence[Any]) -> list[str]:
        """The paths of those constants that are arguments; empty for the others."""
        paths, _ = jax.tree_util.tree_flatten_with_path((self.args, self.kwargs))
        named = {id(x): readable(path[1:]) for path, x in paths}
        return [named.get(id(const), "") for const in consts]


class Watcher:
    """Notes the gradients that a program takes.

    Attributes:
      points: how many points of each gradient are kept: the first, and others at intervals that
        grow with the number of calls.
      finite: whether to look for gradients that are not finite.
      trust: names of functions whose custom rules deliberately differ from their derivatives.
      stop: called the first time that a gradient is not finite.
      taken: the gradients.
    """

    def __init__(
        self,
        points: int = 1,
        finite: bool = True,
        trust: Sequence[str] = (),
        stop: Callable = lambda: None,
    ):
        self.points, self.finite, self.trust, self.stop = points, finite, trust, stop
        self.taken: dict[Any, Taken] = {}
        self._sending: set[Taken] = set()
        self._retraces = 0
        self._mine, self._lock = threading.local(), threading.Lock()

    @property
    def is_busy(self) -> bool:
        """Whether this thread works for the watcher itself."""
        return getattr(self._mine, "busy", False)

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Nothing that this thread does inside is noted."""
        before, self._mine.busy = self.is_busy, True
        try:
            yield
        finally:
            self._mine.busy = before

    def note(self, f: Callable, form: Form, called: Callable[[], Call], result: Any) -> None:
        """Note a call of a transformed function, and what it returned.

        Nothing that goes wrong here may reach the program, so `called` is called in here, too.
        """
        line = None if self.is_busy else _users_line()
        if line is None:
            return
        name = name_in_reports(f)
        with self.undisturbed():
            try:
                call = called()
                leaves, tree = jax.tree.flatten(tuple(call.args[i] for i in call.argnums))
                program = make_jaxpr(call.of_leaves(f, tree))(*leaves)
                if not (leaves and program.out_avals):
                    return  # there is nothing to differentiate
                if rules_use_traced(program):
                    # Values that depend on no input, such as a key, are then constants.
                    with jax.ensure_compile_time_eval():
                        program = make_jaxpr(call.of_leaves(f, tree))(*leaves)
                taken = Taken(line, name, form, tree, call.argnums)
                taken, point, values = self._taken(taken, program, call, leaves)
                taken.is_counted = self.points > 1 or (self.finite and form.gradient is not None)
                if taken.is_counted:
                    self._count_call(taken, values)
                self._see_point(taken, point, values)
                if self.finite and form.gradient is not None:
                    gradient = form.gradient(result, call.has_aux)
                    self._see_whether_finite(taken, point, values, gradient)
            except Exception as error:  # the user's function may raise anything when traced again
                taken = self.taken.setdefault((line, name), Taken(line, name, form))
                reason = reason_of(error)
                if isinstance(error, _NEED_VALUES):
                    reason = "it needs concrete values (`if`, `float`); try `check_gradient`"
                taken.trouble = f"not checked: {reason}"

    def _taken(
        self, taken: Taken, program: Program, call: Call, leaves: list[Any]
    ) -> tuple[Taken, Point, Any]:
        """The gradient that a call takes, known if it was taken before; the point, without its
        values; and these, as arrays or tracers.
        """
        consts = opened(program)[1]
        # Numbers of Python's in the function may differ from call to call, and so may weak types.
        kind = tuple(map(_kind_of, filter(_computes, equations(program))))
        key = taken.line, taken.name, taken.form, taken.argnums, taken.tree, kind
        alike = [other for other in list(self.taken) if other[:2] == key[:2]]
        if key not in self.taken and len(alike) >= KINDS:
            key = alike[-1]
            self.taken[key].trouble = f"only the first {KINDS} variants were watched"
        self.taken.setdefault(key, taken)
        point = Point(
            consts=[],
            leaves=[],
            program=emptied(silent(program)),
            names=call.names_of(consts),
            keys=[jax.random.key_impl(x) if is_key(x) else None for x in consts],
            x64=jnp.result_type(float) == np.float64,
            mesh=jax.sharding.get_abstract_mesh(),
        )
        consts = [jax.random.key_data(x) if is_key(x) else x for x in consts]
        return self.taken[key], point, (consts, leaves)

    def _count_call(self, taken: Taken, values: Any) -> None:
        """Count a call, now or whenever the program runs."""
        count = functools.partial(self._count, taken)
        if is_concrete(values):
            count()
        else:
            jax.debug.callback(count)

    def _see_point(self, taken: Taken, point: Point, values: Any) -> None:
        """Keep a point if one is due, now or when the program runs."""
        see = functools.partial(self._see, taken, point)
        if is_concrete(values):
            if self._wants(taken):
                see(_copies(values))
        elif self._wants(taken) or self._wants_soon(taken):
            self._sending.add(taken)
            _send(see, values, lambda _: np.True_, ())

    def _see_whether_finite(self, taken: Taken, point: Point, values: Any, gradient: Any) -> None:
        """Keep the first point whose gradient is not finite, now or when the program runs."""
        see = functools.partial(self._see_bad, taken, point)
        inexact = [g for g in jax.tree.leaves(gradient) if is_inexact(g)]
        if is_concrete(inexact, values):
            if _is_bad(inexact):
                see(_copies(values) if taken.bad is None else ())
        else:  # a point is kept once, but each call is counted
            _send(see, values if taken.bad is None else (), _is_bad, inexact)

    def _wants(self, taken: Taken) -> bool:
        """Whether a further point is due."""
        return self._wants_more(taken) and max(taken.calls, 1) >= taken.due

    def _wants_soon(self, taken: Taken) -> bool:
        """Whether a further point is due so soon that a program sends all points until then,
        instead of being compiled again without sending, and once more to send that one.
        """
        return self._wants_more(taken) and taken.due <= SPACING

    def _wants_more(self, taken: Taken) -> bool:
        return len(taken.points) < self.points + taken.is_counted

    def _count(self, taken: Taken) -> None:
        """Count a call, in any thread."""
        with self._lock:
            taken.calls += 1
        if self._wants(taken) and taken.asked < taken.due:
            taken.asked = taken.due
            if taken.points and taken not in self._sending:
                self._trace_again()

    def _see(self, taken: Taken, point: Point, values: Any) -> None:
        """Keep a point if one is due, in any thread."""
        with self._lock:  # several devices may send at once
            if self._wants(taken):
                taken.points.append(point.at(values))
                taken.latest = taken.calls
                taken.due = SPACING * max(taken.calls, taken.due)
        if not self._wants_soon(taken) and taken in self._sending:
            self._sending.discard(taken)
            if not self._sending:
                self._trace_again()

    def _trace_again(self) -> None:
        """Let programs be traced again: to send a point, or without sending any."""
        if self._retraces < RETRACES * self.points:
            self._retraces += 1
            forget_traces()
            trace_again()

    def _see_bad(self, taken: Taken, point: Point, values: Any) -> None:
        """Count a gradient that is not finite, and keep the first such point, in any thread. It is
        of no use as the spare point: another one is wanted.
        """
        with self._lock:
            taken.bad_calls += 1
            if len(taken.points) > self.points and taken.latest == taken.calls:
                taken.points.pop()
            if taken.bad is not None:
                return
            taken.bad, taken.bad_call = point.at(values), taken.calls
        self.stop()


def forget_traces() -> None:
    """Let `chex.assert_max_traces` count traces from 0 again: those for a check are not the
    program's.
    """
    getattr(sys.modules.get("chex"), "clear_trace_counter", lambda: None)()


def _copies(values: Any) -> Any:
    """Copies of arrays as NumPy arrays: a view would keep the program from giving its arrays away,
    and an array that was given away has no values.
    """
    return jax.tree.map(np.array, values)


# Where a wrapped function keeps its name for reports.
NAME = "_jaxnn_name"


def name_in_reports(f: Callable) -> str:
    """What a report calls a function; `grad(f)` for a gradient that is differentiated again."""
    return getattr(f, NAME, "") or name_of(f)


def _computes(eqn: Any) -> bool:
    """Whether an equation is more than a cast that only drops a weak type."""
    is_cast = eqn.primitive is primitives.convert_element_type_p
    return not (is_cast and eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype)


def _kind_of(eqn: Any) -> tuple[Any, ...]:
    """The primitive of an equation, and the shapes and dtypes of its outputs."""
    avals = [v.aval for v in eqn.outvars]
    forms = ((x.shape, x.dtype) if hasattr(x, "dtype") else x for x in avals)
    return eqn.primitive, *forms


# Directories of code that is not the user's.
_LIBRARIES = tuple(
    os.path.join(os.path.realpath(path), "")
    for path in {*map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))}
)
_HERE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")
# Code between the user's line and this module: of this package, of JAX, and of Python's imports.
_BETWEEN = (_HERE, JAX_FOLDER, "<frozen ")
_OWN = tuple(os.path.join(_HERE, part, "") for part in ("checking", "numerical"))


@functools.cache
def is_library(file: str) -> bool:
    """Whether a file is one of Python or of an installed package."""
    return os.path.realpath(file).startswith(_LIBRARIES)


def _users_line() -> SourceLine | None:
    """The user's line that is running, or the library's that is nearest to it; None if this package
    itself takes the gradient to check or to compute another.
    """
    frame = sys._getframe(4)
    if frame is not None and frame.f_code.co_filename.startswith(_OWN):
        return None
    frames = [f for f, _ in traceback.walk_stack(frame)]
    frames = [f for f in frames if not f.f_code.co_filename.startswith(_BETWEEN)]
    if not frames:
        return None
    found = next((f for f in frames if not is_library(f.f_code.co_filename)), frames[0])
    code, number = found.f_code, found.f_lineno
    text = linecache.getline(code.co_filename, number).strip()
    function = "" if code.co_name == "<module>" else code.co_name
    return SourceLine(code.co_filename, number, function, text)


@jax.jit
def _is_bad(leaves: Sequence[Any]) -> jax.Array:
    """Whether an entry is not finite."""
    bad = [jnp.any(~jnp.isfinite(x)) for x in leaves]
    return functools.reduce(jnp.logical_or, bad, jnp.bool_(False))
