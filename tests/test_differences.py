"""Numerical derivatives: the chapter's values, agreement with jax.grad, the same calling forms, and
what is refused.
"""

import dataclasses
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import AxisType, PartitionSpec
from slow import float32_quickly, slow_but

from jaxnn import (
    check_gradient,
    directional_derivative,
    init_network,
    loss,
    numerical_diff,
    numerical_grad,
    numerical_gradient,
    numerical_hessian,
    numerical_jacobian,
    partial_derivative,
)
from jaxnn.surfaces import bowl, parabola, rosenbrock


@pytest.mark.parametrize("x, printed", [(5.0, 0.1999999999990898), (10.0, 0.2999999999986347)])
def test_numerical_diff_gives_the_chapters_digits(x64, x, printed):
    assert float(numerical_diff(parabola, x, h=1e-4)) == printed
    assert float(numerical_diff(parabola, int(x), 1e-4)) == printed


@pytest.mark.parametrize(
    "index, printed", [(0, 6.00000000000378), (1, 7.999999999999119), (-1, 7.999999999999119)]
)
def test_partial_derivative_gives_the_chapters_digits(x64, index, printed):
    assert float(partial_derivative(bowl, jnp.array([3.0, 4.0]), index, h=1e-4)) == printed


@pytest.mark.parametrize(
    "at, expected", [((3.0, 4.0), (6, 8)), ((0.0, 2.0), (0, 4)), ((3.0, 0.0), (6, 0))]
)
def test_numerical_gradient_gives_the_chapters_gradients(dtype, at, expected):
    np.testing.assert_allclose(numerical_gradient(bowl, jnp.array(at, dtype)), expected, atol=1e-9)


def test_float32_input_is_evaluated_in_float64_unless_told_otherwise():
    f = lambda x: 0.01 * x**2 + 0.1 * x  # noqa: E731
    assert float(numerical_diff(f, 5.0, 1e-4)) == pytest.approx(0.2, rel=1e-7)
    assert abs(float(numerical_diff(f, 5.0, 1e-4, evaluation="own")) - 0.2) > 1e-4


@pytest.mark.parametrize(
    "scheme, bound", [("central", 1e-9), ("forward", 1e-7), ("backward", 1e-7)]
)
def test_schemes(x64, scheme, bound):
    assert float(numerical_diff(jnp.exp, 1.0, scheme=scheme)) == pytest.approx(np.e, rel=bound)
    np.testing.assert_allclose(
        numerical_gradient(rosenbrock, jnp.array([1.2, 0.7]), scheme=scheme),
        jax.grad(rosenbrock)(jnp.array([1.2, 0.7])),
        rtol=1e2 * bound,
    )


@pytest.mark.parametrize("scheme, order", [("central", 2), ("forward", 1), ("backward", 1)])
def test_truncation_falls_with_the_order_of_the_scheme(x64, scheme, order):
    errors = [
        abs(float(numerical_diff(jnp.exp, 0.5, h, scheme=scheme)) - np.exp(0.5))
        for h in (1e-2, 1e-3)
    ]
    assert np.log10(errors[0] / errors[1]) == pytest.approx(order, abs=0.05)


def network_case(dtype):
    rng = np.random.default_rng(0)
    params = init_network(jax.random.key(0), (20, 8, 5), 0.1, dtype)
    return params, jnp.array(rng.uniform(size=(12, 20)), dtype), jnp.array(rng.integers(0, 5, 12))


def relative_difference(a, b):
    a, b = (
        np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])
        for tree in (a, b)
    )
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@float32_quickly
def test_numerical_grad_agrees_with_jax_grad_on_a_network(dtype):
    params, x, t = network_case(dtype)
    numerical = numerical_grad(loss)(params, x, t)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), numerical) == jax.tree.map(
        lambda a: (a.shape, a.dtype), params
    )
    with jax.enable_x64(True):
        reference = jax.grad(loss)(
            *jax.tree.map(lambda a: a.astype("float64") if a.dtype == dtype else a, (params, x, t))
        )
        assert relative_difference(numerical, reference) < 1e-7


EXPRESSIONS = [
    lambda x: jnp.sum(jnp.sin(x) * x),
    lambda x: jax.nn.logsumexp(x) + jnp.prod(jnp.cos(x)),
    lambda x: jnp.linalg.norm(x - 3) ** 3,
    lambda x: jnp.sum(jnp.outer(x, x) @ jnp.tanh(x)),
    lambda x: jax.lax.scan(lambda c, a: (jnp.tanh(c + a), None), jnp.zeros((), x.dtype), x.ravel())[
        0
    ],
    lambda x: jax.lax.cond(x.sum() > 0, lambda x: jnp.sum(x**3), lambda x: jnp.sum(jnp.exp(x)), x),
]


@settings(max_examples=15)
@given(st.integers(0, len(EXPRESSIONS) - 1), st.sampled_from([1, 4]), st.integers(0, 10**6))
def test_numerical_grad_agrees_with_jax_grad_on_expressions(which, n, seed):
    f = EXPRESSIONS[which]
    with jax.enable_x64(True):
        x = jnp.array(np.random.default_rng(seed).normal(size=n))
        np.testing.assert_allclose(numerical_grad(f)(x), jax.grad(f)(x), rtol=1e-6, atol=1e-8)


def test_calling_forms_are_those_of_jax_grad():
    f = lambda a, b, scale=1.0: scale * jnp.sum(a["w"] ** 2) * b[0]  # noqa: E731
    a, b = {"w": jnp.array([[1.0, 2.0]])}, (jnp.array(3.0),)
    for argnums in (0, 1, -1, (0, 1), (1, 0)):
        ours, theirs = (
            numerical_grad(f, argnums)(a, b, scale=2.0),
            jax.grad(f, argnums)(a, b, scale=2.0),
        )
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        assert relative_difference(ours, theirs) < 1e-6
    gradient, aux = numerical_grad(lambda x: (jnp.sum(x**2), {"twice": 2 * x}), has_aux=True)(
        jnp.array([1.0, 2.0])
    )
    np.testing.assert_allclose(gradient, [2, 4], rtol=1e-6)
    assert aux["twice"].tolist() == [2, 4]
    applied = numerical_grad(lambda x, name, fn, n: fn(x) * n if name == "this" else 0 * x)(
        2.0, "this", jnp.square, 3
    )
    assert float(applied) == pytest.approx(12)


@pytest.mark.promotes
def test_integer_boolean_and_key_leaves_are_held_fixed():
    x = {
        "w": jnp.array([2.0]),
        "n": jnp.array([3]),
        "flag": jnp.array(True),
        "key": jax.random.key(0),
    }
    f = lambda x: jnp.sum(x["w"] ** x["n"]) + jax.random.normal(x["key"]) * x["flag"]  # noqa: E731
    gradient = numerical_grad(f)(x)
    assert float(gradient["w"][0]) == pytest.approx(12)
    assert {gradient[name].dtype for name in ("n", "flag", "key")} == {jax.dtypes.float0}


@float32_quickly
def test_jacobian_and_hessian_have_the_structure_of_their_twins(dtype):
    x = {"a": jnp.array([1.0, 2.0], dtype), "b": jnp.array([[0.5]], dtype)}
    f = lambda x: {"u": x["a"][:, None] * x["b"], "v": jnp.sum(x["a"]) ** 2}  # noqa: E731
    g = lambda x: jnp.sum(x["a"] ** 3) * x["b"][0, 0] ** 2  # noqa: E731
    for ours, theirs in (
        (numerical_jacobian(f), jax.jacobian(f)),
        (numerical_hessian(g), jax.hessian(g)),
    ):
        ours, theirs = ours(x), theirs(x)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), ours) == jax.tree.map(
            lambda a: (a.shape, a.dtype), theirs
        )
        assert relative_difference(ours, theirs) < 1e-6
    many = numerical_jacobian(lambda a, b: a * b, (0, 1))(x["a"], x["a"])
    np.testing.assert_allclose(many[0], np.diag([1, 2]), rtol=1e-6)


def test_directional_derivative_is_the_gradient_times_the_direction(dtype):
    params, x, t = network_case(dtype)
    f = lambda p: loss(p, x, t)  # noqa: E731
    v = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size, dtype=dtype)).reshape(p.shape), params)
    expected = jax.jvp(f, (params,), (v,))[1]
    rel = 1e-8 if dtype == jnp.float64 else 1e-5
    assert float(directional_derivative(f, params, v)) == pytest.approx(float(expected), rel=rel)
    assert float(
        directional_derivative(f, params, jax.tree.map(jnp.zeros_like, params))
    ) == pytest.approx(0, abs=1e-15)


def test_second_derivatives_have_longer_steps_than_first_ones(x64):
    """Of a function that is large beside its slope: steps for first ones would be too short."""
    f = lambda x: 1e3 + jnp.exp(jnp.sum(x))  # noqa: E731
    x = jnp.array([1.0, -0.5, 0.3])
    np.testing.assert_allclose(numerical_hessian(f)(x), np.full((3, 3), np.exp(0.8)), rtol=2e-6)


def test_along_a_direction_the_smallest_step_of_all_entries_is_taken():
    f = lambda p: jnp.sin(p["large"]) + jnp.sin(p["small"])  # noqa: E731
    point = {"large": jnp.float32(1e6), "small": jnp.float32(1.0)}
    along = {"large": jnp.float32(1.0), "small": jnp.float32(1.0)}
    right = np.cos(1e6) + np.cos(1.0)
    assert float(directional_derivative(f, point, along)) == pytest.approx(right, rel=1e-3)


def test_it_works_inside_other_transformations():
    at = jnp.array([[3.0, 4.0], [-1.0, 2.0]])
    gradient = numerical_grad(bowl)
    np.testing.assert_allclose(jax.jit(gradient)(at[0]), [6, 8], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(gradient)(at), 2 * at, rtol=1e-6)
    np.testing.assert_allclose(jax.lax.map(gradient, at), 2 * at, rtol=1e-6)
    stepped = jax.lax.fori_loop(0, 3, lambda _, x: x - 0.25 * gradient(x), at[0])
    np.testing.assert_allclose(stepped, at[0] / 8, rtol=1e-6)
    stepped = jax.lax.scan(lambda x, _: (x - 0.25 * gradient(x), None), at[0], length=3)[0]
    np.testing.assert_allclose(stepped, at[0] / 8, rtol=1e-6)


def test_a_second_call_compiles_nothing(compilations):
    def f(x, scale):
        return scale * jnp.sum(x**2)

    numerical_grad(f)(np.ones(3, "f"), 1.0)
    numerical_grad(f, h=1e-3)(np.ones(3, "f"), 1.0)
    before = compilations()
    numerical_grad(f)(np.full(3, 2, "f"), 2.0)
    numerical_grad(f, h=1e-4)(np.ones(3, "f"), 1.0)
    assert compilations() == before


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_the_batch_size_changes_nothing(x64, batch_size):
    x = jnp.linspace(0.1, 1, 7)
    np.testing.assert_array_equal(
        numerical_gradient(rosenbrock, x, batch_size=batch_size), numerical_gradient(rosenbrock, x)
    )


@pytest.mark.parametrize("method", ["propagation", "dense"])
@pytest.mark.parametrize("n", [1000, 16000])
def test_memory_is_that_of_some_copies_of_the_point_however_many_entries_it_has(method, n):
    gradient = jax.jit(numerical_grad(lambda x: jnp.sum(jnp.sin(x)), method=method))
    memory = gradient.lower(jnp.ones(n)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 25 * np.zeros(n).nbytes  # a copy for each entry would be n


def test_a_primitive_is_what_it_is_whatever_it_is_called():
    """A user's primitive may have the name of one of JAX's."""
    cube = Primitive("add")
    cube.def_impl(lambda x: x**3)
    cube.def_abstract_eval(lambda x: x)
    mlir.register_lowering(cube, mlir.lower_fun(lambda x: x**3, multiple_results=False))
    batching.primitive_batchers[cube] = lambda xs, axes: (cube.bind(*xs), axes[0])
    x = jnp.array([1.0, 2.0, 3.0])
    for method, evaluation in itertools.product(("propagation", "dense"), ("float64", "own")):
        options = {"method": method, "evaluation": evaluation}
        gradient = numerical_grad(lambda x: jnp.sum(cube.bind(x)), **options)(x)
        np.testing.assert_allclose(gradient, [3, 12, 27], rtol=1e-3)


@pytest.mark.slow
def test_a_function_mapped_over_devices_is_differentiated():
    mesh = jax.make_mesh((jax.device_count(),), ("i",), axis_types=(AxisType.Auto,))
    total = lambda x: jax.lax.psum(jnp.sum(jnp.sin(x) ** 2), "i")  # noqa: E731
    spec = PartitionSpec("i")
    mapped = jax.shard_map(total, mesh=mesh, in_specs=spec, out_specs=PartitionSpec())
    f = lambda x: 2 * mapped(x)  # noqa: E731
    x = jnp.linspace(0.1, 1, 8)
    for method, inside in itertools.product(("propagation", "dense"), (jax.jit, lambda g: g)):
        gradient = inside(numerical_grad(f, method=method))(x)
        np.testing.assert_allclose(gradient, jax.grad(f)(x), rtol=1e-5)
    own = numerical_grad(f, evaluation="own")(x)
    np.testing.assert_allclose(own, jax.grad(f)(x), rtol=2e-2)
    assert check_gradient(f, x).verdict == "agrees"
    assert check_gradient(f, x, gradient=lambda x: 1.01 * jax.grad(f)(x)).verdict == "differs"


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e6])
def test_the_default_step_follows_the_scale_of_the_entries(dtype, scale):
    x = scale * jnp.linspace(0.5, 1.5, 5, dtype=dtype)
    gradient = numerical_grad(lambda x: jnp.sum(jnp.tanh(x / scale)) * scale)(x)
    np.testing.assert_allclose(gradient, 1 - np.tanh(np.asarray(x) / scale) ** 2, rtol=1e-4)


def test_functions_that_cannot_be_called_with_float64_are_evaluated_in_it_all_the_same():
    key = jax.random.key(0)
    kernel, image = jnp.ones((1, 1, 2, 2)), jax.random.normal(key, (1, 1, 5, 5))
    for f in (
        lambda k: jnp.sum(
            jnp.sin(jax.lax.conv_general_dilated(image, k, (1, 1), "VALID"))
        ),  # float32 data closed over
        lambda k: jnp.sum(
            jax.lax.scan(lambda h, _: (jnp.tanh(h @ k[0, 0]), None), jnp.ones((2, 2)), length=5)[0]
        ),
        lambda k: jnp.sum(
            jnp.sin(k).astype(jnp.bfloat16).astype(jnp.float32) ** 2
        ),  # a cast inside
        lambda k: jnp.sum(jax.random.normal(key, (2, 2)) * k[0, 0]),  # a draw that x64 would change
    ):
        tolerance = 1e-2 if "bfloat16" in str(jax.make_jaxpr(f)(kernel)) else 1e-5
        np.testing.assert_allclose(
            numerical_grad(f)(kernel), jax.grad(f)(kernel), rtol=tolerance, atol=1e-5
        )


SPECIAL = {
    "argmax": lambda w: w[jnp.argmax(w)] ** 2,
    "incomplete beta": lambda w: jnp.sum(jax.scipy.special.betainc(2.0, 3.0, w)),
    "Bessel": lambda w: jnp.sum(jax.scipy.special.i0(w)),
    "loops batched by vmap": lambda w: jnp.sum(jax.scipy.special.exp1(w)),
    "implicit root": lambda w: jax.lax.custom_root(
        lambda x: x**3 - w[0], 1.0, _newton, lambda g, y: y / g(1.0)
    ),
}
INSIDE = {
    "nothing": lambda g, w: g(w),
    "jit": lambda g, w: jax.jit(g)(w),
    "vmap": lambda g, w: jax.vmap(g)(w[None])[0],
    "jit of vmap": lambda g, w: jax.jit(jax.vmap(g))(w[None])[0],
    "fori_loop": lambda g, w: jax.lax.fori_loop(0, 1, lambda _, c: g(c), w),
    "scan that closes over the point": lambda g, w: jax.lax.scan(
        lambda c, _: (g(w), None), w, length=1
    )[0],
}


def _newton(f, x):
    return jax.lax.fori_loop(0, 30, lambda _, x: x - f(x) / (3 * x**2), x)


@pytest.mark.parametrize("inside", slow_but(["jit"], INSIDE))
@pytest.mark.parametrize("name", SPECIAL)
def test_primitives_that_look_at_x64_are_evaluated_in_float64_wherever_the_gradient_is_asked_for(
    name, inside
):
    f, w = SPECIAL[name], jnp.array([0.2, 0.7, 0.4])
    np.testing.assert_allclose(
        INSIDE[inside](numerical_grad(f), w), jax.grad(f)(w), rtol=1e-4, atol=1e-6
    )


def test_a_numerical_gradient_inside_jit_can_be_differentiated():
    second = jax.jit(jax.jacfwd(numerical_grad(lambda x: jnp.sum(jnp.sin(x)))))(
        jnp.array([0.3, 2.0])
    )
    np.testing.assert_allclose(second, jnp.diag(-jnp.sin(jnp.array([0.3, 2.0]))), atol=1e-3)


def test_empty_leaves_have_empty_derivatives():
    point = {"a": jnp.array([3.0, 4.0]), "b": jnp.ones((0, 3))}
    total = lambda x: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(x))  # noqa: E731
    gradient = numerical_grad(total)(point)
    assert gradient["a"].tolist() == pytest.approx([6, 8], rel=1e-5) and gradient["b"].shape == (
        0,
        3,
    )
    assert numerical_grad(total)({"b": jnp.ones(0)})["b"].shape == (0,)
    hessian = numerical_hessian(total)(point)
    assert hessian["a"]["b"].shape == (2, 0, 3) and hessian["b"]["b"].shape == (0, 3, 0, 3)
    assert numerical_jacobian(lambda x: 2 * x["a"])(point)["b"].shape == (2, 0, 3)


def test_a_traced_step_too_small_gives_nan_not_zero():
    gradient = jax.jit(lambda x, h: numerical_gradient(bowl, x, h=h))(jnp.ones(2), 1e-30)
    assert bool(jnp.all(jnp.isnan(gradient)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Scaled:
    w: jax.Array
    scale: float = 2.0


def test_floats_in_modules_are_settings():
    loss = lambda module, x: module.scale * jnp.sum(module.w * x)  # noqa: E731
    given = Scaled(jnp.ones(3)), jnp.arange(3.0)
    found = numerical_grad(loss)(*given)
    np.testing.assert_allclose(found.w, jax.grad(loss)(*given).w, rtol=1e-6)
    assert found.scale.dtype == jax.dtypes.float0


@pytest.mark.parametrize("derivative", [numerical_gradient, numerical_diff])
def test_a_function_that_does_not_use_its_argument_is_warned_of(derivative):
    kept = jnp.array(3.0)
    with pytest.warns(RuntimeWarning, match="`f` does not use `x`, so its derivative is 0"):
        assert derivative(lambda x: kept**2, kept) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert derivative(lambda x: 0 * x, kept) == 0
