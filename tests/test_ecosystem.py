"""Models and solvers of other libraries as they are: `pip install ".[ecosystem]"` brings them."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flat import fit
from jax.experimental import sparse
from watched_programs import require_watched, unit

import jaxnn
from jaxnn import check_gradient, gradient_descent, minimize, numerical_grad, sweep, watching

pytestmark = pytest.mark.ecosystem
X = jnp.linspace(-1, 1, 15).reshape(5, 3)
ROOT = pathlib.Path(__file__).parents[1]
FOUND = sorted((ROOT / "examples" / "found").glob("*.py"))
README = (ROOT / "README.md").read_text()


def library(name):
    return pytest.importorskip(name, reason=f"{name} comes with '.[ecosystem]'")


def agrees(f, *args, **options):
    report = check_gradient(f, *args, **options)
    assert report.verdict == "agrees", str(report)
    return report


@pytest.fixture
def mlp():
    eqx = library("equinox")
    return eqx.nn.MLP(3, 1, 8, 2, key=jax.random.key(0))


def error(model, x):
    return jnp.mean(jax.vmap(model)(x) ** 2)


def test_an_equinox_module(mlp):
    report = agrees(error, mlp, X)
    assert len(report.leaves) == 6
    assert "[0].activation (function)" in report.notes[0]


def test_an_equinox_gradient(mlp):
    eqx = library("equinox")
    agrees(error, mlp, X, gradient=eqx.filter_grad(error))
    doubled = lambda m, x: jax.tree.map(lambda g: 2 * g, eqx.filter_grad(error)(m, x))  # noqa: E731
    report = check_gradient(error, mlp, X, gradient=doubled)
    assert {leaf.verdict for leaf in report.leaves} == {"differs"}


def test_an_equinox_rule_bears_the_users_name_and_lines():
    eqx = library("equinox")

    @eqx.filter_custom_jvp
    def act(x):
        return jnp.tanh(x)

    @act.def_jvp
    def slope(primals, tangents):
        return act(*primals), 2 * tangents[0]

    (rule,) = check_gradient(lambda x: jnp.sum(act(x)), X).rules
    assert (rule.name, rule.rule.function.rpartition(".")[2]) == ("act", "slope")
    assert rule.line.text.startswith("(rule,) = ")


def test_leaves_of_an_equinox_module_are_chosen(mlp):
    eqx = library("equinox")
    none = jax.tree.map(lambda _: False, mlp)
    where = eqx.tree_at(lambda m: m.layers[0].weight, none, True)
    report = agrees(error, mlp, X, where=where)
    assert [leaf.path for leaf in report.leaves] == ["[0].layers[0].weight"]


def test_an_equinox_module_in_derivatives_and_descent(mlp):
    eqx = library("equinox")
    numerical, automatic = numerical_grad(error)(mlp, X), eqx.filter_grad(error)(mlp, X)
    pairs = zip(jax.tree.leaves(numerical), jax.tree.leaves(automatic), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    loss = lambda m: error(m, X)  # noqa: E731
    end = gradient_descent(loss, mlp, lr=0.1, step_num=50)
    assert type(end) is type(mlp) and loss(end) < loss(mlp)
    assert minimize(loss, mlp, optax.adam(0.01), max_steps=20).loss < loss(mlp)


def test_an_equinox_module_is_trained(mlp):
    loss = lambda model, x, t: jnp.mean((jax.vmap(model)(x)[:, 0] - t) ** 2)  # noqa: E731
    data = X, X[:, 0] * X[:, 1]
    run = {"key": jax.random.key(1), "epochs": 20, "batch_size": 5}
    result = fit(loss, mlp, data, optax.adam(0.03), **run)
    assert type(result.params) is type(mlp) and loss(result.params, *data) < loss(mlp, *data) / 2
    (alone,) = sweep(loss, mlp, data, optax.adam, jnp.array([0.03]), **run)
    pairs = zip(*(jax.tree.leaves(end.params) for end in (alone, result)), strict=True)
    for a, b in pairs:
        if hasattr(a, "dtype"):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_batch_norm_with_its_state():
    eqx = library("equinox")
    model, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="batch")
    f = lambda m, s: jnp.sum(  # noqa: E731
        jax.vmap(m, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(X, s)[0] ** 2 * X
    )
    agrees(f, model, state)


@pytest.fixture
def network():
    nnx = library("flax.nnx")

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first, self.last = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.tanh(self.first(x)))

    return Network(nnx.Rngs(0))


def squared(model, x):
    return jnp.mean(model(x) ** 2)


def test_an_nnx_module_its_state_and_its_gradient(network):
    nnx = library("flax.nnx")
    assert len(agrees(squared, network, X).leaves) == 4
    agrees(squared, network, X, gradient=nnx.grad(squared))
    graph, state = nnx.split(network)
    agrees(lambda s, x: squared(nnx.merge(graph, s), x), state, X)
    doubled = lambda m, x: jax.tree.map(lambda g: 2 * g, nnx.grad(squared)(m, x))  # noqa: E731
    assert check_gradient(squared, network, X, gradient=doubled).verdict == "differs"


def test_variables_of_linen_and_haiku():
    nn, hk = library("flax.linen"), library("haiku")
    linen = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(1)])
    agrees(lambda p: jnp.mean(linen.apply(p, X) ** 2), linen.init(jax.random.key(0), X))
    haiku = hk.transform(lambda x: hk.nets.MLP([8, 1])(x))
    params = haiku.init(jax.random.PRNGKey(0), X)
    agrees(lambda p: jnp.mean(haiku.apply(p, None, X) ** 2), params)


def test_dataclasses():
    chex, jdc = library("chex"), library("jax_dataclasses")

    @chex.dataclass
    class Named:
        a: jax.Array
        name: str

    @jdc.pytree_dataclass
    class Powered:
        a: jax.Array
        n: jdc.Static[int]
        k: int

    agrees(lambda p: jnp.sum(p.a**2), Named(a=jnp.ones(3), name="squares"))
    agrees(lambda p: jnp.sum(p.a**p.n) * p.k, Powered(jnp.ones(3), 2, 3))


def test_a_sparse_matrix():
    matrix = sparse.BCOO.fromdense(jnp.array([[1.0, 0, 2], [0, 3, 0]]))
    f = lambda m: jnp.sum((m @ jnp.ones(3)) ** 2)  # noqa: E731
    agrees(f, matrix)
    np.testing.assert_allclose(numerical_grad(f)(matrix).data, [6, 6, 6], rtol=1e-5)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_differential_equation(adaptive):
    diffrax = library("diffrax")
    steps = diffrax.PIDController(1e-4, 1e-6) if adaptive else diffrax.ConstantStepSize()

    def f(k):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, k: -k * y),
            diffrax.Tsit5(),
            0,
            1,
            0.05,
            jnp.array([1.0, 2.0]),
            args=k,
            saveat=diffrax.SaveAt(ts=jnp.linspace(0, 1, 5)),
            stepsize_controller=steps,
        )
        return jnp.sum(solution.ys**2)

    k = jnp.float32(0.7)
    assert agrees(f, k).leaves[0].digits > 7
    np.testing.assert_allclose(numerical_grad(f)(k), jax.grad(f)(k), rtol=1e-4)


def test_a_root_and_a_linear_system():
    optx, lx = library("optimistix"), library("lineax")

    def f(a):
        newton = optx.Newton(1e-5, 1e-5)
        return optx.root_find(lambda y, a: y - a * jnp.cos(y), newton, jnp.float32(0.5), a).value

    a, matrix = jnp.float32(0.9), jnp.array([[3.0, 1], [1, 2]])
    agrees(f, a)
    np.testing.assert_allclose(numerical_grad(f)(a), jax.grad(f)(a), rtol=1e-3)
    solve = lambda m: lx.linear_solve(lx.MatrixLinearOperator(m), jnp.ones(2)).value  # noqa: E731
    agrees(lambda m: jnp.sum(solve(m) ** 2), matrix)


@pytest.mark.parametrize("solver", ["LU", "QR", "CG", "GMRES"])
def test_the_operator_that_a_linear_solver_stops_is_differentiated(solver):
    lx = library("lineax")
    how = getattr(lx, solver)(*[1e-9, 1e-9] * (solver in ("CG", "GMRES")))
    matrix = jnp.array([[4.0, 1.0], [1.0, 3.0]])

    def f(m):
        operator = lx.MatrixLinearOperator(m + m.T, lx.positive_semidefinite_tag)
        return jnp.sum(lx.linear_solve(operator, jnp.array([1.0, 2.0]), how).value)

    with jax.enable_x64(True):
        agrees(f, jnp.asarray(matrix, "float64"))
        agrees(f, jnp.asarray(matrix, "float64"), stop_gradient="held")


def test_the_gradients_that_a_solver_takes_are_watched():
    optx, eqx = library("optimistix"), library("equinox")
    for factor, code in ((1.0, 0), (0.9, 1)):
        energy = lambda y, args, factor=factor: jnp.sum(unit(factor)(y - 1.0) ** 2)  # noqa: E731
        with watching() as watched:
            solver = optx.BFGS(1e-4, 1e-4)
            optx.minimise(energy, solver, jnp.full(3, 1.5), max_steps=20, throw=False)
            eqx.filter_vjp(lambda y, e=energy: e(y, None), jnp.ones(3))
        assert len(watched.report.places) >= 2 and watched.report.exit_code == code
        assert {place.line.file for place in watched.report.places} == {__file__}


def test_a_normalising_flow():
    flows, distributions = library("flowjax.flows"), library("flowjax.distributions")
    base = distributions.Normal(jnp.zeros(2))
    flow = flows.masked_autoregressive_flow(jax.random.key(0), base_dist=base)
    agrees(lambda flow: -jnp.mean(flow.log_prob(jnp.ones((4, 2)))), flow)


def noisy(params, x, t, *, key):
    noise = 0.1 * jax.random.normal(key, t.shape)
    return jnp.mean((x @ params["w"] + noise - t) ** 2)


def test_a_run_is_saved_by_an_orbax_manager_and_goes_on(tmp_path):
    ocp = library("orbax.checkpoint")
    pairs, start = (X, X[:, :1]), {"w": jnp.zeros((3, 1))}
    run = {"key": jax.random.key(0), "batch_size": 2, "test": pairs, "patience": 9}
    whole = fit(noisy, start, pairs, optax.adam(0.1), epochs=4, **run)
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        saved = {"checkpoint": manager, "every": 2, **run}
        fit(noisy, start, pairs, optax.adam(0.1), epochs=2, **saved)
        assert manager.all_steps() == [4, 6]
        with pytest.raises(
            FileExistsError, match="must be an empty directory unless `resume` is set"
        ):
            fit(noisy, start, pairs, optax.adam(0.1), epochs=4, **saved)
        with pytest.raises(ValueError, match="`batch_size` must be 2, as in the checkpoint"):
            fit(noisy, start, pairs, optax.adam(0.1), resume=True, **saved | {"batch_size": 3})
        rest = fit(noisy, start, pairs, optax.adam(0.1), epochs=4, resume=True, **saved)
    np.testing.assert_array_equal(rest.params["w"], whole.params["w"])
    np.testing.assert_array_equal(rest.history.step_loss, whole.history.step_loss)


def test_an_orbax_manager_decides_what_is_written_and_kept(tmp_path):
    ocp = library("orbax.checkpoint")
    pairs, start = (X, X[:, :1]), {"w": jnp.zeros((3, 1))}
    run = {"key": jax.random.key(0), "batch_size": 2, "test": pairs, "epochs": 4, "every": 1}
    seldom = ocp.CheckpointManagerOptions(save_interval_steps=5)
    with ocp.CheckpointManager(tmp_path / "seldom", options=seldom) as manager:
        last = fit(noisy, start, pairs, optax.adam(0.1), checkpoint=manager, **run).status.step
        assert set(manager.all_steps()) <= {1, 5, 10, 15, last} and last in manager.all_steps()
    best = ocp.CheckpointManagerOptions(
        max_to_keep=1, best_fn=lambda metrics: metrics["test_loss"], best_mode="min"
    )
    with ocp.CheckpointManager(tmp_path / "best", options=best) as manager:
        fit(noisy, start, pairs, optax.adam(0.1), checkpoint=manager, evaluate_steps=1, **run)
        assert len(manager.all_steps()) == 1


def test_the_reference_has_all_public_names(tmp_path):
    library("pdoc")
    command = [sys.executable, "-m", "jaxnn", "docs", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout == f"{tmp_path / 'jaxnn.html'}\n", done.stderr
    page = (tmp_path / "jaxnn.html").read_text()
    for name in jaxnn.__all__:
        assert f'id="{name}"' in page, name
    assert (
        "View Source" in page and 'id="bowl"' in (tmp_path / "jaxnn" / "surfaces.html").read_text()
    )


def an_equinox_module_under_filter_jit(unit):
    eqx = library("equinox")
    model = eqx.nn.MLP(3, 1, 8, 2, activation=unit, key=jax.random.key(0))
    optimizer = optax.adam(1e-2)
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        value, gradient = eqx.filter_value_and_grad(error)(model, X)
        updates, state = optimizer.update(gradient, state, model)
        return eqx.apply_updates(model, updates), state, value

    for _ in range(3):
        model, state, value = step(model, state)
    return eqx.filter(model, eqx.is_array), value


def an_nnx_module_with_its_optimizer(unit):
    library("flax")
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.one, self.two = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)

        def __call__(self, x):
            return self.two(unit(self.one(x)))

    net = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optax.sgd(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(net, optimizer):
        loss = lambda net: jnp.mean(net(X) ** 2)  # noqa: E731
        value, gradient = nnx.value_and_grad(loss)(net)
        optimizer.update(net, gradient)
        return value

    values = [step(net, optimizer) for _ in range(3)]
    return values, jax.tree.leaves(nnx.state(net, nnx.Param))


def a_linen_module(unit):
    library("flax")
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(1)(unit(linen.Dense(8)(x)))

    net = Net()
    params = net.init(jax.random.key(0), X)
    step = jax.jit(jax.value_and_grad(lambda params: jnp.mean(net.apply(params, X) ** 2)))
    for _ in range(3):
        value, gradient = step(params)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    return params, value


def a_neural_differential_equation(unit, adjoint="DirectAdjoint"):
    diffrax, eqx = library("diffrax"), library("equinox")
    field = eqx.nn.MLP(2, 2, 4, 1, activation=unit, key=jax.random.key(0))

    def loss(field):
        term = diffrax.ODETerm(lambda t, y, args: field(y))
        options = {"adjoint": getattr(diffrax, adjoint)(), "max_steps": 4}
        start = jnp.array([1.0, 0.5])
        solution = diffrax.diffeqsolve(term, diffrax.Euler(), 0.0, 1.0, 0.25, start, **options)
        return jnp.sum(solution.ys**2)

    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(loss))(field)
    return value, jax.tree.leaves(gradient)


def a_neural_differential_equation_by_its_default_adjoint(unit):
    return a_neural_differential_equation(unit, "RecursiveCheckpointAdjoint")


@pytest.mark.parametrize(
    "program",
    [
        an_equinox_module_under_filter_jit,
        an_nnx_module_with_its_optimizer,
        a_linen_module,
        a_neural_differential_equation,
        a_neural_differential_equation_by_its_default_adjoint,
    ],
    ids=lambda program: program.__name__,
)
def test_a_program_is_watched_and_nothing_of_it_changes(program):
    require_watched(program)


LIBRARIES = {
    "numpyro": "numpyro",
    "ott": "ott",
    "exojax": "exojax",
    "mjx": "mujoco.mjx",
    "diffrax": "diffrax",
    "jax": "jax",
}


@pytest.mark.parametrize("script", FOUND, ids=lambda path: path.stem)
def test_what_was_found_in_libraries_is_found_again(script):
    library(LIBRARIES[script.stem.partition("_")[0]])  # two of them are not among the extras
    command = [sys.executable, "-m", "jaxnn", "check", str(script)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 1 and "gradient of check_" in run.stdout, run.stderr


def test_there_are_such_scripts_and_the_readme_names_their_libraries():
    assert {script.stem.partition("_")[0] for script in FOUND} == set(LIBRARIES)
    words = " ".join(README.split())
    released = "NumPyro 0.22.0", "OTT-JAX 0.6.0", "MuJoCo MJX 3.17.0", "ExoJAX 2.6.0"
    for name in (*released, "Diffrax 0.7.2", "JAX 0.10.2"):
        assert f"{name}:" in words


def test_a_data_frame_of_pandas_is_trained_on():
    pandas = library("pandas")
    x = np.linspace(-1, 1, 12, dtype=np.float32)
    frame = pandas.DataFrame({"x": x, "t": 2 * x})
    loss = lambda w, d: jnp.mean((w * d["x"] - d["t"]) ** 2)  # noqa: E731
    run = {"key": jax.random.key(0), "epochs": 50, "batch_size": 4}
    assert jaxnn.fit(loss, jnp.zeros(()), frame, optax.sgd(0.5), **run).params == pytest.approx(2)
