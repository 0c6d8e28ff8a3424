"""Watching: what is caught, what the report says, and that nothing of the program changes."""

import _thread
import dataclasses
import functools
import json
import math
import operator
import os
import pickle
import random
import re
import runpy
import signal
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time
from collections import deque
from types import SimpleNamespace

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.experimental.ode import odeint
from jax.scipy.optimize import minimize
from jax.test_util import check_grads
from watched_programs import require_watched, unit

import jaxnn
from jaxnn import GradientError, gradient_descent, watching
from jaxnn._programs import Jitted
from jaxnn.checking import noting as noting_module, questions, watch, watched as watched_module
from jaxnn.checking.noting import noting
from jaxnn.checking.watch import Watcher
from jaxnn.cli.parser import main

RNG = np.random.default_rng(0)
HESSIAN = jnp.array([[2.0, 1.0], [1.0, 3.0]])
X, Y = (jnp.asarray(RNG.normal(size=shape), "float32") for shape in ((8, 4), (8, 2)))
POINT = jnp.array([0.3, 0.7, -0.2])


def init(*sizes):
    rng = np.random.default_rng(1)
    shapes = zip(sizes, sizes[1:], strict=False)
    return [jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5, "float32") for shape in shapes]


def mlp(unit, params, x):
    for w in params[:-1]:
        x = unit(x @ w)
    return x @ params[-1]


def updated(params, gradient):
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)


# Programs, each a function of the unit; they return what they computed.
def a_jitted_step(unit):
    opt, params = optax.adam(1e-2), init(4, 8, 2)
    state = opt.init(params)
    loss = lambda p, x, y: jnp.mean((mlp(unit, p, x) - y) ** 2)  # noqa: E731

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params, X, Y)
        updates, state = opt.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    for _ in range(3):
        params, state, value = step(params, state)
    return params, value


def steps_in_a_scan(unit):
    loss = lambda p, i: jnp.mean((mlp(unit, p, X[i]) - Y[i]) ** 2)  # noqa: E731
    body = lambda p, key: (updated(p, jax.grad(loss)(p, jax.random.permutation(key, 8)[:4])), 0)  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 4)
    return jax.jit(lambda p: lax.scan(body, p, keys))(init(4, 8, 2))


def methods_with_keywords(unit):
    class Model:
        scale = 2.0

        def loss(self, params, x, *, y, depth):
            for _ in range(depth):  # an integer of Python's
                x = unit(x @ params[0])
            return self.scale * jnp.mean((x - y) ** 2)

    gradient = jax.grad(Model().loss)
    return [gradient(init(4, 4), X, y=X, depth=depth) for depth in (1, 2)]


def an_autoencoder(unit):
    def elbo(params, key):
        hidden = mlp(unit, params["e"], X)
        mean, log = hidden[:, :2], hidden[:, 2:]
        z = mean + jnp.exp(log) * jax.random.normal(key, mean.shape)
        error = jnp.mean((mlp(unit, params["d"], z) - X) ** 2)
        return error + 0.1 * jnp.mean(mean**2 + jnp.exp(2 * log) - 2 * log)

    params = {"e": init(4, 8, 4), "d": init(2, 8, 4)}
    return jax.jit(jax.grad(elbo))(params, jax.random.key(0))


def two_players(unit):
    fakes = lambda g, z: mlp(unit, g, z)  # noqa: E731

    def d_loss(d, g, z):
        real, fake = mlp(unit, d, X), mlp(unit, d, fakes(g, z))
        return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake))

    g_loss = lambda d, g, z: jnp.mean(jax.nn.softplus(-mlp(unit, d, fakes(g, z))))  # noqa: E731

    @jax.jit
    def step(d, g, key):
        z = jax.random.normal(key, (8, 2))
        d = updated(d, jax.grad(d_loss)(d, g, z))
        return d, updated(g, jax.grad(g_loss, argnums=1)(d, g, z))

    return step(init(4, 8, 1), init(2, 8, 4), jax.random.key(0))


def a_gradient_penalty(unit):
    critic = lambda d, x: mlp(unit, d, x)[0]  # noqa: E731

    def loss(d):
        slopes = jax.vmap(jax.grad(critic, argnums=1), (None, 0))(d, X)
        return jnp.mean((jnp.sqrt(jnp.sum(slopes**2, -1) + 1e-6) - 1) ** 2)

    return jax.jit(jax.grad(loss))(init(4, 8, 1))


def a_gradient_in_a_gradient(unit):
    loss = lambda p, x, y: jnp.mean((mlp(unit, p, x) - y) ** 2)  # noqa: E731
    inner = lambda p: updated(p, jax.grad(loss)(p, X[:4], Y[:4]))  # noqa: E731
    return jax.jit(jax.grad(lambda p: loss(inner(p), X[4:], Y[4:])))(init(4, 8, 2))


def a_differential_equation(unit):
    u = lambda p, t: mlp(unit, p, t[None])[0]  # noqa: E731

    def loss(p, times):
        slope = lambda t: jax.grad(u, argnums=1)(p, t)  # noqa: E731
        return jnp.mean(jax.vmap(lambda t: jax.grad(slope)(t) + u(p, t))(times) ** 2)

    return jax.jit(jax.value_and_grad(loss))(init(1, 8, 1), jnp.linspace(0, 1, 5))


def a_solver_with_its_own_adjoint(unit):
    def loss(w):
        start, times = jnp.array([1.0, 0.5]), jnp.array([0.0, 1.0])
        return jnp.sum(odeint(lambda y, t, w: unit(w @ y), start, times, w)[-1] ** 2)

    return jax.jit(jax.grad(loss))(jnp.array([[0.1, 0.2], [-0.3, 0.4]]))


def reinforcement(unit):
    def surrogate(p, action, advantage):
        logp = jax.nn.log_softmax(mlp(unit, p, X))
        ratio = jnp.exp(jnp.take_along_axis(logp, action[:, None], 1)[:, 0] + 0.7)
        return -jnp.mean(jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage))

    def update(p, key):
        action, advantage = jax.random.randint(key, (8,), 0, 2), jax.random.normal(key, (8,))
        value, gradient = jax.value_and_grad(surrogate)(p, action, advantage)
        return updated(p, gradient), value

    keys = jax.random.split(jax.random.key(3), 2)
    return jax.jit(lambda p: lax.scan(update, p, keys))(init(4, 8, 2))


def contrast(unit):
    def loss(p):
        a, b = mlp(unit, p, X), mlp(unit, p, X + 0.1)
        a, b = (z / jnp.linalg.norm(z, axis=-1, keepdims=True) for z in (a, b))
        return -jnp.mean(jnp.diag(jax.nn.log_softmax(a @ b.T / 0.2)))

    return jax.jit(jax.grad(loss))(init(4, 8, 3))


def hamiltonian_monte_carlo(unit):
    energy = lambda q: jnp.sum(unit(q) ** 2) + 0.5 * jnp.sum(q**2)  # noqa: E731

    def leapfrog(carry, _):
        q, m = carry
        q = q + 0.1 * (m - 0.05 * jax.grad(energy)(q))
        return (q, m - 0.1 * jax.grad(energy)(q)), None

    run = lambda q, m: lax.scan(leapfrog, (q, m), None, length=3)[0]  # noqa: E731
    return jax.jit(run)(POINT, jnp.ones(3))


def a_line_search(unit):
    f = lambda x: jnp.sum((unit(x) - 0.3) ** 2) + 0.01 * jnp.sum(x**2)  # noqa: E731
    opt, x = optax.lbfgs(), jnp.ones(3)
    state, both = opt.init(x), optax.value_and_grad_from_state(f)
    for _ in range(2):
        value, gradient = both(x, state=state)
        updates, state = opt.update(gradient, state, x, value=value, grad=gradient, value_fn=f)
        x = optax.apply_updates(x, updates)
    return x


def a_pullback(unit):
    y, pull = jax.vjp(lambda p: mlp(unit, p, X), init(4, 8, 2))
    return pull(jnp.ones_like(y))


def a_while_loop(unit):
    f = lambda x: jnp.sum((unit(x) - 0.3) ** 2)  # noqa: E731
    body = lambda c: (c[0] - 0.1 * jax.grad(f)(c[0]), c[1] + 1)  # noqa: E731
    return jax.jit(lambda x: lax.while_loop(lambda c: c[1] < 3, body, (x, 0)))(POINT)


def a_branch(unit):
    f = jax.grad(lambda x: jnp.sum((unit(x) - 0.3) ** 2))
    return jax.jit(lambda x, yes: lax.cond(yes, f, lambda x: x, x))(POINT, True)


def rematerialised(unit):
    loss = lambda p: jnp.mean((jax.checkpoint(functools.partial(mlp, unit))(p, X) - Y) ** 2)  # noqa: E731
    return jax.jit(jax.grad(loss))(init(4, 8, 2))


def example_by_example(unit):
    loss = lambda p, x, y: jnp.mean((mlp(unit, p, x) - y) ** 2)  # noqa: E731
    return jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(init(4, 8, 2), X, Y)


def a_transposed_gradient(unit):
    def loss(c):
        product = lambda v: jax.grad(lambda v: v @ HESSIAN @ v)(v)  # noqa: E731
        return jnp.sum(unit(jax.linear_transpose(product, c)(c)[0]) ** 2)

    return jax.jit(jax.grad(loss))(jnp.array([0.1, 0.2]))


def donated_with_an_auxiliary(unit):
    def loss(p):
        out = mlp(unit, p, X)
        return jnp.mean((out - Y) ** 2), {"out": out, "name": "a string"}

    @functools.partial(jax.jit, donate_argnums=0)
    def step(p):
        (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(p)
        return updated(p, gradient), value, jnp.sum(aux["out"])

    return step(step(init(4, 8, 2))[0])


def jacobians(unit):
    return jax.jacrev(lambda x: unit(x) * x[::-1])(POINT), jax.jacfwd(jnp.sin)(POINT)


def a_test_of_gradients(unit):
    loose = {"atol": 10, "rtol": 10}
    check_grads(lambda x: jnp.sum(unit(x)), (POINT,), order=1, modes=["rev"], **loose)
    return POINT


def minimized(unit):
    return minimize(lambda x, y: jnp.sum(unit(x) * y), POINT, (POINT,), method="BFGS").x


def in_a_thread(unit):
    found = []
    work = lambda: found.append(jax.grad(lambda x: jnp.sum(unit(x)))(POINT))  # noqa: E731
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found


def trained_by_fit(unit):
    loss = lambda p, x, y: jnp.mean((mlp(unit, p, x) - y) ** 2)  # noqa: E731
    options = {"epochs": 2, "batch_size": 4, "key": jax.random.key(0)}
    return jaxnn.fit(loss, init(4, 8, 2), (X, Y), optax.sgd(0.1), **options).params


PROGRAMS = [
    a_jitted_step,
    steps_in_a_scan,
    methods_with_keywords,
    an_autoencoder,
    two_players,
    a_gradient_penalty,
    a_gradient_in_a_gradient,
    a_differential_equation,
    a_solver_with_its_own_adjoint,
    reinforcement,
    contrast,
    hamiltonian_monte_carlo,
    a_line_search,
    a_pullback,
    a_while_loop,
    a_branch,
    rematerialised,
    example_by_example,
    a_transposed_gradient,
    donated_with_an_auxiliary,
    jacobians,
    a_test_of_gradients,
    minimized,
    in_a_thread,
    trained_by_fit,
]
QUICK = (
    steps_in_a_scan,
    methods_with_keywords,
    a_gradient_in_a_gradient,
    example_by_example,
    a_transposed_gradient,
    minimized,
    trained_by_fit,
)
SLOW = [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in PROGRAMS]


@pytest.mark.parametrize("program", SLOW, ids=lambda program: program.__name__)
def test_a_wrong_rule_is_found_in_a_program_and_nothing_else_changes(program):
    require_watched(program)


def not_finite_after(steps, take):
    """A program whose gradient is infinite in one of its steps."""

    def f(w, i):
        return jnp.sum(jnp.sqrt(jnp.abs(w - i)))

    return take(jax.grad(f), jnp.full(2, float(steps)))


TAKEN = {
    "eager": lambda g, w: [g(w, float(i)) for i in range(6)],
    "jit": lambda g, w: [jax.jit(g)(w, float(i)) for i in range(6)],
    "scan": lambda g, w: jax.jit(lambda: lax.scan(lambda c, i: (c, g(w, i)), 0, jnp.arange(6.0)))(),
    "vmap": lambda g, w: jax.jit(jax.vmap(g, (None, 0)))(w, jnp.arange(6.0)),
}


@pytest.mark.parametrize("how", TAKEN)
def test_a_gradient_that_is_not_finite_is_named_with_its_call_and_inputs(how, tmp_path):
    with watching() as watched:
        not_finite_after(3, TAKEN[how])
    (place,) = watched.report.places
    assert watched.report.exit_code == 1 and place.is_wrong
    assert place.not_finite.births[0].operation == "sqrt"
    assert not place.not_finite.finite_in_float64
    if how in ("eager", "scan"):
        assert place.call == 4 and "not finite in call 4" in str(place)
    (file,) = watched.report.save_inputs(tmp_path)
    with np.load(file, allow_pickle=False) as saved:
        assert saved["[0]"].tolist() == [3.0, 3.0]


@pytest.mark.parametrize("how", ["eager", "jit"])
@pytest.mark.parametrize(
    "energy, at, code",
    [
        (lambda x: jnp.sum(jnp.exp(x) * x**2), [0.1, 99.0, 0.2, 98.0, 0.3, 0.4], 0),
        (lambda x: jnp.sum(jnp.exp(x) * x**2), [0.1, 99.0, 98.0, 99.0, 98.0, 99.0], 1),
        (lambda x: jnp.sum(jnp.sqrt(jnp.abs(x))), [0.1, 0.0, 0.2, 0.0, 0.3, 0.4], 1),
    ],
    ids=["a step that is rejected", "for good", "the value is finite"],
)
def test_where_the_value_is_infinite_too_a_program_may_go_on(how, energy, at, code):
    with watching() as watched:
        gradient = jax.jit(lambda x: jax.grad(energy)(x)) if how == "jit" else jax.grad(energy)
        for x in at:
            gradient(jnp.float32(x) * jnp.ones(3))
            jax.effects_barrier()
    (place,) = watched.report.places
    assert (watched.report.exit_code, place.call) == (code, 2)
    assert ("nor was the value; finite again later" in str(place)) == (code == 0)


@pytest.mark.parametrize("dtype, code", [("float16", 0), ("float32", 1)])
def test_a_scaled_loss_may_exceed_the_range_of_half_precision(dtype, code):
    """As long as the program goes on; in a wider dtype, no program scales its loss."""

    def loss(w, scale):
        return scale * jnp.sum(w.astype(dtype)).astype(jnp.float32) ** 2

    huge = 1e6 if dtype == "float16" else 3e38
    with watching() as watched:
        for scale in (huge, 1.0, 1.0, 1.0, 1.0):
            jax.grad(loss)(jnp.array([0.3, 0.35]), jnp.float32(scale))
    (place,) = watched.report.places
    assert watched.report.exit_code == code and place.not_finite.finite_in_float64
    assert ("beyond the range of float16; finite again later" in str(place)) == (code == 0)
    assert str(place.not_finite).endswith("the same gradient in float64 is finite")


@jax.custom_vjp
def wrong_square(w):
    return w**2


wrong_square.defvjp(lambda w: (w**2, w), lambda w, g: (3 * w * g,))


@pytest.mark.parametrize("jit", [jax.jit, lambda f: f])
@pytest.mark.parametrize("finite_from, verdicts, code", [(10, 2, 1), (30, 1, 2)])
def test_a_gradient_is_checked_at_the_first_spare_point_where_it_is_finite(
    finite_from, verdicts, code, jit
):
    loss = lambda w, x: jnp.sum(wrong_square(w)) * jnp.sqrt(x)  # noqa: E731
    with watching() as watched:
        step = jit(jax.grad(loss))
        for k in range(32):
            x = jnp.float32(2.0 if k >= finite_from else -2.0)
            jax.block_until_ready(step(jnp.array([0.3, 0.35]), x))
    assert watched.report.exit_code == code
    (place,) = watched.report.places
    expected = ["not finite", "differs"][:verdicts]
    assert [report.verdict for report in place.reports] == expected
    assert ("finite again later, but no such point was checked" in str(place)) == (code == 2)


def test_a_leaf_that_is_not_finite_does_not_hide_another_that_is_wrong():
    def loss(w, v):
        h = v.astype("float16")  # its gradient is beyond the range
        return 1e6 * (jnp.sum(wrong_square(w)) + jnp.sum(h).astype(jnp.float32) ** 2)

    with watching() as watched:
        jax.grad(loss, (0, 1))(jnp.array([0.3, 0.35]), jnp.array([0.3]))
    assert "wrong rule: custom_vjp of `wrong_square`" in str(watched.report)


def test_gradients_in_one_line_are_told_apart():
    f = lambda x, y: jnp.sin(x) * y  # noqa: E731
    with watching() as watched:
        _ = jax.grad(f)(1.0, 2.0), jax.grad(f, 1)(1.0, 2.0), jax.hessian(f)(1.0, 2.0)
    assert [place.subject for place in watched.report.places] == [
        "gradient of <lambda>",
        "gradient of <lambda> with respect to argument 1",
        "Hessian of <lambda>",
    ]


@pytest.mark.parametrize(
    "ending, code, said",
    [
        ("sys.exit(1.5)", 1, "1.5\n"),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('over')", 1, "over\n"),
        ("sys.exit()", 0, ""),
        ("sys.stdout.close()", 0, ""),
    ],
)
def test_a_program_ends_as_it_does_alone(tmp_path, ending, code, said):
    path = tmp_path / "ends.py"
    path.write_text(
        f"import sys, jax\nprint(jax.grad(lambda x: x * x)(1.0), flush=True)\n{ending}\n"
    )
    command = [sys.executable, "-m", "jaxnn", "watch", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout) == (code, "2.0\n")
    assert run.stderr.startswith(f"{said}1 gradient taken"), run.stderr


SETTINGS = """
import os
os.environ |= {"JAX_ENABLE_X64": "1", "JAX_NUMPY_DTYPE_PROMOTION": "strict"}
os.environ |= {"JAX_NUM_CPU_DEVICES": "3", "JAX_THREEFRY_PARTITIONABLE": "no"}
import jax.numpy as jnp, jax
os.environ["JAX_DEBUG_NANS"] = "1"  # too late
print(jax.grad(jnp.sum)(jnp.ones(2)).dtype, jax.config.jax_numpy_dtype_promotion)
print(jax.device_count(), jax.config.jax_debug_nans, jax.random.normal(jax.random.key(0), (2,)))
print(jax.__spec__.origin == jax.__file__, "jax" in __import__("sys").modules)
"""


def test_what_a_program_sets_before_it_imports_jax_holds(tmp_path):
    path = tmp_path / "settings.py"
    path.write_text(SETTINGS)
    alone, watched = (
        subprocess.run(
            [sys.executable, *how, str(path)], capture_output=True, text=True, check=True
        )
        for how in ([], ["-m", "jaxnn", "watch"])
    )
    assert alone.stdout.startswith("float64 strict\n3 False")
    assert watched.stdout == alone.stdout and "1 leaf agrees" in watched.stderr


class Keys:
    """Random keys, one after another, in a slot."""

    __slots__ = ("key",)

    def __init__(self):
        self.key = jax.random.key(0)

    def __next__(self):
        self.key, key = jax.random.split(self.key)
        return key


class Model:
    """A model with everything that a call may change."""

    def __init__(self):
        self.key, self.mean, self.losses, self.calls = jax.random.key(1), 0.0, deque([0]), {"n": 0}
        self.generator = np.random.default_rng(2)

    def loss(self, w):
        self.key, key = jax.random.split(self.key)
        self.mean = 0.9 * self.mean + 0.1
        self.losses.append(len(self.losses))
        self.calls["n"] += 1
        noise = jax.random.normal(key, w.shape) + self.generator.normal()
        return jnp.mean((w - self.mean) ** 2 * noise)


COUNT, KEYS, DRAWS = 0, Keys(), np.random.default_rng(3)


class Noise:
    def __call__(self, w):
        return w * DRAWS.normal(size=w.shape)


NOISE = Noise()


def of_a_method(w):
    return jnp.sum(NOISE(w) ** 2)


def of_globals(w):
    global COUNT
    COUNT += 1
    return jnp.sum(w**2) * jax.random.uniform(next(KEYS)) * COUNT


def of_numpy(w):
    return jnp.sum(w**2) * np.random.uniform() * random.random()


def test_a_function_that_changes_things_is_called_once_as_far_as_it_can_tell():
    def run():
        global COUNT, KEYS, DRAWS
        COUNT, KEYS, model, calls = 0, Keys(), Model(), 0
        DRAWS, partial = np.random.default_rng(3), functools.partial
        np.random.seed(0)
        random.seed(0)

        def of_closure(w):
            nonlocal calls
            calls += 1
            return jnp.sum(w**2) * calls

        fs = model.loss, of_globals, of_numpy, of_closure, partial(of_closure), of_a_method
        found = [jax.grad(f)(POINT) for _ in range(3) for f in fs]
        state = COUNT, calls, model.mean, list(model.losses), model.calls, random.random()
        drawn = np.random.uniform(), model.generator.normal(), DRAWS.normal()
        return found, state, drawn, model.key, KEYS.key

    alone = run()
    with watching() as watched:
        beside = run()
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), alone, beside))
    assert watched.report.ok, str(watched.report)


FILLED = []


def fills_a_list_inside(x):
    def inside(x):
        FILLED.append(x)
        return x**2

    return inside(x)


def test_what_a_function_fills_that_others_wrap_is_put_back():
    filled = []

    def fills(x):
        filled.append(x)
        return x**2

    def wrapped(f):
        return lambda x: f(x)

    for _ in range(10):
        fills = wrapped(fills)
    with watching():
        jax.grad(fills)(3.0)
        jax.grad(fills_a_list_inside)(3.0)
    assert len(filled) == 1 and len(FILLED) == 1


class Shy:
    """An object that does not let itself be looked at."""

    def __getattribute__(self, name):
        raise RuntimeError(name)


class Uncopied(dict):
    def copy(self):
        raise RuntimeError("cannot be copied")


def test_what_cannot_be_looked_at_is_left_alone():
    shy, uncopied, calls = Shy(), Uncopied(a=1), [0]

    def loss(w):
        calls[0] += 1
        return jnp.sum(w**2) * len([shy, uncopied])

    with watching() as watched:
        gradient = jax.grad(loss)(POINT)
    assert calls == [1] and jnp.all(gradient == 4 * POINT) and watched.report.ok


def test_digits_that_a_program_loses_are_named():
    c = jnp.full(2, 1e4)
    f = lambda b: jnp.sum(((c + b) - c) ** 2)  # noqa: E731
    with watching() as watched:
        jax.jit(jax.grad(f))(jnp.array([0.012345, 0.02]))
    (place,) = watched.report.places
    assert "call; imprecise" in str(place) and "lost at" in str(place)
    assert place.reports[0].digits_lost and "note:" not in str(place)


def test_what_is_masked_is_not_reported_as_not_finite():
    safe = lambda w: jnp.sum(jnp.where(w > 0, jnp.log(jnp.where(w > 0, w, 1)), 0) * w)  # noqa: E731
    with watching() as watched:
        jax.jit(jax.vmap(jax.grad(safe)))(jnp.array([[0.5], [2.0]]))
    assert watched.report.exit_code == 0, str(watched.report)


def test_a_program_that_was_compiled_before_is_watched_and_is_not_compiled_again_after():
    traces = []
    step = jax.jit(lambda x: traces.append(x) or jax.grad(lambda x: jnp.sum(x**2))(x))
    step(POINT)
    config = jax.config.values.copy()
    with watching() as watched:
        step(POINT)
    assert watched.report.ok and jax.config.values == config
    before = len(traces)
    step(POINT)
    assert len(traces) == before
    assert "callback" not in step.lower(POINT).as_text()


def test_a_kept_program_of_this_package_is_watched_too():
    f = lambda x: jnp.sum(x**2) * 3  # noqa: E731
    jitted = Jitted(lambda x: jax.grad(f)(x))
    jitted(POINT)
    with watching() as watched:
        jitted(POINT)
    assert watched.report.ok
    assert "callback" not in jitted.lower(POINT).as_text()


def test_numbers_that_change_make_one_place_and_shapes_no_more_than_allowed(monkeypatch):
    monkeypatch.setattr(watch, "KINDS", 3)
    f = lambda x, rate, step: jnp.sum(x**2) * rate * (step + 1)  # noqa: E731
    with watching() as watched:
        for step in range(20):
            jax.grad(f)(POINT, 0.1 * step, step)
    (place,) = watched.report.places
    assert place.calls == 20
    with watching() as watched:
        for step in range(5):
            jax.grad(f)(jnp.ones(step + 1), 0.1, 1)
    assert len(watched.report.places) == 3
    assert "only the first 3 variants were watched" in str(watched.report)


def test_what_is_wrong_with_every_shape_for_the_same_reason_is_told_in_full_once():
    def wrong(x):
        return jax.grad(lambda x: jnp.sum(unit(1.1)(x)))(x)

    with watching() as watched:
        for size in (2, 3, 4):
            wrong(jnp.ones(size))
        wrong(jnp.full(5, 100.0))  # the gradient is 0, and right
    first, *others = str(watched.report).split("gradient of <lambda>: ")[1:]
    assert first.startswith("1 call; differs\n") and "wrong rule: custom_vjp" in first
    assert [text.partition("\n")[0] for text in others[:2]] == ["1 call; differs; see above"] * 2
    assert others[2].startswith("1 call; 1 leaf agrees")
    with pytest.raises(GradientError) as error:
        watched.report.raise_if_wrong()
    assert str(error.value).count("wrong rule") == 1 and str(error.value).count("see above") == 2


@pytest.mark.parametrize("is_counted", [True, False])
def test_traces_for_the_watcher_are_not_counted(monkeypatch, is_counted):
    """As by `chex.assert_max_traces`."""
    traces, most = [], 0
    counter = SimpleNamespace(clear_trace_counter=traces.clear)
    monkeypatch.setitem(sys.modules, "chex", counter if is_counted else SimpleNamespace())

    def counted(x):
        nonlocal most
        traces.append(1)
        most = max(most, len(traces))
        return jnp.sum(x**2)

    step = jax.jit(lambda x: x - jax.grad(counted)(x))
    with watching() as watched:
        for _ in range(10):
            step(POINT)
    assert watched.report.ok and (most == 1) == is_counted


def test_what_is_watched_can_be_pickled():
    with watching():
        assert pickle.loads(pickle.dumps(jax.grad)) is jax.grad
        held = noting_module._INSIDE  # by gradients
        assert pickle.loads(pickle.dumps(held)) is held


def test_what_a_function_prints_is_not_printed_by_its_check(capfd):
    def loss(x):
        jax.debug.print("{x}", x=x[0])
        return jnp.sum(x**2)

    with watching() as watched:
        for _ in range(3):
            jax.jit(jax.grad(loss))(POINT)
    assert watched.report.ok and capfd.readouterr().out == f"{POINT[0]}\n" * 3


def test_a_function_that_needs_concrete_values_is_listed():
    with watching() as watched:
        jax.grad(lambda x: x**2 if x > 0 else x)(3.0)
    (place,) = watched.report.places
    assert place.trouble == (
        "not checked: it needs concrete values (`if`, `float`); try `check_gradient`"
    )
    assert watched.report.exit_code == 2


def test_points_are_sent_once_and_then_no_more():
    watcher, f = Watcher(finite=False), lambda x: jnp.sum(jnp.sin(x))  # noqa: E731
    with noting(watcher):
        step = jax.jit(lambda x: jax.grad(f)(x))
        step(POINT).block_until_ready()
        jax.effects_barrier()
        assert "callback" not in step.lower(POINT).as_text()
    (taken,) = watcher.taken.values()
    assert len(taken.points) == 1


def descend(f, how, steps=70):
    """The steps of a descent as calls, as calls of a jitted function, or as a scan."""
    step = lambda x: (x - 0.01 * jax.grad(f)(x), x)  # noqa: E731
    if how == "scan":
        return jax.jit(lambda x: lax.scan(lambda x, _: step(x), x, length=steps))(POINT)[1]
    step, before = (jax.jit(step) if how == "jit" else step), []
    x = POINT
    for _ in range(steps):
        x, old = step(x)
        before.append(old)
        jax.effects_barrier()
    return jnp.stack(before)


@pytest.mark.promotes
@pytest.mark.parametrize("finite", [True, False])
@pytest.mark.parametrize("how", ["eager", "jit", "scan"])
def test_further_points_are_spread_over_the_run(how, finite):
    watcher, f = Watcher(points=4, finite=finite), lambda x: jnp.sum(x**3)  # noqa: E731
    with noting(watcher):
        points = descend(f, how)
        jax.effects_barrier()
    (taken,) = watcher.taken.values()
    assert taken.calls == 70
    kept = [int(np.argmin(jnp.sum((points - p.leaves[0]) ** 2, 1))) + 1 for p in taken.points]
    exactly = [1, 4, 16, 64]
    # A jitted function is traced again to send a late point, so it sends that of the next call.
    assert kept == (exactly if how != "jit" else [1, 4, 17, 69])


@pytest.mark.parametrize("how", ["eager", "jit"])
def test_where_a_gradient_is_0_at_first_a_later_point_is_checked_too(how):
    f = lambda w: jnp.mean((unit(1.5)(w["a"]) * w["b"] - 1) ** 2)  # noqa: E731
    step = lambda w: jax.tree.map(lambda p, g: p - 0.1 * g, w, jax.grad(f)(w))  # noqa: E731
    step = jax.jit(step) if how == "jit" else step
    for start, count in ((0.0, 2), (0.5, 1)):  # a layer that starts at 0 hides those before it
        w = {"a": POINT, "b": jnp.full(3, start)}
        with watching() as watched:
            for _ in range(5):
                w = step(w)
        (place,) = watched.report.places
        assert place.is_wrong and len(place.reports) == count


def test_a_number_that_python_made_and_one_of_an_array_are_one_place():
    """The first point has a weak type, as `jnp.full` gives it, and the others have not."""
    loss = lambda w: jnp.sum(jnp.sqrt(w))  # noqa: E731
    with watching() as watched:
        w = jnp.full(2, 1.0)
        for _ in range(5):
            jax.grad(loss)(w)
            w = w - jnp.float32(0.25) * jnp.ones(2, jnp.float32)
    (place,) = watched.report.places
    assert (place.calls, place.call) == (5, 5)


def test_where_the_first_gradient_is_not_finite_a_later_one_is_checked_too():
    half = jax.custom_jvp(jnp.square)
    half.defjvp(lambda x, t: (jnp.square(*x), x[0] * t[0]))
    with watching() as watched:
        for k in range(6):
            jax.grad(lambda w, k: jnp.sum(jnp.sqrt(k * half(w))))(POINT, float(k))
    (place,) = watched.report.places
    assert [report.verdict for report in place.reports] == ["not finite", "differs"]
    assert "not finite in call 1; at a later point, differs" in str(place)


def test_gradients_that_are_not_checked_are_counted():
    with watching() as watched:
        jax.grad(lambda x: jnp.sum(x**2))(POINT)
    assert "not checked" not in str(watched.report)
    place = watched.report.places[0]._replace(reports=(), trouble="not checked: TypeError: ...")
    with watching() as broken:
        jax.grad(lambda x: jnp.sum(jnp.sqrt(x)))(jnp.zeros(2))
    looked_at = broken.report.places[0]._replace(reports=())
    places = (place, looked_at, *watched.report.places)
    assert dataclasses.replace(watched.report, places=places[::2]).exit_code == 0
    first = str(dataclasses.replace(watched.report, places=places)).partition("\n")[0]
    assert first.startswith("3 gradients taken") and first.endswith(" s; 1 not checked")


def test_of_a_batch_an_example_in_the_middle_is_checked():
    f = lambda x: jnp.sum(unit(1.5)(x * POINT) ** 2)  # noqa: E731
    with watching() as watched:
        jax.vmap(jax.grad(f))(jnp.linspace(0, 1, 9))  # at 0, the gradient is 0
    assert watched.report.exit_code == 1
    assert "argument `x`: off by 50%" in str(watched.report)


def test_a_fault_that_begins_late_is_found_at_a_later_point():
    @jax.custom_vjp
    def late(x):
        return jnp.sum(x**2)

    late.defvjp(lambda x: (late(x), x), lambda x, g: (jnp.where(x[0] < 0.25, 3.0, 2.0) * g * x,))
    for points, wrong in ((1, False), (4, True)):
        with watching(points=points) as watched:
            descend(late, "jit")
        (place,) = watched.report.places
        assert place.is_wrong == wrong
        found = [k for k, report in enumerate(place.reports, start=1) if not report.ok]
        numbers = re.findall(r"^    at point (\d+) of", str(place), re.MULTILINE)
        assert list(map(int, numbers)) == found and bool(found) == wrong


def test_one_line_for_each_place_wrong_ones_first():
    good, wrong = unit(1.0), unit(1.1)
    with watching() as watched:
        jax.grad(lambda x: jnp.sum(good(x)))(POINT)
        jax.grad(lambda x: jnp.sum(wrong(x)))(POINT)
    report = watched.report
    first, second, *_ = [line for line in str(report).splitlines()[1:] if line[0] != " "]
    assert "1 call; differs" in first and "1 leaf agrees, to at least" in second
    assert json.loads(json.dumps(report.to_dict()))["places"][0]["reports"][0]["ok"] is False
    assert repr(report) == "<WatchReport: gradients 2, wrong or not finite 1>"
    assert "<details open>" in report._repr_html_()
    with pytest.raises(GradientError, match="differs") as caught:
        report.raise_if_wrong()
    assert "1 leaf agrees" not in str(caught.value)


def test_nothing_taken():
    with watching() as watched:
        jnp.sum(POINT)
    assert (str(watched.report), watched.report.exit_code) == (
        "no gradients taken",
        2,
    )


def test_no_time_for_checking():
    with watching(budget=0) as watched:
        jax.grad(jnp.sum)(POINT)
    assert "not checked: the time budget ran out" in str(watched.report)
    assert watched.report.exit_code == 2


def test_small_functions_are_checked_first_and_reported_in_the_programs_order(monkeypatch):
    def large(x):
        return jnp.sum(jnp.sin(jnp.outer(x, x)))

    def small(x):
        return jnp.sum(x)

    checked, check = [], watched_module.check_gradient
    say = lambda f, *args, **how: checked.append(f.__name__) or check(f, *args, **how)  # noqa: E731
    monkeypatch.setattr(watched_module, "check_gradient", say)
    with watching() as watched:
        jax.grad(large)(jnp.ones(9))
        jax.grad(small)(jnp.ones(9))
    assert checked == ["small", "large"]
    assert [place.function for place in watched.report.places] == ["large", "small"]


def test_an_error_goes_through_and_the_report_is_made():
    with pytest.raises(KeyError), watching() as watched:
        jax.grad(jnp.sum)(POINT)
        raise KeyError
    assert watched.report.ok


def test_functions_are_restored_and_checks_are_not_watched():
    before = jax.grad, jax.vjp, check_grads, check_grads.__module__
    with watching() as watched:
        assert jax.grad is not before[0] and check_grads is not before[2]
        jaxnn.check_gradient(lambda x: jnp.sum(x**2), POINT)
        jaxnn.explain(lambda x: jnp.sum(x**2), POINT)
    assert (jax.grad, jax.vjp, check_grads, check_grads.__module__) == before
    assert watched.report.places == ()


def test_64_bits_are_those_of_the_program(dtype):
    with watching() as watched, jax.enable_x64(True):
        rate = jnp.asarray(0.5)  # float64
        jax.grad(lambda x: jnp.sum(unit(1.0)(x) * rate))(POINT.astype(dtype))
    assert watched.report.ok, str(watched.report)


def test_any_form_of_a_call_that_jax_takes_works_while_watched():
    with watching() as watched:
        out, slope = jax.jvp(jnp.sin, primals=(POINT,), tangents=(jnp.ones(3),))
        assert np.allclose(slope, jnp.cos(POINT)) and jax.grad(operator.mul)(2.0, 3.0) == 3
        assert jax.grad(fun=functools.partial(jnp.multiply, 2.0))(3.0) == 2
        assert jax.jacobian(jnp.sin)(2.0) == jnp.cos(2.0)
        assert jax.grad(lambda x, y: x * y, [0, -1])(2.0, 3.0) == (3, 2)
    assert len(watched.report.places) == 5 and watched.report.ok, str(watched.report)


LIBRARY = """
import jax
def minimised(f, x):
    value, push = jax.linearize(f, x)
    return x - 0.1 * jax.linear_transpose(push, x)(value)[0]
def pulled(f, x):
    return jax.vjp(f, x)[1](f(x))[0]
"""


@pytest.fixture
def library():
    """Functions of an installed package."""
    functions: dict = {}
    file = os.path.join(sysconfig.get_path("purelib"), "solver", "steps.py")
    exec(compile(LIBRARY, file, "exec"), functions)
    return functions


@pytest.mark.parametrize("name", ["minimised", "pulled"])
@pytest.mark.parametrize("jitted", [False, True])
def test_gradients_that_a_library_takes_by_vjp_or_linearize_are_checked(library, name, jitted):
    halved = unit(0.5)
    step = lambda x: library[name](lambda x: jnp.sum(halved(x) ** 2), x)  # noqa: E731
    with watching() as watched:
        (jax.jit(step) if jitted else step)(POINT)
    (place,) = watched.report.places
    assert place.is_wrong and place.line.file == __file__ and place.reports[0].rules


def test_what_a_library_does_inside_of_a_gradient_is_a_part_of_it(library):
    with watching() as watched:
        jax.grad(lambda x: jnp.sum(library["pulled"](lambda x: jnp.sum(x**3), x)))(POINT)
    (place,) = watched.report.places
    assert place.function == "<lambda>" and place.reports[0].ok
    with watching() as watched:
        jax.vjp(lambda x: library["pulled"](lambda x: jnp.sum(x**3), x), POINT)
        jax.jvp(lambda x: library["minimised"](lambda x: jnp.sum(x**3), x), (POINT,), (POINT,))
    assert len(watched.report.places) == 2


def test_a_gradient_that_is_differentiated_again_is_named():
    with watching() as watched:
        jax.jvp(jax.grad(unit(1.0)), (jnp.float32(0.5),), (jnp.float32(1.0),))
        jax.grad(jax.grad(jax.grad(jnp.sin)))(0.3)
    names = {place.function for place in watched.report.places}
    assert {"grad(sin)", "grad(grad(sin))", "sin"} < names
    assert any(re.fullmatch(r"grad\((?!sin).*\)", name) for name in names)


def test_a_folder_of_the_users_may_be_named_jax(tmp_path):
    (tmp_path / "jax").mkdir()
    program = tmp_path / "jax" / "program.py"
    program.write_text("import jax, jax.numpy as jnp\njax.grad(jnp.sum)(jnp.ones(2))\n")
    with watching() as watched:
        runpy.run_path(str(program))
    (place,) = watched.report.places
    assert (place.line.file, place.line.line) == (str(program), 2)


SOLVED = {
    "solve": lambda a: jnp.sum(jnp.linalg.solve(a, X[:4, 0]) ** 2),
    "vmap": lambda a: jnp.sum(jax.vmap(lambda s: jnp.linalg.solve(s * a, X[:4, 0]))(X[0]) ** 2),
    "inv": lambda a: jnp.sum(jnp.linalg.inv(a) ** 2),
    "assume_a": lambda a: jnp.sum(jax.scipy.linalg.solve(a + a.T, X[:4, 0], assume_a="pos") ** 2),
    "expm": lambda a: jnp.sum(jax.scipy.linalg.expm(a) ** 2),
    "logsumexp": lambda a: jax.scipy.special.logsumexp(a),
}


@pytest.mark.parametrize("name", SOLVED)
def test_what_jax_stops_inside_its_own_functions_moves(name):
    f = SOLVED[name]
    a = 3 * jnp.eye(4) + 0.1 * X[:4]
    with watching() as watched:
        jax.grad(lambda a: f(unit(1.1)(a)))(a)
        jax.jit(jax.grad(f))(a)
    wrong, right = watched.report.reports
    assert wrong.verdict == "differs" and "tanh(x) ** 2" in wrong.rules[0].rule.text
    assert right.verdict == "agrees" and not right.notes, str(right)


def test_what_the_user_stops_is_held_however_it_is_called():
    for stop in (lax.stop_gradient, functools.partial(jax.tree.map, lax.stop_gradient)):
        with watching() as watched:
            jax.grad(lambda a, stop=stop: jnp.sum(jax.vmap(stop)(a) * a))(POINT)
        (report,) = watched.report.reports
        assert report.verdict == "agrees" and "treated as constant" in report.notes[0]


def test_what_a_program_stops_is_taken_as_meant():
    def surrogate(f):
        return lambda x: jnp.sum(f(x) * lax.stop_gradient(f(x) - 1))

    for factor in (1, 1.1):
        with watching() as watched:
            jax.grad(surrogate(unit(factor)))(POINT)
        (place,) = watched.report.places
        assert place.is_wrong == (factor != 1) and place.is_judged


MAPPED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P

@jax.custom_vjp
def square(x): return x**2
square.defvjp(lambda x: (x**2, x), lambda x, g: (FACTOR * x * g,))

def loss(w, x): return jnp.mean(square(jnp.tanh(x @ w)))
def of_all(w, x): return jax.lax.pmean(loss(w, x), "d")
def own(w, x): return w - jax.lax.pmean(jax.grad(loss)(w, x), "d")
def common(w, x): return w - jax.grad(of_all)(w, x)
def unchecked(w, x): return w - jax.grad(of_all)(w, x)

mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
for f, check in ((own, True), (common, True), (unchecked, False)):
    specs = {"in_specs": (P(), P("d")), "out_specs": P() if check else P("d")}
    f = jax.jit(jax.shard_map(f, mesh=mesh, check_vma=check, **specs))
    print(f(jnp.array([0.1, 0.2]), jnp.arange(8.0).reshape(4, 2)))
"""


@pytest.mark.skipif(
    jax.__version_info__[:2] == (0, 8), reason="JAX 0.8 has no `vmap` of a `psum` in a `shard_map`"
)
@pytest.mark.parametrize(("factor", "code"), [("2", 0), ("2.1", 1)])
def test_gradients_inside_a_shard_map_are_checked(tmp_path, factor, code):
    path = tmp_path / "mapped.py"
    path.write_text(MAPPED.replace("FACTOR", factor))
    command = [sys.executable, "-m", "jaxnn", "watch", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == code, run.stderr
    assert run.stderr.count("1 leaf agrees") == (0 if code else 3)
    assert run.stderr.count("wrong rule: custom_vjp of `square`") == (3 if code else 0)


SPREAD = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
loss = lambda w, x: jnp.mean(jnp.tanh(x @ w["a"]) @ w["b"])
step = jax.jit(lambda w, x: jax.tree.map(lambda p, g: p - 0.1 * g, w, jax.grad(loss)(w, x)))
w = {"a": jnp.full((784, 256), 1e-3), "b": jnp.ones((256, 10))}
w = jax.device_put(w, NamedSharding(mesh, P()))
for k in range(20):
    x = jax.random.normal(jax.random.key(k), (128, 784))
    w = step(w, jax.device_put(x, NamedSharding(mesh, P("d"))))
print("mean", float(jnp.mean(w["b"])))
"""


def test_devices_that_wait_for_each_other_do_not_wait_for_the_watcher(tmp_path):
    """With as many threads as cores, one that waits for an array may wait for a sum over devices
    that waits for this thread.
    """
    path = tmp_path / "spread.py"
    path.write_text(SPREAD)
    command = [sys.executable, "-m", "jaxnn", "watch", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and run.stdout.startswith("mean"), run.stderr
    assert "20 calls; 2 leaves agree" in run.stderr


@pytest.mark.parametrize("factor, code", [(1.0, 0), (0.5, 1)])
def test_a_collective_in_a_shard_map_of_the_function_is_watched(factor, code):
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def loss(w, d):
        local = lambda w, d: lax.pmean(jnp.mean(unit(factor)(d @ w)), "i")  # noqa: E731
        return jax.shard_map(local, mesh=mesh, in_specs=(spec(), spec("i")), out_specs=spec())(w, d)

    with watching() as watched:
        jax.jit(jax.grad(loss))(POINT, jnp.ones((5, 3)))
    assert watched.report.exit_code == code, str(watched.report)
    assert all("shard_map" not in rule.path for r in watched.report.reports for rule in r.rules)


def test_no_tracer_leaks():
    with jax.checking_leaks(), watching() as watched:
        jax.jit(lambda y: jax.grad(lambda x: jnp.sum(x * y))(y))(POINT)
    assert watched.report.ok


@pytest.mark.parametrize(
    "options, text",
    [
        ({"points": 0}, "`points` must be an integer of at least 1. Got 0."),
        ({"budget": math.nan}, "`budget` must be finite. Got nan."),
        ({"finite": "no"}, "`finite` must be True or False. Got 'no'."),
        (
            {"trust": "rule"},
            "`trust` must be names of functions, as in trust=('f',). Got str 'rule'.",
        ),
    ],
)
def test_bad_input(options, text):
    with pytest.raises((ValueError, TypeError)) as refused, watching(**options):
        pass
    assert str(refused.value) == text


HEAD = """
import sys, jax, jax.numpy as jnp
wrong = jax.custom_vjp(lambda x: 2 * x)
wrong.defvjp(lambda x: (2 * x, None), lambda _, g: (2.1 * g,))
"""
# A program, its arguments, the options, the exit code, what is printed and what is reported.
COMMANDS = {
    "right": ("print(jax.grad(jnp.sum)(jnp.ones(2)), sys.argv[1:])", ["--n", "3"], [], 0,
              "[1. 1.] ['--n', '3']", "1 leaf agrees"),
    "wrong": ("jax.grad(lambda x: jnp.sum(wrong(x)))(jnp.ones(2))", [], [], 1, "", "differs"),
    "its file": ("import os; print(__file__ == os.path.abspath('program.py'), sys.argv[0]); "
                 "jax.grad(jnp.sum)(jnp.ones(2))", [], [], 0, "True program.py", "agrees"),
    "its own code": ("jax.grad(jnp.sum)(jnp.ones(2)); sys.exit(3)", [], [], 3, "", "agrees"),
    "an error": ("jax.grad(jnp.sum)(jnp.ones(2)); {}['x']", [], [], 1, "", "KeyError: 'x'"),
    "nothing": ("print(1)", [], [], 2, "1", "no gradients taken"),
    "stop": ("import time\nfor i in range(99):\n jax.grad(lambda x: jnp.sum(jnp.sqrt(x)))"
             "(jnp.full(2, 2.0 - i)); time.sleep(0.1)\nprint('end')", [], ["--stop"], 1, "",
             "not finite in call 3"),
    "stop at the end": ("jax.grad(lambda x: jnp.sum(jnp.sqrt(x)))(jnp.zeros(2))", [], ["--stop"],
                        1, "", "not finite in call 1"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_command(name, tmp_path):
    source, arguments, options, code, printed, reported = COMMANDS[name]
    (tmp_path / "program.py").write_text(HEAD + source)
    files = ["--html", "page.html", "--json", "found.json", "--save", "inputs"]
    command = [sys.executable, "-m", "jaxnn", "watch", *options, *files, "program.py", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (code, printed), done.stderr
    assert reported in done.stderr and "jaxnn/" not in done.stderr
    assert json.loads((tmp_path / "found.json").read_text())["ok"] == (
        name in ("right", "its file", "its own code", "an error")
    )
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "inputs").exists() == (name.startswith("stop"))


@pytest.mark.parametrize(
    "name", ["right", "wrong", "its file", "its own code", "an error", "nothing"]
)
def test_the_command_in_this_process(name, tmp_path, monkeypatch, capsys):
    source, arguments, options, code, printed, reported = COMMANDS[name]
    (tmp_path / "program.py").write_text(HEAD + source)
    monkeypatch.chdir(tmp_path)
    files, before = ["--json", "found.json", "--save", "inputs"], sys.modules["__main__"]
    assert main(["watch", *options, *files, "program.py", *arguments]) == code
    assert sys.modules["__main__"] is before
    out, err = capsys.readouterr()
    assert out.strip() == printed and reported in err


def test_the_gradients_of_a_thread_that_outlives_the_program_are_watched(tmp_path, capsys):
    source = """
import threading, time
def learn():
    time.sleep(0.5)
    jax.grad(lambda x: jnp.sum(jnp.sqrt(x)))(jnp.zeros(2))
threading.Thread(target=learn).start()
"""
    (tmp_path / "program.py").write_text(HEAD + source)
    assert main(["watch", str(tmp_path / "program.py")]) == 1
    assert "sqrt" in capsys.readouterr().err


def test_a_watched_step_can_be_exported():
    x = jnp.arange(3.0)
    with watching() as watched:
        step = jax.jit(jax.grad(lambda x: jnp.sum(x**3)))
        step(x)
        exported = jax.export.export(step)(x)
        step(2 * x)
    np.testing.assert_array_equal(exported.call(x), 3 * x**2)
    (place,) = watched.report.places
    assert place.calls == 2 and place.reports[0].ok


def test_parameters_that_stop_gradient_cuts_off_are_listed():
    def loss(params, x):
        hidden = jnp.tanh(x @ params["W"])
        return jnp.mean((lax.stop_gradient(hidden) @ params["V"]) ** 2) + 0 * params["idle"]

    params = {
        "W": jnp.ones((3, 2)),
        "V": jnp.ones(2),
        "idle": jnp.float32(1),
        "unused": jnp.ones(2),
    }
    with watching() as watched:
        jax.grad(loss)(params, jnp.linspace(0, 1, 6).reshape(2, 3))
    (place,) = watched.report.places
    hints = {leaf.path: leaf.hint for leaf in place.reports[0].leaves}
    assert "cut off by `stop_gradient` (" in hints["[0]['W']"] and not hints["[0]['V']"]
    assert "test_watch.py:" in hints["[0]['W']"] and place.reports[0].ok
    assert hints["[0]['W']"] + ": [0]['W']" in str(place)
    assert all("does not depend on this leaf" in hints[f"[0]['{x}']"] for x in ("idle", "unused"))


def test_leaves_that_are_cut_off_are_listed_once_for_all_points():
    loss = lambda p: jnp.sum(lax.stop_gradient(p["a"] * p["b"]) * p["c"])  # noqa: E731
    with watching(points=2) as watched:
        for k in range(4):
            jax.grad(loss)({name: jnp.float32(k + 1) for name in "abc"})
    (place,) = watched.report.places
    first, second = place.reports
    turned = dataclasses.replace(second, leaves=second.leaves[::-1])
    text = str(place._replace(reports=(first, turned)))
    assert text.count("cut off by") == 1 and "[0]['a'], [0]['b']" in text


def test_a_rule_that_uses_a_traced_value_from_outside_is_said_to_do_so():
    def f(x, c):
        sine = jax.custom_vjp(lambda x: c * jnp.sin(x))
        sine.defvjp(lambda x: (c * jnp.sin(x), x), lambda x, ct: (1.1 * ct * c * jnp.cos(x),))
        return jnp.sum(sine(x))

    x, why = jnp.arange(3.0), "uses a traced value that is not one of its arguments"
    report = jaxnn.check_gradient(f, x, 2.0)  # a check traces it again, without that value
    assert report.verdict == "differs" and [rule.kind for rule in report.rules] == ["custom_vjp"]
    with watching() as watched:
        jax.jit(jax.grad(f))(x, 2.0)
    assert why in str(watched.report) and watched.report.exit_code == 2


@pytest.mark.parametrize("factor", [1.0, 1.1])
@pytest.mark.parametrize("way", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_rule_may_use_a_key_that_the_function_around_it_makes(way, factor):
    @functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
    def drawn(c, key):
        return c * jax.random.normal(key, (3,))

    drawn.defjvp(lambda key, p, t: (drawn(*p, key), factor * drawn(*t, key)))

    def loss(c):
        return jnp.sum(jnp.sin(drawn(c, jax.random.key(0))))

    with watching() as watched:
        way(jax.grad(loss))(2.0)
    (place,) = watched.report.places
    for report in (place.reports[0], jaxnn.check_gradient(loss, 2.0)):
        wrong = ["drawn"] if factor != 1 else []
        assert [rule.name for rule in report.rules] == wrong and report.ok == (not wrong)


def test_where_there_is_nothing_to_differentiate_no_gradient_is_taken():
    one = jnp.float32(1)
    with watching() as watched:
        jax.jvp(lambda: one, (), ())
        jax.jvp(lambda empty: one, ({},), ({},))
        jax.vjp(lambda x: (), one)
        jax.jvp(lambda x: jnp.int32(3), (one,), (one,))
    assert watched.report.places == ()


def test_a_partial_function_has_the_name_of_what_it_calls():
    def energy(scale, x):
        return scale * jnp.sum(x**2)

    with watching() as watched:
        jax.grad(functools.partial(energy, 2.0))(jnp.ones(3))
    assert watched.report.places[0].function == "energy"


def stay_busy(seconds):
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def test_a_check_that_goes_on_when_it_is_interrupted_is_interrupted_again(monkeypatch):
    monkeypatch.setattr(watched_module, "AGAIN", 0.5)
    caught, began = [], time.perf_counter()

    def goes_on():
        try:
            stay_busy(20)
        except KeyboardInterrupt:
            caught.append(True)
        stay_busy(20)

    assert watched_module._at_most(0.05, goes_on) == (None, True)
    assert caught == [True] and time.perf_counter() < began + 15


def test_an_interruption_that_comes_as_the_work_ends_does_not_end_the_program():
    """It comes before, while or after the work ends: chance decides, so try often."""
    try:
        assert watched_module._at_most(0.001, functools.partial(stay_busy, 10)) == (None, True)
        for number in range(100):
            watched_module._at_most(0.001, functools.partial(stay_busy, 0.001 + number * 2e-6))
            stay_busy(1e-4)
    except KeyboardInterrupt:
        pytest.fail("it was not caught")


def test_xla_is_not_interrupted_because_it_would_go_on():
    """It would use a client that the end of the process destroys."""
    ended, compiler = [], sys.modules["jax._src.compiler"].__file__
    program = compile("import time; time.sleep(1); ended.append(True)", compiler, "exec")

    def compiles():
        exec(program, {"ended": ended})
        stay_busy(60)

    assert watched_module._at_most(0.05, compiles) == (None, True) and ended


def test_a_check_that_was_cut_off_shows_no_table_of_what_is_not_known():
    with watching(budget=1e-3) as watched:
        jax.grad(lambda x: jnp.sum(jnp.sin(x @ x.T) ** 2))(jnp.ones((50, 50)))
    (place,) = watched.report.places
    assert place.reports == () and str(place).endswith("the time budget ran out")
    assert watched.report.exit_code == 2


@pytest.mark.parametrize("factor, reports", [(1.0, 0), (1.1, 1)])
def test_of_a_check_that_was_cut_off_what_is_wrong_remains(monkeypatch, factor, reports):
    at_once = lambda seconds, job: (job(), True)  # noqa: E731
    monkeypatch.setattr(watched_module, "_at_most", at_once)
    rule = jax.custom_jvp(jnp.sin)
    rule.defjvp(lambda x, dx: (jnp.sin(*x), factor * jnp.cos(*x) * dx[0]))
    with watching() as watched:
        jax.grad(rule)(1.0)
    (place,) = watched.report.places
    assert len(place.reports) == reports and place.is_wrong == bool(reports)
    assert "the time budget ran out" in str(place)
    assert ("not checked" in str(place)) == (not reports)


def test_what_is_wrong_remains_if_the_search_for_its_cause_is_interrupted(monkeypatch):
    def interrupted(checked):
        raise KeyboardInterrupt

    monkeypatch.setattr(questions.rules, "ask", interrupted)
    rule = jax.custom_jvp(jnp.sin)
    rule.defjvp(lambda x, dx: (jnp.sin(*x), 1.1 * jnp.cos(*x) * dx[0]))
    with watching(points=2) as watched:
        for x in (1.0, 2.0, 3.0, 4.0, 5.0):
            jax.grad(rule)(x)
    (place,) = watched.report.places
    assert place.is_wrong and len(place.reports) == 1  # no further point is begun


def test_points_that_agree_share_a_text():
    with watching(points=2) as watched:
        for scale in (1.0, 2.0, 3.0, 4.0):
            jax.grad(lambda x: jnp.sum(jnp.sin(x) ** 2))(scale * jnp.arange(3.0))
    (place,) = watched.report.places
    assert len(place.reports) == 2 and str(place).count("1 leaf agrees") == 1


def test_a_program_that_ignores_ctrl_c_is_stopped_and_its_checks_end_in_time():
    """As a process does that a shell started in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        began = time.perf_counter()
        assert watched_module._at_most(0.2, lambda: stay_busy(60)) == (None, True)
        assert time.perf_counter() < began + 30
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        with pytest.raises(KeyboardInterrupt), watched_module.interruptible():
            _thread.interrupt_main()
            time.sleep(1)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_program_and_the_report_is_there(tmp_path, sent):
    path = tmp_path / "endless.py"
    path.write_text(
        "import signal, time, jax, jax.numpy as jnp\n"
        # A shell that starts the tests in the background makes their processes ignore it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "print(jax.grad(jnp.sum)(jnp.ones(2)), flush=True)\n"
        "while True: time.sleep(0.1)\n"
    )
    command = [sys.executable, "-m", "jaxnn", "watch", str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "[1. 1.]\n"
        process.send_signal(sent)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + sent and "1 leaf agrees" in said, said
    assert said.count("KeyboardInterrupt") == (sent == signal.SIGINT)  # as Python says it


def test_sigterm_ends_a_watched_test_run_whose_warnings_are_errors(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (tmp_path / "test_endless.py").write_text(
        "import jax, jax.numpy as jnp, os, signal\n"
        "def test_first():\n"
        "    jax.grad(jnp.sum)(jnp.ones(2))\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "def test_second():\n"
        "    print('went on')\n"
    )
    command = [
        sys.executable,
        "-m",
        "jaxnn",
        "watch",
        "-m",
        "pytest",
        "-s",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "went on" not in done.stdout, done.stdout
    assert "1 leaf agrees" in done.stderr, done.stderr


def test_a_rule_that_is_meant_to_differ_can_be_trusted():
    @jax.custom_vjp
    def rounded(x):
        return jnp.round(x)

    rounded.defvjp(lambda x: (rounded(x), None), lambda _, g: (g,))
    for trust, wrong in (((), 1), (("rounded", "another"), 0)):
        with watching(trust=trust) as watched:
            jax.grad(lambda x: jnp.sum(rounded(x) ** 2))(jnp.full(3, 1.3))
            jax.grad(lambda x: jnp.sum(x**2))(jnp.full(3, 1.3))
        assert sum(place.is_wrong for place in watched.report.places) == wrong


def test_a_jitted_function_is_called_by_its_name():
    @jax.jit
    def energy(x):
        return jnp.sum(x**2)

    with watching() as watched:
        jax.grad(energy)(POINT)
        gradient_descent(energy, POINT, 0.1, 1)
    assert [place.function for place in watched.report.places] == ["energy", "energy"]


def test_what_is_no_program_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["watch", "nothing.py"]) == 2
    assert "`PROGRAM` must be a Python file" in capsys.readouterr().err
    assert main(["watch", str(tmp_path)]) == 2  # `python DIR` needs a __main__.py, too
    assert "`PROGRAM` must be a Python file" in capsys.readouterr().err
    assert main(["watch", "--html", "page.txt", "nothing.py"]) == 2
    assert "`--html` must end in .html. Got 'page.txt'." in capsys.readouterr().err
    assert main(["watch", "-m"]) == 2
    assert "`-m` must be followed by the name of a module" in capsys.readouterr().err
    assert main(["watch", "--html", "no/page.html", "nothing.py"]) == 2
    capsys.readouterr()
    assert main(["watch", "-m", "nosuch"]) == 1
    assert capsys.readouterr().err == "ImportError: No module named nosuch\nno gradients taken\n"


SUITE = """
import pytest
def test_right(): assert jax.grad(jnp.sum)(jnp.ones(2))[0] == 1
def test_wrong(): jax.grad(lambda x: jnp.sum(wrong(x)))(jnp.ones(2))
@pytest.mark.gradient_unchecked
def test_exempt(): jax.grad(lambda x: jnp.sum(wrong(x) + 1))(jnp.ones(2))
def test_failing(): jax.grad(lambda x: jnp.sum(wrong(x) + 2))(jnp.ones(2)); assert False
def test_after_it(): jax.grad(jnp.sum)(jnp.ones(2))
"""


@pytest.mark.slow
def test_the_option_of_pytest(tmp_path):
    (tmp_path / "test_suite.py").write_text(HEAD + SUITE)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--strict-markers", "-v"]

    def run(*options):
        return subprocess.run(
            [*command, *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "GITHUB_ACTIONS": "true"},
        ).stdout

    assert "1 failed, 4 passed" in run()
    text = run("--check-gradients")
    assert (
        "2 failed, 3 passed" in text
        and text.count("GradientError") < 3
        and "custom_vjp of `<lambda>`" in text
    )
    assert "_pytest.py" not in textwrap.dedent(text).partition("short test summary")[0]
    assert "entries are hidden" not in text and text.count("::error") == 1
