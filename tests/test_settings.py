"""Under JAX's settings: every public function gives the right numbers under each of them, and
leaves them as they were.
"""

import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import flat
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from slow import slow_but

import jaxnn
from jaxnn.checking.measure import undisturbed
from jaxnn.numerical.float64 import wide_arithmetic

SETTINGS = {
    "x64 off": lambda: jax.enable_x64(False),
    "x64 on": lambda: jax.enable_x64(True),
    "debug nans": lambda: jax.debug_nans(True),
    "strict dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "strict ranks": lambda: jax.numpy_rank_promotion("raise"),
    "no jit": lambda: jax.disable_jit(True),
    "matmul bfloat16": lambda: jax.default_matmul_precision("bfloat16"),
    "leak checker": lambda: jax.checking_leaks(),
}

X = jnp.array([3.0, 4.0])
SCORES, CLASSES = jnp.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]]), jnp.array([0, 2])
ONE_HOT = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
PROBABILITIES = jnp.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])
I3 = jnp.eye(3)
ROWS, LABELS = jnp.linspace(-1, 1, 12).reshape(4, 3), jnp.array([0, 1, 1, 0])
NETWORK = {
    "W1": jnp.linspace(-1, 1, 6).reshape(3, 2),
    "b1": jnp.array([0.1, -0.2]),
    "W2": jnp.array([[0.5, -0.3], [0.2, 0.4]]),
    "b2": jnp.zeros(2),
}
# Not Adam: optax's own bias correction mixes dtypes, which strict promotion refuses.
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def bowl(x):
    return x[0] ** 2 + 2 * x[1] ** 2


def line(params, x, t):
    return jnp.mean((x @ params["w"] - t) ** 2)


def line_case():
    """A line to fit."""
    return {"w": jnp.zeros(3, jnp.float32)}, (ROWS, ROWS @ jnp.array([1.0, -2.0, 0.5], jnp.float32))


def close(got, want, rtol=1e-5, atol=1e-6):
    """Trees of the same form and nearly the same numbers; NumPy compares them, which no setting of
    JAX's can change.
    """
    wide = lambda a: np.asarray(a, np.float64)  # noqa: E731
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(wide(a), wide(b), rtol=rtol, atol=atol), got, want
    )


def softmax(scores):
    odds = np.exp(np.asarray(scores))
    return odds / odds.sum(-1, keepdims=True)


def picked(rows, classes):
    """Of each row the entry of its class."""
    return np.take_along_axis(np.asarray(rows), np.asarray(classes)[:, None], -1)[:, 0]


def mean_squared_error():
    for targets in (CLASSES, ONE_HOT):
        close(jaxnn.mean_squared_error(SCORES, targets), 11 / 4)


def cross_entropy_error():
    for targets in (CLASSES, ONE_HOT):
        close(jaxnn.cross_entropy_error(PROBABILITIES, targets), -np.mean(np.log([0.7, 0.3])))


def softmax_cross_entropy():
    for targets in (CLASSES, ONE_HOT):
        close(
            jaxnn.softmax_cross_entropy(SCORES, targets),
            -np.mean(np.log(picked(softmax(SCORES), CLASSES))),
        )
    close(
        jax.grad(jaxnn.softmax_cross_entropy)(SCORES, CLASSES),
        (softmax(SCORES) - np.asarray(ONE_HOT)) / 2,
    )


def accuracy():
    close(jaxnn.accuracy(SCORES, CLASSES), 0.5)


def numerical_diff():
    close(jaxnn.numerical_diff(lambda x: x**3, 2.0), 12)
    close(jaxnn.numerical_diff(jnp.sin, X, scheme="forward"), np.cos([3.0, 4.0]))
    close(jaxnn.numerical_diff(jnp.sin, X, 1e-3, evaluation="own"), np.cos([3.0, 4.0]), rtol=1e-3)


def partial_derivative():
    close(jaxnn.partial_derivative(bowl, X, 1), 16)


def directional_derivative():
    close(jaxnn.directional_derivative(bowl, X, jnp.ones(2, jnp.float32)), 22)


def numerical_gradient():
    close(jaxnn.numerical_gradient(bowl, X), np.array([6, 16]))


def numerical_grad(**options):
    close(
        jaxnn.numerical_grad(lambda x, y: bowl(x) * y, (0, 1), **options)(X, 2.0),
        (np.array([12, 32]), 41),
    )


def numerical_grad_of_a_network(method="propagation"):
    got = jaxnn.numerical_grad(jaxnn.loss, method=method)(NETWORK, ROWS, LABELS)
    close(got, jax.grad(jaxnn.loss)(NETWORK, ROWS, LABELS), rtol=1e-4)
    assert {g.dtype for g in got.values()} == {np.dtype(np.float32)}


def numerical_grad_of_a_network_densely():
    numerical_grad_of_a_network("dense")


def numerical_jacobian():
    close(jaxnn.numerical_jacobian(lambda x: x[0] * x)(X), np.array([[6, 0], [4, 3]]))


def numerical_hessian():
    close(jaxnn.numerical_hessian(lambda x: x[0] ** 2 * x[1])(X), np.array([[8, 6], [6, 0]]))


def check_gradient():
    report = jaxnn.check_gradient(lambda x: jnp.sum(jnp.tanh(x) ** 2), X / 10)
    assert report.verdict == "agrees" and report.leaves[0].digits > 8, str(report)
    assert jaxnn.check_gradient(jaxnn.loss, NETWORK, ROWS, LABELS).verdict == "agrees"


def check_gradient_finds_what_is_wrong():
    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(
        lambda x: (x**3, x),
        lambda x, g: (3.03 * g * x**2 * jnp.array([1.0, 0.0], x.dtype) + 0 * x,),
    )
    report = jaxnn.check_gradient(lambda x: jnp.sum(cube(x)), X)
    assert report.verdict == "differs" and report.rules[0].verdict == "differs", str(report)
    assert sorted(
        (e.index, round(e.autodiff, 3), round(e.numerical, 3)) for e in report.leaves[0].entries
    ) == [
        ((0,), 27.27, 27.0),
        ((1,), 0.0, 48.0),
    ]


def check_gradient_of_order_2():
    assert jaxnn.check_gradient(lambda x: jnp.sum(jnp.sin(x)), X, order=2).verdict == "agrees"


def check_a_given_gradient():
    right = jaxnn.check_gradient(bowl, X, gradient=lambda x: x * jnp.array([2, 4], x.dtype))
    wrong = jaxnn.check_gradient(bowl, X, gradient=lambda x: 2 * x)
    assert (right.verdict, wrong.verdict) == ("agrees", "differs")


def gradient_descent(**options):
    close(jaxnn.gradient_descent(bowl, X, 0.1, 3, **options), np.array([3 * 0.8**3, 4 * 0.6**3]))


def descent_path():
    path = jaxnn.descent_path(bowl, X, 0.1, 2)
    close(path.points, np.array([[3, 4], [2.4, 2.4], [1.92, 1.44]]))
    close(path.losses, np.array([41, 17.28, 7.8336]))


def minimize():
    result = jaxnn.minimize(bowl, X, optax.sgd(0.25), max_steps=40, tolerance=1e-3)
    assert result.reason == "small gradient"
    close(result.x, np.zeros(2), atol=1e-3)


def init_network():
    params = jaxnn.init_network(jax.random.key(0), (3, 2))
    assert {p.dtype for p in params.values()} == {np.dtype(np.float32)}
    close(params["W1"][0], np.array([-0.02442456, -0.0203568]))


def predict_and_loss():
    host = {name: np.asarray(p) for name, p in NETWORK.items()}
    hidden = 1 / (1 + np.exp(-(np.asarray(ROWS) @ host["W1"] + host["b1"])))
    scores = hidden @ host["W2"] + host["b2"]
    close(jaxnn.predict(NETWORK, ROWS), scores)
    close(jaxnn.loss(NETWORK, ROWS, LABELS), -np.mean(np.log(picked(softmax(scores), LABELS))))


def load_digits():
    digits = jaxnn.load_digits()
    assert [(a.shape, a.dtype) for a in digits] == [
        ((1500, 64), np.float32),
        ((1500,), np.int32),
        ((297, 64), np.float32),
        ((297,), np.int32),
    ]


def one_hot():
    close(jaxnn.one_hot(jnp.array([1, 0], jnp.int32), 3), np.array([[0, 1, 0], [1, 0, 0]]))


def sample_batch():
    x, t = jaxnn.sample_batch(jax.random.key(0), (ROWS, LABELS), 3)
    known = list(zip(np.asarray(ROWS), np.asarray(LABELS), strict=True))
    assert x.shape == (3, 3)
    for row, label in zip(np.asarray(x), np.asarray(t), strict=True):
        assert any(np.array_equal(row, r) and label == k for r, k in known)


def fit():
    params, data = line_case()
    result = flat.fit(
        line,
        params,
        data,
        optax.sgd(0.2),
        key=jax.random.key(0),
        epochs=3,
        batch_size=3,
        patience=2,
        test=data,
        metrics=lambda p, x, t: {"size": jnp.sum(p["w"] ** 2)},
    )
    assert result.status == jaxnn.Status("finished", 6)
    history = result.history
    close(history.metrics["train_loss"], history.metrics["test_loss"])
    assert history.metrics["test_loss"][0] < history.step_loss[0]
    best = np.argmin(history.metrics["test_loss"])
    close(history.metrics["train_size"][best], np.sum(np.square(np.asarray(result.params["w"]))))


def fit_by_numerical_gradients():
    params, data = line_case()
    ends = [
        flat.fit(
            line, params, data, OPTIMIZER, key=jax.random.key(0), epochs=2, batch_size=3, grad=grad
        ).params
        for grad in (jax.grad, jaxnn.numerical_grad)
    ]
    close(*ends)


def sweep():
    params, data = line_case()
    rates = jnp.array([0.1, 0.2], jnp.float32)
    runs = jaxnn.sweep(
        line, params, data, optax.sgd, rates, key=jax.random.key(0), epochs=2, batch_size=3
    )
    alone = flat.fit(
        line, params, data, optax.sgd(0.2), key=jax.random.key(0), epochs=2, batch_size=3
    )
    close(runs[1].params, alone.params)
    close(runs[1].history.step_loss, alone.history.step_loss)


def checkpoints():
    with tempfile.TemporaryDirectory() as directory:
        state = {"w": X, "half": jnp.ones(2, jnp.bfloat16), "key": jax.random.key(3)}
        jaxnn.save_checkpoint(directory, 1, {"params": state})
        back = jaxnn.load_checkpoint(directory).restore("params", state)
    assert {name: a.dtype for name, a in back.items()} == {
        name: a.dtype for name, a in state.items()
    }
    close(back["w"], X)
    assert np.array_equal(jax.random.key_data(back["key"]), jax.random.key_data(state["key"]))


def numerical_grad_through_control_flow():
    """A scan with a product, a branch, a sorted and a gathered row, a window: what has rules of its
    own in `numerical/`.
    """

    def f(w):
        def step(carry, x):
            return jnp.tanh(w @ carry + x), jnp.max(carry)

        last, seen = jax.lax.scan(step, ROWS[0], ROWS)
        chosen = jax.lax.cond(w[0, 0] > 0, lambda: jnp.sort(last), lambda: last)
        smooth = jnp.convolve(chosen, jnp.array([0.5, 0.5], w.dtype))
        return (
            jnp.sum(smooth**2)
            + jnp.sum(jnp.cumsum(seen)[LABELS])
            + jnp.linalg.solve(w + 3 * I3, last)[1]
        )

    w = jnp.array([[0.3, -0.2, 0.5], [0.1, 0.4, -0.6], [-0.3, 0.2, 0.1]], jnp.float32)
    close(jaxnn.numerical_grad(f)(w), jax.grad(f)(w), rtol=1e-4)
    assert jaxnn.check_gradient(f, w).verdict == "agrees"


FUNCTIONS = [
    mean_squared_error,
    cross_entropy_error,
    softmax_cross_entropy,
    accuracy,
    numerical_diff,
    partial_derivative,
    directional_derivative,
    numerical_gradient,
    numerical_grad,
    numerical_grad_of_a_network,
    numerical_grad_of_a_network_densely,
    numerical_grad_through_control_flow,
    numerical_jacobian,
    numerical_hessian,
    check_gradient,
    check_gradient_finds_what_is_wrong,
    check_gradient_of_order_2,
    check_a_given_gradient,
    gradient_descent,
    descent_path,
    minimize,
    init_network,
    predict_and_loss,
    load_digits,
    one_hot,
    sample_batch,
    fit,
    fit_by_numerical_gradients,
    sweep,
    checkpoints,
]
# Seconds each: compilation, and without `jit` one primitive at a time. All settings with all
# functions: `pytest -m slow`.
EXPENSIVE = {
    numerical_diff,
    numerical_grad_of_a_network,
    numerical_grad_of_a_network_densely,
    numerical_grad_through_control_flow,
    check_gradient,
    check_gradient_finds_what_is_wrong,
    check_gradient_of_order_2,
    fit,
    fit_by_numerical_gradients,
    sweep,
}


def cases():
    for setting in SETTINGS:
        for function in FUNCTIONS:
            slow = setting != "strict dtypes" or function in EXPENSIVE
            yield pytest.param(
                setting,
                function,
                marks=[pytest.mark.slow] * slow,
                id=f"{setting}-{function.__name__}",
            )


@pytest.mark.parametrize("setting, function", list(cases()))
def test_right_numbers(setting, function):
    with SETTINGS[setting]():
        before = settings()
        function()
        assert settings() == before


def settings():
    """What the library changes for a while, or could."""
    names = (
        "enable_x64",
        "default_matmul_precision",
        "debug_nans",
        "debug_infs",
        "disable_jit",
        "numpy_dtype_promotion",
    )
    return {name: getattr(jax.config, f"jax_{name}") for name in names}


class Mistake(Exception):
    pass


def failing(after):
    """A function that cannot be traced where it looks at values, and fails when it has been called
    so many times.
    """
    calls = []

    def f(x, *batch):
        calls.append(1)
        if len(calls) > after:
            raise Mistake
        return jnp.sum(x**2) if after == 0 or x[0] > -9 else x[0]

    return f


CALLS_OF_F = {
    "numerical_diff": lambda f: jaxnn.numerical_diff(f, X),
    "partial_derivative": lambda f: jaxnn.partial_derivative(f, X, 0),
    "directional_derivative": lambda f: jaxnn.directional_derivative(f, X, X),
    "numerical_grad": lambda f: jaxnn.numerical_grad(f)(X),
    "numerical_grad under jit": lambda f: jax.jit(jaxnn.numerical_grad(f))(X),
    "numerical_grad densely": lambda f: jaxnn.numerical_grad(f, method="dense", evaluation="own")(
        X
    ),
    "numerical_jacobian": lambda f: jaxnn.numerical_jacobian(f)(X),
    "numerical_hessian": lambda f: jaxnn.numerical_hessian(f)(X),
    "check_gradient": lambda f: jaxnn.check_gradient(f, X),
    "gradient_descent": lambda f: jaxnn.gradient_descent(f, X, grad=jaxnn.numerical_grad),
    "minimize": lambda f: jaxnn.minimize(f, X, OPTIMIZER, grad=jaxnn.numerical_grad),
    "fit": lambda f: flat.fit(
        f, X, (ROWS,), OPTIMIZER, key=jax.random.key(0), grad=jaxnn.numerical_grad
    ),
}


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("call", CALLS_OF_F.values(), ids=CALLS_OF_F)
def test_an_error_in_the_users_function_leaves_the_settings_as_they_were(x64, call):
    with jax.enable_x64(x64), jax.default_matmul_precision("tensorfloat32"), jax.debug_nans(True):
        before = settings()
        with pytest.raises(Mistake):
            call(failing(after=0))
        assert settings() == before


@pytest.mark.parametrize("after", [5, 20])
def test_an_error_in_the_middle_of_a_check_step_by_step_leaves_the_settings_as_they_were(after):
    with jax.debug_nans(True):
        before = settings()
        with pytest.raises(Mistake):
            jaxnn.check_gradient(failing(after), X)
        assert settings() == before


@pytest.mark.slow
def test_threads_with_other_settings_do_not_disturb_each_other():
    together = threading.Barrier(4)

    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (x**3, x), lambda x, g: (3.03 * g * x**2,))
    f = lambda x: jnp.sum(jnp.sin(x) * x)  # noqa: E731
    wrong = lambda x: jnp.sum(cube(x))  # noqa: E731

    def work(x64):
        dtype = jnp.float64 if x64 else jnp.float32
        with jax.enable_x64(x64), jax.default_matmul_precision("highest" if x64 else "bfloat16"):
            before = settings()
            x = jnp.asarray([3.0, 4.0], dtype)
            for _ in range(3):
                together.wait(60)  # all of them trace, compile and run at the same time
                got = jaxnn.numerical_grad(f)(x)
                assert got.dtype == dtype and (jnp.ones(1).dtype, settings()) == (dtype, before)
                close(
                    got,
                    np.sin([3, 4]) + np.array([3, 4]) * np.cos([3, 4]),
                    rtol=1e-6 if not x64 else 1e-9,
                )
                report = jaxnn.check_gradient(f, x), jaxnn.check_gradient(wrong, x)
                assert [r.verdict for r in report] == ["agrees", "differs"]
                assert report[1].rules[0].verdict == "differs" and settings() == before
        return True

    before = settings()
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, [True, False, True, False]))
    assert settings() == before


# Sums of a few terms: their rounding.
ROUNDING = {"float32": 1e-6, "float64": 1e-10, "bfloat16": 2e-2}


@pytest.mark.parametrize("dtype", slow_but(["float64"], ["float32", "float64", "bfloat16"]))
def test_results_have_the_dtype_of_the_arguments_and_its_digits(dtype):
    rtol, scale = ROUNDING[dtype], 1 / 8  # all of the numbers are exact in bfloat16
    with jax.enable_x64(dtype == "float64"):
        x = jnp.array([0.5, -1.5, 2.0], dtype)
        host = np.array([0.5, -1.5, 2.0])
        f = lambda x: jnp.sum(x**2 * scale)  # noqa: E731
        results = {
            "mean_squared_error": (
                jaxnn.mean_squared_error(x, jnp.array(1)),
                (0.5**2 + 2.5**2 + 2**2) / 2,
            ),
            "softmax_cross_entropy": (
                jaxnn.softmax_cross_entropy(x, jnp.array(1)),
                -np.log(softmax(host)[1]),
            ),
            "cross_entropy_error": (
                jaxnn.cross_entropy_error(abs(x) / 4, jnp.array(1), 0.0),
                -np.log(1.5 / 4),
            ),
            "one_hot": (jaxnn.one_hot(jnp.array(1), 3, dtype), np.eye(3)[1]),
            "numerical_diff": (jaxnn.numerical_diff(lambda x: x**2 * scale, x), host / 4),
            "partial_derivative": (jaxnn.partial_derivative(f, x, 1), -1.5 / 4),
            "directional_derivative": (jaxnn.directional_derivative(f, x, x), np.sum(host**2) / 4),
            "numerical_gradient": (jaxnn.numerical_gradient(f, x), host / 4),
            "numerical_jacobian": (
                jaxnn.numerical_jacobian(lambda x: x * x * scale)(x),
                np.diag(host) / 4,
            ),
            "numerical_hessian": (jaxnn.numerical_hessian(f)(x), np.eye(3) / 4),
            "gradient_descent": (jaxnn.gradient_descent(f, x, 1.0, 2), host * 0.75**2),
            "descent_path": (jaxnn.descent_path(f, x, 1.0, 2).points[2], host * 0.75**2),
            "minimize": (jaxnn.minimize(f, x, optax.sgd(1.0), max_steps=2).x, host * 0.75**2),
            "init_network": (
                jaxnn.init_network(jax.random.key(0), (2, 3), 0.0, dtype)["W1"],
                np.zeros((2, 3)),
            ),
            "predict": (jaxnn.predict({"W1": jnp.eye(3, dtype=dtype) * 2}, x), host * 2),
        }
        for name, (got, want) in results.items():
            assert got.dtype == dtype, name
            atol = 1e-4 if name == "numerical_hessian" else rtol * 1e-1
            np.testing.assert_allclose(
                np.asarray(got, np.float64), want, rtol=rtol, atol=atol, err_msg=name
            )
        report = jaxnn.check_gradient(f, x)
        assert (report.verdict, report.leaves[0].dtype) == ("agrees", dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ROUNDING)
def test_training_keeps_the_dtype_of_the_parameters(dtype):
    with jax.enable_x64(dtype == "float64"):
        params, data = jax.tree.map(lambda a: a.astype(dtype), line_case())
        options = {"key": jax.random.key(0), "epochs": 2, "batch_size": 3}
        runs = jaxnn.sweep(line, params, data, optax.sgd, jnp.array([0.25], dtype), **options)
        alone = flat.fit(line, params, data, optax.sgd(0.25), **options)
        for run in (alone, runs[0]):
            assert (run.params["w"].dtype, run.history.step_loss.dtype) == (dtype, dtype)
        close(alone.params, runs[0].params, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


def test_under_debug_nans_a_users_own_nan_still_raises():
    """The setting means what it says: only what the library computes beside the user's function is
    exempt.
    """
    with jax.debug_nans(True):
        with pytest.raises(FloatingPointError):
            jaxnn.numerical_diff(lambda x: jnp.log(-x), 2.0)
        with pytest.raises(FloatingPointError):
            flat.fit(
                lambda p, x: jnp.log(-jnp.sum(p**2)),
                X,
                (ROWS,),
                OPTIMIZER,
                key=jax.random.key(0),
                epochs=1,
            )


def test_under_debug_nans_the_check_still_looks_beyond_a_functions_domain():
    with jax.debug_nans(True), jax.debug_infs(True):
        assert (
            jaxnn.check_gradient(lambda x: jnp.sum(jnp.log(x)), jnp.array([0.01, 1.0])).verdict
            == "agrees"
        )
        assert (
            jaxnn.check_gradient(lambda x: jnp.sum(jnp.sqrt(x)), jnp.array([0.0, 1.0])).verdict
            == "not finite"
        )


def test_programs_are_compiled_though_jit_is_disabled():
    with jax.disable_jit(True):
        with wide_arithmetic(jnp.float64):
            assert not jax.config.jax_disable_jit
        with undisturbed():
            assert not jax.config.jax_disable_jit
        assert jax.config.jax_disable_jit
