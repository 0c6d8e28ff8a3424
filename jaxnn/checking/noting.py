"""Puts the watched form of JAX's transformations in their place, while a program is watched."""

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxnn._arguments import positions
from jaxnn._programs import traced_apart
from jaxnn.checking.undone import random_state, state_of
from jaxnn.checking.watch import (
    NAME,
    Call,
    Form,
    Watcher,
    allow_transposing,
    forget_traces,
    is_library,
    name_in_reports,
)
from jaxnn.numerical.interpret import keep_effects_under_vmap


def _first(result: Any, has_aux: bool) -> Any:
    return result[0] if has_aux else result


# Functions of JAX that return a function, and those that differentiate at once.
_RETURNING = {
    "grad": Form(gradient=_first),
    "value_and_grad": Form(gradient=lambda result, _: result[1]),
    "jacrev": Form(gradient=_first),
    "jacobian": Form(gradient=_first),
    "jacfwd": Form(gradient=_first, forward=True),
    "hessian": Form(gradient=_first, order=2),
}
_AT_ONCE = {"vjp": Form(), "linearize": Form(), "jvp": Form(forward=True)}

_ACTIVE: list[Watcher] = []


class _Inside(threading.local):
    """A context manager that counts the gradients that this thread computes, one inside another."""

    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *error: Any) -> None:
        self.depth -= 1

    def __reduce__(self) -> str:
        return "_INSIDE"  # a gradient function that is sent to another process finds its own


_INSIDE = _Inside()


def _returning(real: Callable, form: Form) -> Callable:
    """A transformation whose results are noted when they are called."""

    @functools.wraps(real)
    def transform(fun, argnums=0, has_aux=False, *rest, **options):
        transformed = real(fun, argnums, has_aux, *rest, **options)

        @functools.wraps(transformed)
        def call(*args, **kwargs):
            again = _Again(fun)
            with _INSIDE:
                result = transformed(*args, **kwargs)
            again.note(form, lambda: Call(positions(argnums, args), args, kwargs, has_aux), result)
            return result

        call.__dict__[NAME] = f"{real.__name__}({name_in_reports(fun)})"
        return call

    return transform


def _at_once(real: Callable, form: Form) -> Callable:
    """A transformation that is noted when it is called."""

    @functools.wraps(real)
    def transform(fun, *args, **options):
        # What a library does inside of a gradient is a part of it.
        if _INSIDE.depth and is_library(sys._getframe(1).f_code.co_filename):
            return real(fun, *args, **options)
        again = _Again(fun)
        with _INSIDE:
            result = real(fun, *args, **options)
        has_aux = bool(options.get("has_aux"))
        primals = lambda: (args or [options["primals"]])[0] if form.forward else args  # noqa: E731
        again.note(form, lambda: Call.of_all(primals(), has_aux), result)
        return result

    return transform


def _checking(real: Callable) -> Callable:
    """`jax.test_util.check_grads`, whose function is noted."""

    @functools.wraps(real)
    def check_grads(f, args, order, modes=("fwd", "rev"), *rest, **options):
        form = Form(order=min(order, 2), forward="rev" not in modes)
        _Again(f).note(form, lambda: Call.of_all(args), None)
        return real(f, args, order, modes, *rest, **options)

    return check_grads


def _minimizing(real: Callable) -> Callable:
    """`jax.scipy.optimize.minimize`, whose function is noted at its first point."""

    @functools.wraps(real)
    def minimize(fun, x0, args=(), *rest, **options):
        _Again(fun).note(Form(), lambda: Call((0,), (x0, *args), {}, False), None)
        return real(fun, x0, args, *rest, **options)

    return minimize


def _exporting(real: Callable) -> Callable:
    """`jax.export.export`, whose programs hold no callbacks of the watcher's."""

    @functools.wraps(real)
    def export(*args, **options):
        exported = real(*args, **options)

        @functools.wraps(exported)
        def call(*args, **kwargs):
            if not _ACTIVE:
                return exported(*args, **kwargs)
            with _ACTIVE[-1].undisturbed(), traced_apart():
                return exported(*args, **kwargs)

        return call

    return export


class _Again:
    """Lets a function be called once more as it was before a call, without a trace."""

    def __init__(self, f: Callable):
        self._f, self._before = f, state_of(f, is_library) if _ACTIVE else None

    def note(self, form: Form, called: Callable[[], Call], result: Any) -> None:
        """Note the call that was made, in the state that its function had before."""
        if self._before is None or not _ACTIVE:
            return
        after, drawn = state_of(self._f, is_library), random_state()
        self._before()
        forget_traces()
        try:
            _ACTIVE[-1].note(self._f, form, called, result)
        finally:
            forget_traces()
            after()
            drawn()


@functools.cache
def _wrapped() -> dict[Callable, Callable]:
    """The watched form of each function of JAX."""
    import jax.export
    import jax.scipy.optimize
    import jax.test_util

    kinds = ((_returning, _RETURNING), (_at_once, _AT_ONCE))
    wrapped = {
        getattr(jax, name): wrap(getattr(jax, name), form)
        for wrap, forms in kinds
        for name, form in forms.items()
    }
    for f in wrapped.values():
        f.__module__ = "jax"  # where pickle finds it
    others = {
        jax.test_util.check_grads: _checking,
        jax.scipy.optimize.minimize: _minimizing,
        jax.export.export: _exporting,
    }
    return wrapped | {real: wrap(real) for real, wrap in others.items()}


@contextlib.contextmanager
def noting(watcher: Watcher) -> Iterator[None]:
    """Note the gradients that are taken inside, by any module that has imported JAX's functions."""
    with traced_apart():  # what was compiled before is watched, too
        _ACTIVE.append(watcher)
        if len(_ACTIVE) == 1:
            allow_transposing()
            keep_effects_under_vmap()
            _replace(_wrapped())
        try:
            yield
        finally:
            _ACTIVE.remove(watcher)
            if not _ACTIVE:
                _replace({new: old for old, new in _wrapped().items()})


def _replace(functions: Mapping[Callable, Callable]) -> None:
    """Replace functions wherever a module has them under some name, except in JAX itself."""
    new_by_id = {id(old): new for old, new in functions.items()}
    for name, module in list(sys.modules.items()):
        if name.startswith("jax._src"):
            continue
        for attribute, value in list(getattr(module, "__dict__", {}).items()):
            if (new := new_by_id.get(id(value))) is not None:
                setattr(module, attribute, new)
