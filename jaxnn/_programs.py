"""Compiled programs, kept for functions that trace to the same program.

A function is traced at each call and compiled once for all functions that trace to the same
equations: one that reads a variable which has been set to something else is simply another program.
The values of constants are inputs of the compiled program, and nothing of the user's is kept alive.
To skip the tracing, pass a function that is already jitted: then JAX's own rules on what it notices
apply.
"""

import collections
import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core
from jaxtyping import PyTree

from jaxnn._validate import is_concrete
from jaxnn.numerical.identity import fingerprint
from jaxnn.numerical.interpret import (
    Program,
    emptied,
    make_jaxpr,
    opened,
    standalone,
    trace_context,
)

# How many compiled programs are kept; the least recently used goes first.
KEPT = 256
# A setting of JAX that is part of the key of its compiled programs, and that changes none of them
# unless they are profiled. Setting it to another value lets JAX trace them again.
RETRACE = "jax_pgle_profiling_runs"
_traces = itertools.count(1000)  # values of it that nobody else uses
_kept: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()
_of_jitted: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_lock = threading.Lock()
Options = Callable[[core.Jaxpr], dict[str, Any]]


class Traced(NamedTuple):
    """A function as the program that JAX traces it to.

    Attributes:
      jaxpr: its equations, without the values of its constants.
      consts: the values of the constants.
      shapes: of what the function returns, as a pytree.
      key: equal for equal programs; None if they cannot be compared.
    """

    jaxpr: core.Jaxpr
    consts: tuple[Any, ...]
    shapes: PyTree
    key: Hashable

    @classmethod
    def of(cls, f: Callable, *args: PyTree) -> "Traced":
        """Trace `f` for arguments like these; through a function of its own, so that JAX does not
        return an earlier trace.
        """
        return cls.of_program(*make_jaxpr(lambda *args: f(*args), return_shape=True)(*args))

    @classmethod
    def of_program(cls, program: Program, shapes: PyTree) -> "Traced":
        """From a trace that has been made already."""
        plain = standalone(program)
        try:
            key = fingerprint(plain), jax.tree.structure(shapes)
            hash(key)
        except TypeError:
            key = None
        return cls(emptied(plain), tuple(opened(plain)[1]), shapes, key)

    @property
    def bare(self) -> "Traced":
        """The same without the values of its constants: what a kept program may hold."""
        return self._replace(consts=())

    def __call__(self, consts: Sequence[Any], *args: PyTree) -> PyTree:
        """What the function returns, given the values of its constants."""
        program = core.ClosedJaxpr(self.jaxpr, list(consts))
        outputs = core.jaxpr_as_fun(program)(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(self.shapes), outputs)


class Jitted:
    """Like `jax.jit(f)`, but functions that trace to the same program share one compilation.

    The compiler's options may depend on the program; as those of `jax.jit`, they are for outermost
    calls alone: inside a traced function, call `__wrapped__`.
    """

    def __init__(
        self,
        f: Callable,
        donate_argnums: tuple[int, ...] = (),
        programs: dict | None = None,
        options: Options | None = None,
    ):
        self.__wrapped__, self._donate, self._options = f, donate_argnums, options
        self._programs: dict[Hashable, Any] = {} if programs is None else programs

    def __call__(self, *args: PyTree) -> PyTree:
        """`f(*args)`; traced once for each form of the arguments."""
        program, consts = self._program(args)
        return program(consts, *args)

    def lower(self, *args: PyTree) -> jax.stages.Lowered:
        """The program for such arguments, before compilation."""
        program, consts = self._program(args)
        return program.lower(consts, *args)

    def _program(self, args: Sequence[PyTree]) -> tuple[Any, Sequence[Any]]:
        leaves, tree = jax.tree.flatten(args)
        form = tree, tuple(map(jax.typeof, leaves)), trace_context()
        if (found := self._programs.get(form)) is None:
            traced = Traced.of(self.__wrapped__, *args)
            key = None if traced.key is None else (traced.key, self._donate, self._options)
            program = kept(key, lambda: jitted(traced.bare, self._donate, self._options))
            found = self._programs[form] = program, traced.consts
        return found


def programs_of(function: Callable, other: Callable, *key: Hashable) -> dict | None:
    """Where a `Jitted` made of these functions finds the programs of an earlier one if the first is
    jitted, since JAX would not trace it again, either. They are kept while both functions live;
    None if they cannot be.
    """
    if not isinstance(function, jax.stages.Wrapped):
        return None
    try:
        of_other = _of_jitted.setdefault(function, weakref.WeakKeyDictionary())
        found = of_other.setdefault(other, {})
        if sum(map(len, found.values())) >= KEPT:
            found.clear()
        return found.setdefault(key, {})
    except TypeError:  # without weak references, or without a hash
        return None


def jitted(
    traced: Traced, donate_argnums: tuple[int, ...] = (), options: Options | None = None
) -> Any:
    """A traced function, jitted; it takes the values of its constants first."""
    donated = tuple(number + 1 for number in donate_argnums)
    return jax.jit(
        lambda consts, *args: traced(consts, *args),
        donate_argnums=donated,
        compiler_options=options and options(traced.jaxpr),
    )


def kept(key: Hashable, build: Callable[[], Any]) -> Any:
    """What `build` returns, built once for equal keys; anew each time if the key is None."""
    if key is None:
        return build()
    with _lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    made = build()
    with _lock:
        made = _kept.setdefault(key, made)  # another thread may have been first
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    return made


def trace_again() -> None:
    """Let JAX trace and compile programs again when they are next called."""
    jax.config.update(RETRACE, next(_traces))


@contextlib.contextmanager
def traced_apart() -> Iterator[None]:
    """Use no program that was compiled before, and none that is compiled inside afterwards."""
    usual = getattr(jax.config, RETRACE)
    trace_again()
    try:
        yield
    finally:
        jax.config.update(RETRACE, usual)


def outermost(values: PyTree) -> bool:
    """Whether neither the values nor the place of the call are traced."""
    return is_concrete(values, jax.device_put(np.zeros(())))
