"""Compiled programs are kept by what a function traces to: nothing is compiled twice, what changed
around a function is seen, and nothing of the user's outlives what the user holds.
"""

import dataclasses
import functools
import gc
import itertools
import types
import weakref
from types import SimpleNamespace as Space

import flat
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from rule_mutants import mutants, mutated
from slow import slow_but

import jaxnn
from jaxnn import _programs
from jaxnn._arguments import Skeleton
from jaxnn.checking.programs import Programs, _if_possible
from jaxnn.numerical.identity import same_program
from jaxnn.training import objective
from jaxnn.training.run import Run

X = jnp.array([1.0, 2.0, 3.0])
SGD = optax.sgd(0.01)
RUN = {"params": X, "data": (jnp.ones((4, 3)),), "key": jax.random.key(0)}
RUN |= {"epochs": 1, "batch_size": 2}


def loss_of(f):
    return lambda params, x: f(params) + jnp.mean(x)


# Each public function that takes one of the user's and compiles it.
USES = {
    "numerical_diff": lambda f: jaxnn.numerical_diff(lambda x: x * f(X), 2.0),
    "partial_derivative": lambda f: jaxnn.partial_derivative(f, X, 1),
    "numerical_grad": lambda f: jaxnn.numerical_grad(f)(X),
    "numerical_grad, dense": lambda f: jaxnn.numerical_grad(f, method="dense")(X),
    "numerical_gradient": lambda f: jaxnn.numerical_gradient(f, X),
    "numerical_jacobian": lambda f: jaxnn.numerical_jacobian(f)(X),
    "numerical_hessian": lambda f: jaxnn.numerical_hessian(f)(X),
    "directional_derivative": lambda f: jaxnn.directional_derivative(f, X, X),
    "check_gradient": lambda f: jaxnn.check_gradient(f, X),
    "check_gradient, order 2": lambda f: jaxnn.check_gradient(f, X, order=2),
    "check_gradient, by hand": lambda f: jaxnn.check_gradient(f, X, gradient=jax.grad(f)),
    "assert_gradient": lambda f: jaxnn.assert_gradient(f, X),
    "gradient_descent": lambda f: jaxnn.gradient_descent(f, X, 0.01, 3),
    "gradient_descent, numerical": lambda f: jaxnn.gradient_descent(
        f, X, 0.01, 3, grad=jaxnn.numerical_grad
    ),
    "descent_path": lambda f: jaxnn.descent_path(f, X, 0.01, 3),
    "minimize": lambda f: jaxnn.minimize(f, X, SGD, max_steps=3),
    "fit": lambda f: flat.fit(loss=loss_of(f), optimizer=SGD, **RUN),
    "sweep": lambda f: jaxnn.sweep(loss=loss_of(f), optimizer=optax.sgd, values=X / 100, **RUN),
}


class Data:
    """Something of the user's, which can be watched."""

    def __init__(self):
        self.weights = np.ones(3, np.float32)

    def value(self, x):
        return jnp.sum(self.weights * x**2)


@dataclasses.dataclass
class Unhashable:
    """With `eq` and without `frozen`, a dataclass has no hash."""

    data: Data

    def __call__(self, x):
        return self.data.value(x)


def closure(data):
    return lambda x: data.value(x)


def with_a_rule(data):
    """A rule that refers to the function it belongs to, as they often do."""
    square = jax.custom_vjp(data.value)
    square.defvjp(lambda x: (square(x), x), lambda x, g: (2 * g * x * data.weights,))
    return lambda x: square(x)


FORMS = {
    "closure": closure,
    "bound method": lambda data: data.value,
    "partial": lambda data: functools.partial(lambda d, x: d.value(x), data),
    "jitted": lambda data: jax.jit(closure(data)),
    "unhashable": Unhashable,
    "with a rule": with_a_rule,
}


FORMED = ("numerical_grad", "check_gradient", "minimize", "fit")
QUICK = ("numerical_grad", "check_gradient", "gradient_descent", "fit")


@pytest.fixture(autouse=True)
def only_new_objects():
    """Collecting garbage would take a second with everything that earlier tests have made."""
    gc.freeze()
    yield
    gc.unfreeze()


def outlives(use, form):
    """Whether the data of a function can still be reached when the function is gone."""
    data = Data()
    f = form(data)
    use(f)
    watched = weakref.ref(data), weakref.ref(data.weights)
    del f, data
    gc.collect()
    return any(alive() is not None for alive in watched)


@pytest.mark.parametrize("use", slow_but(QUICK, USES))
def test_nothing_of_the_users_outlives_what_the_user_holds(use):
    assert not outlives(USES[use], closure)


@pytest.mark.parametrize(
    "use, form",
    slow_but(
        [("numerical_grad", "bound method"), ("numerical_grad", "with a rule")],
        itertools.product(FORMED, FORMS),
    ),
)
def test_functions_of_any_form_are_let_go(use, form):
    assert not outlives(USES[use], FORMS[form])


@pytest.mark.parametrize("use", ["check_gradient", "fit"])
def test_the_arrays_of_a_call_are_freed_without_a_collection(use):
    """Memory would be held for a while by what refers to itself."""
    gc.collect()
    gc.disable()
    try:
        USES[use](closure(Data()))
        assert not [o for o in gc.get_objects() if type(o) in (Programs, Run)]
    finally:
        gc.enable()


def numbers(result):
    """What a public function found, as an array."""
    if isinstance(result, jaxnn.GradientReport):
        return np.array([leaf.autodiff for leaf in result.leaves])
    result = result.params if isinstance(result, jaxnn.Fit) else result
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(result)])


SEEN = {use: call for use, call in USES.items() if use not in ("assert_gradient", "sweep")}


@pytest.mark.parametrize("use", slow_but(QUICK, SEEN))
def test_a_variable_that_was_set_to_something_else_is_seen(use):
    scale = 2.0

    def scaled(x):
        return scale * jnp.sum(x**2)

    before = numbers(SEEN[use](scaled))
    scale = 3.0
    again = numbers(SEEN[use](scaled))
    np.testing.assert_array_equal(again, numbers(SEEN[use](lambda x: 3.0 * jnp.sum(x**2))))
    assert np.any(again != before)


class Held:
    scale = 2.0


def changes():
    """Functions of slope 2, and what makes the slope 3, by the name of what is changed."""
    settings, numbers, space, thing = {"scale": 2.0}, np.array([2.0]), Space(scale=2.0), Held()
    thing.scale = 2.0
    module = types.ModuleType("written_by_a_user")
    module.scaled = lambda x: 2.0 * x
    rule = jax.custom_vjp(lambda x: x)
    rule.defvjp(lambda x: (x, None), lambda _, g: (2.0 * g,))
    thrice = lambda _, g: (3.0 * g,)  # noqa: E731
    return {
        "an entry of a dictionary": (
            lambda x: settings["scale"] * jnp.sum(x),
            lambda: settings.update(scale=3.0),
        ),
        "a small array": (lambda x: jnp.sum(numbers * x), lambda: numbers.fill(3.0)),
        "a namespace": (lambda x: space.scale * jnp.sum(x), lambda: setattr(space, "scale", 3.0)),
        "an object": (lambda x: thing.scale * jnp.sum(x), lambda: setattr(thing, "scale", 3.0)),
        "a module": (
            lambda x: jnp.sum(module.scaled(x)),
            lambda: setattr(module, "scaled", lambda x: 3.0 * x),
        ),
        "a rule": (
            lambda x: jnp.sum(rule(x)),
            lambda: rule.defvjp(lambda x: (x, None), thrice),
        ),
    }


@pytest.mark.parametrize("what", changes())
def test_what_was_changed_around_a_function_is_seen(what):
    f, change = changes()[what]
    for slope in (2.0, 3.0):
        report = jaxnn.check_gradient(f, X)
        found = report.leaves[0]
        if what == "a rule":  # the values stay, the gradient does not
            assert report.rules[0].difference == pytest.approx(slope - 1)
        else:
            assert jaxnn.numerical_grad(f)(X).tolist() == [slope] * 3 and report.ok
            assert found.autodiff == pytest.approx(found.numerical)
        change()


class Scaled:
    factor = 1.0

    def value(self, x):
        return self.factor * jnp.sum(x)


WEIGHTS = (jnp.ones(3), 2.0)


def helper(x):
    return jnp.sum(WEIGHTS[0] * x) * WEIGHTS[1]


@pytest.mark.parametrize("use", QUICK)
def test_a_constant_is_an_input_and_no_part_of_the_program(use, compilations):
    for factor in (2.0, 3.0, 4.0):
        weights = jnp.full(3, factor)
        found, before = numbers(USES[use](lambda x, w=weights: jnp.sum(w * x**2))), compilations()
    again = numbers(USES[use](lambda x, w=weights: jnp.sum(w * x**2)))
    assert compilations() == before and np.array_equal(found, again)


INSIDE = {
    "a jitted function": lambda g: jax.jit(g),
    "a scan over one": lambda g: (
        lambda x: jax.lax.scan(lambda c, _: (c + jax.jit(g)(x), None), 0.0, None, length=2)[0]
    ),
    "a rematerialised one": jax.checkpoint,
}


@pytest.mark.parametrize("use", ["numerical_grad", "check_gradient"])
@pytest.mark.parametrize("inside", INSIDE)
def test_a_large_constant_inside_a_call_is_an_input_too(inside, use, compilations):
    weights = jnp.ones((1000, 3))
    for _ in range(2):
        f = INSIDE[inside](lambda x: jnp.sum(weights @ x**2))
        found, before = numbers(USES[use](f)), compilations()
    again = numbers(USES[use](f))
    assert compilations() == before and np.array_equal(found, again)


@pytest.mark.parametrize("inside", INSIDE)
def test_inputs_in_float64_remain_float64_though_it_is_not_enabled(inside):
    with jax.enable_x64(True):
        third = jnp.ones(3) / 3
    f = INSIDE[inside](lambda x: jnp.sum((x - third).astype(jnp.float32)))
    assert _programs.Jitted(f)(third) == 0


def test_no_more_programs_are_kept_than_is_said(monkeypatch):
    monkeypatch.setattr(_programs, "KEPT", 3)
    for power in range(2, 8):
        jaxnn.numerical_grad(lambda x, n=power: jnp.sum(x**n))(X)
    assert len(_programs._kept) == 3


DIFFERENT = {
    "a literal": lambda k: lambda x: jnp.sum(x * (2.0, 3.0)[k]),
    "an axis": lambda k: lambda x: jnp.sum(jnp.cumsum(jnp.outer(x, x), k)[0]),
    "what is returned": lambda k: lambda x: (jnp.sum(jnp.sin(x)), jnp.sum(jnp.cos(x)))[k],
    "the order of inputs": lambda k: lambda x: jnp.sum((x - x[0], x[0] - x)[k] ** 3),
    "a branch": lambda k: lambda x: jax.lax.cond(x[0] > 0, (jnp.sum, jnp.prod)[k], jnp.max, x),
    "the body of a loop": lambda k: (
        lambda x: jax.lax.fori_loop(0, 3, lambda _, c: (jnp.sin, jnp.cos)[k](c), x).sum()
    ),
    "its length": lambda k: (
        lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, length=2 + k)[0].sum()
    ),
    "a callback": lambda k: (
        lambda x: jnp.sum(
            jax.pure_callback(lambda v: v * (2, 3)[k], jax.ShapeDtypeStruct((3,), jnp.float32), x)
        )
    ),
    "a function that takes part": lambda k: (
        lambda x: jax.lax.reduce(x, 1.0, (jax.lax.mul, jax.lax.add)[k], (0,))
    ),
}


@pytest.mark.parametrize("make", DIFFERENT.values(), ids=DIFFERENT)
def test_programs_that_are_not_the_same_are_told_apart(make):
    """Functions that differ in one thing alone, one after the other and the first again."""
    found = [jaxnn.numerical_grad(make(k))(X) for k in (0, 1, 0)]
    assert not np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


@pytest.mark.parametrize(
    "first, second, same",
    [
        (lambda x: x**2, lambda y: y**2, True),
        (lambda x: x**2, lambda x: x**3, False),
        (lambda x: 2 * x, lambda x: 3 * x, False),
        (lambda x: x * np.arange(3.0), lambda x: x * np.arange(3.0), True),
        (lambda x: x * np.arange(3.0), lambda x: x * np.ones(3), False),
        (lambda x: jnp.sin(x), lambda x: jnp.cos(x), False),
        (lambda x: jnp.sin(x), lambda x: jnp.sin(x) + 1, False),
    ],
)
def test_two_traces_are_of_the_same_function_or_not(first, second, same):
    assert same_program(*(jax.make_jaxpr(f)(X) for f in (first, second))) == same


@pytest.mark.parametrize("first", [True, False])
def test_what_is_written_around_an_operation_is_seen(first):
    def noisy(way):
        def f(x):
            with jax.threefry_partitionable(way):
                return jnp.sum(x * jax.random.uniform(jax.random.key(0), (3,)))

        return f

    for way in (first, not first):
        right = jax.grad(noisy(way))(X)
        np.testing.assert_allclose(jaxnn.numerical_grad(noisy(way))(X), right, rtol=1e-4)


def test_a_rule_of_jaxs_own_that_was_changed_is_seen():
    f = lambda x: jnp.sum(jnp.tan(x))  # noqa: E731
    assert jaxnn.check_gradient(f, X / 9).ok
    with mutated(mutants("tan")[0]):
        assert not jaxnn.check_gradient(f, X / 9).ok
    assert jaxnn.check_gradient(f, X / 9).ok


def test_a_loss_without_a_hash_is_trained():
    @dataclasses.dataclass
    class Loss:
        scale: float

        def __call__(self, params, x):
            return self.scale * jnp.mean((x @ params) ** 2)

    done = flat.fit(loss=Loss(0.5), optimizer=SGD, **RUN)
    assert done.status.step == 2 and np.all(np.asarray(done.params) < np.asarray(X))


class Thing:
    """An argument that is neither an array nor a function."""

    scale = 2.0


def by_a_thing(x, thing):
    return thing.scale * jnp.sum(x**2)


@pytest.mark.parametrize("public", [jaxnn.numerical_grad, jaxnn.check_gradient])
def test_no_argument_outlives_what_the_user_holds(public):
    thing = Thing()
    if public is jaxnn.check_gradient:
        public(by_a_thing, X, thing)
    else:
        public(by_a_thing)(X, thing)
    watched = weakref.ref(thing)
    del thing
    gc.collect()
    assert watched() is None


def test_equal_settings_of_a_module_are_not_the_same():
    tree = jax.tree.structure((0, 0))
    keys = {Skeleton(tree, (), (n, jnp.tanh)).key for n in (1, True, 1.0, 0.0, -0.0, np.nan)}
    assert len(keys) == 6 and Skeleton(tree, (), (np.nan, jnp.tanh)).key in keys


def test_arguments_that_are_equal_are_not_the_same():
    f = lambda x, n: jnp.sum(x) * (10 if n is True else 1)  # noqa: E731
    gradient = jaxnn.numerical_grad(f)
    for n, slope in ((1, 1), (True, 10), (1, 1)):
        np.testing.assert_allclose(gradient(X, n), slope, rtol=1e-5)


def test_a_function_among_the_arguments_is_the_users_own():
    f = lambda x, act: jnp.sum(act(x)) * (10 if act is jnp.tanh else 1)  # noqa: E731
    gradient = jaxnn.numerical_grad(f)(X, jnp.tanh)
    np.testing.assert_allclose(gradient, jax.grad(f)(X, jnp.tanh), rtol=1e-4)


@pytest.mark.parametrize(
    "train, optimizer", [(jaxnn.fit, SGD), (functools.partial(jaxnn.sweep, values=X), optax.sgd)]
)
def test_a_second_run_compiles_nothing(compilations, train, optimizer):
    loss = loss_of(lambda x: jnp.sum(x**2))
    for _ in range(2):
        before = compilations()
        train(loss, optimizer=optimizer, **RUN)
    assert compilations() == before


@pytest.mark.parametrize("use", slow_but(QUICK, [*USES]))
def test_a_jitted_function_is_traced_once_for_all_calls(use):
    traces = []

    @jax.jit
    def f(x):
        traces.append(1)
        return jnp.sum(x**2)

    USES[use](f)
    before = len(traces)
    USES[use](f)
    assert len(traces) == before > 0


DESCENT = {"key": jax.random.key(0), "batch_size": 1, "epochs": 2}
# What runs many steps of a function: the function, and the run of it.
RUNS = {
    "fit": (
        lambda w, x, t: jnp.sum((w * x) ** 2),
        lambda f, lr: jaxnn.fit(f, X, (X, X), lr, **DESCENT).params,
    ),
    "train": (
        lambda w, batch, key: (0.9 * w, {"loss": jnp.sum(w)}),
        lambda f, _: jaxnn.train(f, X, (X,), **DESCENT).state,
    ),
    "gradient_descent": (lambda w: jnp.sum(w**2), lambda f, _: jaxnn.gradient_descent(f, X, 0.1)),
    "descent_path": (lambda w: jnp.sum(w**2), lambda f, _: jaxnn.descent_path(f, X, 0.1)[0]),
    "minimize": (lambda w: jnp.sum(w**2), lambda f, lr: jaxnn.minimize(f, X, lr, max_steps=9).x),
}


@pytest.mark.parametrize("kind", RUNS)
def test_steps_of_a_jitted_function_are_traced_once_and_kept_while_it_lives(monkeypatch, kind):
    function, run = RUNS[kind]
    weights, optimizer = np.ones(3, np.float32), optax.sgd(0.1)

    def weighted(w, *args):
        return function(w * weights, *args)

    f = jax.jit(weighted)
    first, traced, of = run(f, optimizer), [], _programs.Traced.of
    monkeypatch.setattr(_programs.Traced, "of", lambda *args: traced.append(1) or of(*args))
    assert (run(f, optimizer) == first).all() and not traced
    for other in (jax.enable_x64(True), jax.default_matmul_precision("highest")):
        traced.clear()
        with other:
            run(f, optimizer)
        assert traced
    if kind in ("fit", "minimize"):  # another optimiser is another program
        traced.clear()
        assert not (run(f, optax.sgd(0.2)) == first).all() and traced
    watched = weakref.ref(weighted)
    del f, weighted
    gc.collect()
    assert watched() is None


def test_a_warm_run_of_a_jitted_loss_is_one_chunk_and_asks_nothing(monkeypatch):
    loss = jax.jit(lambda w, x: jnp.sum((w * x) ** 2))
    asked, chunks, require, take = [], [], objective.require_scalar, Run._chunk
    monkeypatch.setattr(objective, "require_scalar", lambda *x: asked.append(1) or require(*x))
    monkeypatch.setattr(Run, "_chunk", lambda *x, **y: chunks.append(1) or take(*x, **y))
    optimizer = optax.sgd(0.1)
    first, *_, last = (jaxnn.fit(loss, X, (X,), optimizer, **DESCENT).params for _ in range(5))
    assert (first == last).all() and len(asked) == 1 and len(chunks) < 10
    chunks.clear()
    jaxnn.fit(loss, X, (X,), optimizer, **DESCENT)
    assert len(chunks) == 1
    with pytest.raises(TypeError, match="real scalar"):
        jaxnn.fit(jax.jit(lambda w, x: w * x), X, (X,), optimizer, **DESCENT)


@pytest.mark.parametrize("use", slow_but(QUICK, [*USES]))
def test_equal_functions_share_a_program(use, compilations):
    make = lambda: lambda x: jnp.sum(jnp.sin(x) ** 2)  # noqa: E731
    USES[use](make())
    before = compilations()
    USES[use](make())
    assert compilations() == before


def test_a_program_goes_on_when_an_equal_function_is_gone():
    data = Data()
    assert jaxnn.numerical_grad(data.value)(X)[0] == pytest.approx(2)
    gc.collect()  # the bound method is gone, what it is bound to is not
    assert jaxnn.numerical_grad(data.value)(X)[0] == pytest.approx(2)


def test_a_primitive_that_refuses_its_own_dtype_once_float64_is_enabled_is_checked():
    """Lineax's LSMR is one: it is traced again wherever its primitive is bound."""

    def shape(x):
        if jax.config.jax_enable_x64 and x.dtype == jnp.float32:
            raise TypeError("got float32, float64")
        return x

    cube = Primitive("cube")
    cube.def_impl(lambda x: x**3)
    cube.def_abstract_eval(shape)
    ad.primitive_jvps[cube] = lambda xs, ts: (cube.bind(*xs), 3 * xs[0] ** 2 * ts[0])
    mlir.register_lowering(cube, mlir.lower_fun(lambda x: x**3, multiple_results=False))
    batching.primitive_batchers[cube] = lambda xs, axes: (cube.bind(*xs), axes[0])
    f = lambda x: jnp.sum(jax.nn.relu(cube.bind(x)))  # noqa: E731
    assert jaxnn.check_gradient(f, X).verdict == "agrees"


@pytest.mark.parametrize(
    "stop, verdict, most", [(jnp.sin, "agrees", 2), (jax.lax.stop_gradient, "detached", 3)]
)
def test_a_check_traces_its_function_for_values_for_the_gradient_and_in_doubt(stop, verdict, most):
    traces = []

    def f(x):
        traces.append(x)
        return jnp.sum(x * stop(x))

    assert jaxnn.check_gradient(f, X).verdict == verdict and len(traces) == most


def test_what_jax_cannot_trace_is_tried_once():
    tried = []

    def f(x):
        tried.append(x)
        raise ValueError("no reverse mode")

    derived = _if_possible(jax.jit(f))
    assert derived(1.0) is None and derived(1.0) is None and len(tried) == 1
    assert _if_possible(jax.jit(jnp.sin))(0.0) == 0
