"""Programs as researchers have them: any pytree, any of JAX's transformations, any output."""

import collections
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flat import fit
from gradient_cases import draw
from jax import lax
from jax._src import api_util, linear_util
from jax.experimental import checkify, pallas as pl
from jax.experimental.ode import odeint
from jax.extend.core import primitives
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads
from versions import since

from jaxnn import (
    check_gradient,
    descent_path,
    explain,
    gradient_descent,
    minimize,
    numerical_grad,
    numerical_jacobian,
)

pytestmark = pytest.mark.promotes

X = jnp.linspace(0.3, 1.7, 8)
MESH = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def apply(f, x):
    return f(x)


apply.defvjp(lambda f, x: (f(x), x), lambda f, x, g: (jax.vjp(f, x)[1](g)[0],))


def looped(x):
    return lax.while_loop(lambda c: c[0] < 5, lambda c: (c[0] + 1, 1.1 * jnp.sin(c[1])), (0, x))[1]


def doubled(ref, out):
    out[...] = 2 * jnp.sin(ref[...])


def kernel(x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(doubled, out_shape=shape, interpret=True)(x)


def with_a_ref(x):
    ref = jax.new_ref(x)
    ref[...] = 2 * ref[...]
    return jnp.sum(jnp.sin(ref[...]))


@jax.custom_vjp
def into_a_ref(x, ref):
    ref[...] = x
    return jnp.sum(x**2)


def into_a_ref_forward(x, ref):
    ref[...] = x
    return jnp.sum(x**2), x


into_a_ref.defvjp(into_a_ref_forward, lambda x, g: (2 * g * x, None))


def checked(x):
    checkify.check(jnp.all(x > 0), "negative")
    return jnp.sum(jnp.log(x))


def root(a):
    solve = lambda f, y: lax.fori_loop(0, 60, lambda _, y: y - f(y) / (1 + a * jnp.sin(y)), y)  # noqa: E731
    tangent = lambda g, y: y / g(jnp.ones_like(y))  # noqa: E731
    return lax.custom_root(lambda y: y - a * jnp.cos(y), jnp.float32(0.5), solve, tangent)


def solved(a):
    b = jnp.array([1.0, 2.0])
    return lax.custom_linear_solve(lambda y: a @ y, b, lambda _, b: jnp.linalg.solve(a, b)).sum()


def window(function, start, padding):
    return lambda x: lax.reduce_window(x, start, function, (3,), (1,), padding)


def on_mesh(x):
    spec = PartitionSpec("i")
    local = lambda x: lax.psum(jnp.sin(x) * x, "i")  # noqa: E731
    return jax.shard_map(local, mesh=MESH, in_specs=spec, out_specs=PartitionSpec())(x).sum()


class Bound:
    def square(self, x):
        return jnp.sum(x**2)


PROGRAMS = {
    "shard_map": on_mesh,
    "pmap": lambda x: jax.pmap(lambda x: jnp.sin(x) * x)(x[None]).sum(),
    "pmap and psum": lambda x: jax.pmap(lambda x: lax.psum(x**2, "i"), axis_name="i")(
        x[None]
    ).sum(),
    "pmap under checkpoint": jax.checkpoint(lambda x: jax.pmap(jnp.sin)(x[None]).sum()),
    "device_put in jit": jax.jit(
        lambda x: jax.device_put(jnp.sin(x), NamedSharding(MESH, PartitionSpec("i"))).sum()
    ),
    "custom_vjp with functions": lambda x: apply(jnp.sin, x).sum(),
    "custom_vjp in another": lambda x: apply(lambda y: apply(jnp.sin, y) * 2, x).sum(),
    "custom_vjp in scan": lambda x: lax.scan(lambda c, y: (apply(jnp.sin, c) + y, c), x[0], x)[0],
    "jvp inside": lambda x: jax.jvp(jnp.sin, (x,), (x,))[1].sum(),
    "checkpoint": jax.checkpoint(lambda x: jnp.sin(jnp.sin(x)).sum()),
    "partial": functools.partial(lambda n, x: jnp.sum(x**n), 3),
    "bound method": Bound().square,
    "donated": jax.jit(lambda x: jnp.sum(x**2), donate_argnums=0),
    "ref": with_a_ref,
    "ref in a rule": lambda x: into_a_ref(x, jax.new_ref(jnp.zeros(8))),
    "checkify": lambda x: checkify.checkify(checked)(x)[1],
    "custom_root": lambda x: root(x[2]),
    "padded window": lambda x: window(lax.add, 0.0, ((5, 5),))(x).sum(),
    "window of masks": lambda x: jnp.exp(window(lax.max, -jnp.inf, ((5, 5),))(x)).sum(),
}
FORWARD = {
    "while": lambda x: looped(x).sum(),
    "custom_linear_solve": lambda x: solved(x[:4].reshape(2, 2) + 3 * jnp.eye(2)),
    "window of a function": lambda x: window(lambda a, b: a + b + 0.1 * a * b, 0.0, "VALID")(
        x
    ).sum(),
    "Pallas kernel": lambda x: kernel(x).sum(),
}


LATER = {"pmap and psum": since(0, 8)}


@pytest.mark.parametrize("name", [pytest.param(n, marks=LATER.get(n, ())) for n in PROGRAMS])
def test_a_program_is_checked_as_it_is(name):
    point = X + 0  # a copy, as one of them donates
    report = check_gradient(PROGRAMS[name], point)
    assert report.verdict == "agrees" and report.leaves[0].digits > 9, str(report)
    assert not point.is_deleted()


# Of the window and the kernel JAX has no second derivative, in either mode.
@pytest.mark.parametrize(
    "name, order",
    [
        *[(name, 1) for name in FORWARD],
        *[pytest.param(name, 2, marks=pytest.mark.slow) for name in list(FORWARD)[:2]],
    ],
)
def test_where_there_is_no_reverse_mode_the_forward_mode_is_checked(name, order):
    report = check_gradient(FORWARD[name], X, order=order)
    assert report.verdict == "agrees", str(report)
    assert any("forward mode was checked" in note for note in report.notes)


def test_where_no_mode_goes_on_the_order_is_refused():
    y = jax.ShapeDtypeStruct((8,), jnp.float32)
    host = lambda x: jax.pure_callback(np.cos, y, x, vmap_method="sequential")  # noqa: E731
    sine = jax.custom_vjp(jnp.sin)
    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (host(x) * g,))
    f = lambda x: jnp.sum(sine(x))  # noqa: E731
    assert check_gradient(f, X).verdict == "agrees"
    with pytest.raises(TypeError, match="`order` must be 1 here, .* Got 2: .*callback"):
        check_gradient(f, X, order=2)


@pytest.mark.parametrize("use", [check_gradient, lambda f, x: numerical_grad(f)(x)])
def test_an_array_in_a_closure_goes_on_under_the_other_precision(use):
    """JAX keeps of each NumPy array that a living trace closes over which precision it had."""
    weights = np.linspace(0, 1, 8)
    f = lambda x: jnp.sum(x * weights) ** 2  # noqa: E731
    use(f, X)
    with jax.enable_x64(True):
        gradient = jax.grad(f)(jnp.ones(8))
    np.testing.assert_allclose(gradient, 2 * weights.sum() * weights)


def test_loops_under_vmap_and_strict_promotion():
    def f(x):
        one = lambda v: lax.while_loop(  # noqa: E731
            lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 1.5), (0, v)
        )[1]
        return jnp.sum(jax.vmap(one)(x))

    with jax.numpy_dtype_promotion("strict"):
        assert check_gradient(f, X, modes="fwd").verdict == "agrees"


@since(0, 9)
@pytest.mark.parametrize("seed", range(3))
def test_a_gradient_is_that_of_its_own_dtypes_values(seed):
    """Of eigen- and singular vectors float32 and float64 may choose different signs."""
    a = jnp.asarray(np.random.default_rng(seed).standard_normal((4, 4)), jnp.float32)
    for f in (lambda a: jnp.linalg.eigh(a + a.T)[1], lambda a: jnp.linalg.svd(a)[0]):
        report = check_gradient(f, a, cotangent="random")
        assert report.verdict == "agrees", str(report)


def test_a_constant_function_has_the_gradient_0():
    report = check_gradient(lambda x: jnp.sum(jnp.signbit(x).astype(x.dtype)), X)
    assert report.verdict == "agrees" and "does not depend" in report.leaves[0].hint


@since(0, 10)
@pytest.mark.parametrize("factor, verdict", [(1.0, "agrees"), (2.0, "differs")])
def test_a_call_of_jaxs_own_is_entered(factor, verdict):
    sine = jax.custom_jvp(jnp.sin)
    sine.defjvp(lambda xs, ts: (jnp.sin(xs[0]), factor * jnp.cos(xs[0]) * ts[0]))
    f = lambda x: jnp.sum(sine(x) * x)  # noqa: E731

    def call(x):
        where = api_util.debug_info("call", f, (x,), {})
        inner = linear_util.wrap_init(lambda x: [f(x)], debug_info=where)
        if jax.__version_info__ < (0, 12):
            return primitives.call_p.bind(x, subfuns=(inner,))[0]
        return primitives.call_p.bind(x, call_jaxpr=jax.make_jaxpr(lambda x: [f(x)])(x))[0]

    report = check_gradient(call, X)
    assert report.verdict == verdict and len(report.rules) == (verdict == "differs")


@since(0, 10)
@pytest.mark.parametrize("argnums", [0, 1])
def test_owens_t_is_right(argnums):
    args = jnp.float32(0.7), jnp.float32(0.5)
    assert check_gradient(jax.scipy.special.owens_t, *args, argnums=argnums).ok


def test_a_wrong_rule_is_found_in_forward_mode():
    wrong = jax.custom_jvp(lambda x: x**2)
    wrong.defjvp(lambda x, t: (x[0] ** 2, 3 * x[0] * t[0]))
    report = check_gradient(lambda x: looped(wrong(x)).sum(), X)
    assert report.verdict == "differs" and "= 1.5" in report.leaves[0].pattern


def test_a_mode_that_is_not_there_is_said_to_be_asked_for():
    only_back = jax.custom_vjp(jnp.sin)
    only_back.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (jnp.cos(x) * g,))
    with pytest.raises(TypeError, match="forward-mode") as raised:
        check_gradient(lambda x: jnp.sum(only_back(x)), X, modes=("fwd", "rev"))
    assert "`modes` asks for forward mode" in raised.value.__notes__[-1]


@pytest.mark.parametrize(
    "modes, order",
    [
        *[(("rev",), order) for order in (1, 3)],
        *[(modes, 1) for modes in (("fwd",), ("fwd", "rev"))],
        pytest.param(("rev",), 4, marks=pytest.mark.slow),
        *[pytest.param(("fwd", "rev"), order, marks=pytest.mark.slow) for order in (2, 3, 4)],
    ],
)
def test_what_check_grads_takes_is_taken(order, modes):
    f = lambda x, y: jnp.sin(x * y) / (1 + x**2)  # noqa: E731
    args = X[:3], X[3:6]
    if order <= 2:
        check_grads(f, args, order=order, modes=list(modes), atol=0.1, rtol=0.1)
    report = check_gradient(f, *args, argnums=(0, 1), order=order, modes=modes)
    assert report.ok and report.order == order


COMPLEX = {
    "fft": jnp.fft.fft,
    "inverse": jnp.linalg.inv,
    "singular values": lambda z: jnp.linalg.svd(z, compute_uv=False),
    "qr": lambda z: jnp.abs(jnp.linalg.qr(z)[1]),
    "slogdet": jnp.linalg.slogdet,
    "cholesky": lambda z: jnp.linalg.cholesky(z @ z.conj().T + jnp.eye(3)),
    "eigenvalues": lambda z: jnp.linalg.eigvalsh(z + z.conj().T),
}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_matrices_and_outputs_are_checked(name):
    z = draw(3, 3, 3) + 1j * draw(4, 3, 3) + 2 * jnp.eye(3)
    report = check_gradient(COMPLEX[name], z)
    assert report.verdict == "agrees" and report.leaves[0].shape == (3, 3), str(report)
    assert any("random projection" in note for note in report.notes)


def test_a_wrong_rule_of_a_complex_leaf_does_not_hide_beside_a_real_one():
    @jax.custom_vjp
    def square(z):
        return jnp.sum(jnp.abs(z) ** 2)

    square.defvjp(lambda z: (square(z), z), lambda z, g: (7 * g * z.conj(),))
    point = {"x": X, "z": draw(1, 2) + 1j * draw(2, 2)}
    report = check_gradient(lambda p: jnp.sum(p["x"] ** 2) + square(p["z"]), point)
    assert {leaf.path: leaf.verdict for leaf in report.leaves} == {
        "[0]['x']": "agrees",
        "[0]['z']": "differs",
    }


def test_derivatives_by_complex_entries_follow_jaxs_convention():
    z = draw(1, 3) + 1j * draw(2, 3)
    f = lambda z: jnp.sum(jnp.abs(z) ** 2) + jnp.real(z[0] * z[1] ** 2)  # noqa: E731
    np.testing.assert_allclose(numerical_grad(f)(z), jax.grad(f)(z), rtol=1e-5)
    g = lambda z: jnp.abs(z) ** 2  # noqa: E731
    np.testing.assert_allclose(numerical_jacobian(g)(z), jax.jacrev(g)(z), rtol=1e-5, atol=1e-5)


MIXED = {"x": X, "f": jnp.sin, "n": 2, "name": "sine", "key": jax.random.key(0), "none": None}


def mixed(p):
    noise = jax.random.uniform(p["key"], p["x"].shape)
    return jnp.sum(p["f"](p["x"] + noise) ** p["n"])


def test_what_is_no_number_is_held_fixed_and_said_to_be():
    report = check_gradient(mixed, MIXED)
    assert report.ok and len(report.leaves) == 1
    (note,) = report.notes
    for what in ("['f'] (function)", "['key'] (key<fry>)", "['n'] (int)", "['name'] (str)"):
        assert what in note


def test_it_is_held_fixed_by_derivatives_and_descent_alike():
    import optax

    found = numerical_grad(mixed)(MIXED)
    right = jax.grad(lambda x: mixed(MIXED | {"x": x}))(X)
    np.testing.assert_allclose(found["x"], right, rtol=1e-5, atol=1e-6)
    assert found["f"] is None and found["name"] is None
    assert found["n"].dtype == found["key"].dtype == jax.dtypes.float0
    end = gradient_descent(mixed, MIXED, lr=0.1, step_num=30)
    assert end["f"] is jnp.sin and end["n"] == 2 and mixed(end) < mixed(MIXED)
    assert descent_path(mixed, MIXED, 0.1, 3).points["x"].shape == (4, 8)
    assert minimize(mixed, MIXED, optax.sgd(0.1), max_steps=5).x["name"] == "sine"


def test_complex_leaves_descend():
    z = draw(1, 3) + 1j * draw(2, 3)
    end = gradient_descent(lambda z: jnp.sum(jnp.abs(z - 1j) ** 2), z, lr=0.1, step_num=200)
    np.testing.assert_allclose(end, jnp.full(3, 1j), atol=1e-5)


@pytest.mark.parametrize(
    "where", [lambda leaf: leaf.ndim == 1, {"w": False, "b": True}], ids=["function", "tree"]
)
def test_where_chooses_leaves(where):
    point = {"w": draw(0, 3, 2), "b": draw(1, 2)}
    f = lambda p: jnp.sum(jnp.tanh(p["w"] + p["b"]))  # noqa: E731
    report = check_gradient(f, point, where=where)
    assert [leaf.path for leaf in report.leaves] == ["[0]['b']"]
    assert any("treated as constant: [0]['w'] (float32)" in note for note in report.notes)


def test_a_gradient_may_leave_out_what_is_held_fixed():
    f = lambda p: jnp.sum(p["x"] ** p["n"])  # noqa: E731
    point = {"x": X, "n": 3}
    right = lambda p: {"x": 3 * p["x"] ** 2, "n": None}  # noqa: E731
    assert check_gradient(f, point, gradient=right).ok
    assert check_gradient(f, point, gradient=lambda p: {"x": 3 * p["x"] ** 2}).ok
    assert not check_gradient(f, point, gradient=lambda p: {"x": p["x"] ** 2}).ok


def test_keyword_arguments_are_held_fixed():
    f = lambda x, *, n, scale: scale * jnp.sum(x**n)  # noqa: E731
    assert check_gradient(f, X, kwargs={"n": 3, "scale": 0.5}).ok


def test_printing_happens_once_and_costs_no_digits(capfd):
    def f(x):
        jax.debug.print("seen {}", x[0])
        return jnp.sum(jnp.sin(x))

    report = check_gradient(f, X)
    jax.effects_barrier()
    assert capfd.readouterr().out.count("seen") == 1
    assert report.ok and report.leaves[0].digits > 9


def test_what_is_printed_in_a_loop_is_not_printed_for_each_step_of_explain(capfd):
    def f(x):
        def body(carry, y):
            jax.debug.print("seen {}", y)
            return carry + jnp.sin(y), None

        jax.debug.print("seen {}", x)
        return jax.lax.scan(body, 0.0, x)[0]

    assert explain(f, X).ok
    jax.effects_barrier()
    assert capfd.readouterr().out.count("seen") <= 2 * X.size


def test_a_callback_that_is_evaluated_in_float32_is_named():
    like = jax.ShapeDtypeStruct((), jnp.float32)
    f = lambda x: jax.pure_callback(np.sin, like, x)  # noqa: E731
    report = check_gradient(f, jnp.float32(0.7), gradient=jnp.cos)
    (note,) = report.notes
    assert report.ok and note == "not evaluated in float64: `pure_callback` in float32"


def test_a_callback_that_is_not_taken_costs_no_digits():
    like = jax.ShapeDtypeStruct((), jnp.float32)

    def f(x):
        rare = lambda x: jax.pure_callback(lambda x: x, like, x)  # noqa: E731
        return lax.cond(x > 1e6, lambda x: lax.stop_gradient(rare(x)), jnp.sin, x)

    report = check_gradient(f, jnp.float32(0.7), gradient=jnp.cos)
    assert report.ok and report.leaves[0].bound < 1e-8


def test_of_an_error_that_only_float64_raises_this_is_said():
    def refuse(many):
        assert not many, "more than 1"
        return many

    def f(x):
        many = jax.pure_callback(refuse, jax.ShapeDtypeStruct((), bool), 1 + 1e-9 * x > 1)
        return jnp.where(many, 0, x**2)

    with pytest.raises(jax.errors.JaxRuntimeError, match="more than 1") as caught:
        check_gradient(f, jnp.float32(0.7))
    said = "jaxnn: the function raised this in float64, not in its own dtypes"
    assert said in caught.value.__notes__


@pytest.mark.parametrize("seed", [2, 6])
def test_bits_that_are_taken_in_float32_do_not_look_flat(seed):
    # Nearby powers of two make the coarse steps useless; the finest move no bit.
    x = jnp.asarray(0.3 * np.random.default_rng(seed).normal(size=10), jnp.float32)
    report = check_gradient(lambda x: jnp.frexp(x)[0], x, cotangent="random")
    assert report.verdict == "agrees"
    assert report.notes == ("not evaluated in float64: `bitcast_convert_type` in float32",)


@pytest.mark.parametrize("point", [-100.0, -90.0, -120.0])
def test_what_underflows_is_the_dtypes_0(point):
    report = check_gradient(jnp.exp, jnp.float32(point))
    assert report.verdict == "agrees"
    if point != -90.0:
        assert "become 0" in report.leaves[0].hint or not math.exp(point)


def test_the_slope_of_nothing_agrees_with_none():
    report = check_gradient(jnp.linalg.det, jnp.diag(jnp.array([1.0, 2, 0, 0])))
    assert report.verdict == "agrees" and "smallest slope detectable" in report.leaves[0].hint


@pytest.mark.parametrize("f", [jax.nn.mish, jax.nn.softplus, jnp.exp])
@pytest.mark.parametrize("x", [math.inf, -math.inf, math.nan])
def test_at_infinity_nothing_is_accused_and_nothing_vouched_for(f, x):
    report = check_gradient(f, jnp.float32(x))
    assert report.verdict == "unresolved" and "no step can be taken" in report.leaves[0].hint


def test_entries_beside_one_at_infinity_are_still_checked():
    f = lambda x: jnp.sum(jax.nn.sigmoid(x))  # noqa: E731
    point = jnp.array([jnp.inf, 0.5, -1.0])
    assert check_gradient(f, point).verdict == "unresolved"
    wrong = lambda x: jax.grad(f)(x).at[1].multiply(2.0)  # noqa: E731
    report = check_gradient(f, point, gradient=wrong)
    assert report.verdict == "differs" and report.leaves[0].entries[0].index == (1,)


def test_masked_outputs_are_left_out_of_the_projection():
    report = check_gradient(lambda x: jnp.where(x > 1, x**2, -jnp.inf), X)
    assert report.verdict == "agrees"


@jax.custom_jvp
def gamma_by_rejection(a):
    """A draw from a gamma distribution, by the method of Marsaglia and Tsang (2000)."""
    d = a - 1 / 3

    def again(state):
        key, normal, uniform = jax.random.split(state[0], 3)
        x, u = jax.random.normal(normal), jax.random.uniform(uniform)
        v = (1 + x / jnp.sqrt(9 * d)) ** 3
        return key, d * v, (v > 0) & (jnp.log(u) < x**2 / 2 + d - d * v + d * jnp.log(abs(v)))

    start = jax.random.key(0), jnp.zeros_like(a), jnp.bool_(False)
    return jax.lax.while_loop(lambda state: ~state[2], again, start)[1]


@gamma_by_rejection.defjvp
def _gamma_at_its_quantile(primals, tangents):
    y = gamma_by_rejection(*primals)
    return y, jax.lax.random_gamma_grad(*primals, y) * tangents[0]


@pytest.mark.parametrize(
    "draw",
    [lambda a: jax.random.gamma(jax.random.key(0), a), jax.vmap(gamma_by_rejection)],
    ids=["of JAX", "with a rule"],
)
def test_an_implicit_gradient_is_neither_accused_nor_vouched_for(draw):
    report = check_gradient(lambda a: draw(a).sum(), jnp.abs(X) + 1)
    assert report.verdict == "unresolved" and "implicit" in report.leaves[0].hint
    assert not report.rules


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_draw_excuses_what_reaches_it_alone_and_is_not_accused_for_a_wrong_rule(by_hand):
    draw = jax.vmap(gamma_by_rejection)
    if by_hand:
        draw = lambda a: jax.random.gamma(jax.random.key(0), a)  # noqa: E731
    half = jax.custom_jvp(lambda x: x**2)
    half.defjvp(lambda x, t: (half(*x), x[0] * t[0]))
    f = lambda a, b: draw(a).sum() + jnp.sum(half(b))  # noqa: E731
    gradient = jax.grad(f, (0, 1)) if by_hand else None
    report = check_gradient(f, jnp.abs(X) + 1, X, argnums=(0, 1), gradient=gradient)
    assert {leaf.path: leaf.verdict for leaf in report.leaves} == {
        "[0]": "unresolved",
        "[1]": "differs",
    }


def test_the_tolerance_of_a_solver_is_not_charged_to_a_gradient_by_hand():
    """It is that of the exact root, and the values that of a loose one."""

    def root(a):
        far = lambda y: jnp.abs(y * y - a) > 0.1  # noqa: E731
        return jax.lax.while_loop(far, lambda y: (y + a / y) / 2, a)

    for factor, verdict in ((0.5, "agrees"), (0.6, "differs")):
        by_hand = lambda a: factor / jnp.sqrt(a)  # noqa: B023, E731
        assert check_gradient(root, jnp.float32(2), gradient=by_hand).verdict == verdict


@pytest.mark.slow
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-4, 1e-5, 1e-8])
def test_adaptive_steps_are_not_charged_to_the_gradient(tolerance, x64):
    with jax.enable_x64(x64):
        slope = lambda y, t, k: -k * y * (1 + jnp.sin(t))  # noqa: E731
        times, start = jnp.linspace(0, 1.0, 4), jnp.array([1.0, 2.0])
        f = lambda k: odeint(slope, start, times, k, rtol=tolerance, atol=tolerance).sum()  # noqa: E731
        report = check_gradient(f, jnp.asarray(0.7))
    assert report.verdict in ("agrees", "unresolved"), str(report)
    assert report.leaves[0].digits > 3


def test_a_sharded_leaf_is_checked_where_it_is():
    sharded = jax.device_put(X, NamedSharding(MESH, PartitionSpec("i")))
    assert check_gradient(lambda x: jnp.sum(jnp.sin(x)), sharded).ok
    explicit = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Explicit,))
    placed = jax.device_put(X, NamedSharding(explicit, PartitionSpec("i")))
    assert check_gradient(lambda x: jnp.sum(jnp.sin(x)), placed).ok


def test_outputs_may_hold_plain_numbers():
    report = check_gradient(lambda x: (jnp.sum(x**2), 1, 2.0), jnp.ones(3))
    assert report.verdict == "agrees"


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """As Equinox has them: its arrays are what it learns, its numbers are settings."""

    w: jax.Array
    slope: float = 0.01
    rate: complex = 1.0


def leaky(module, x):
    y = x @ module.w
    return jnp.sum(jnp.where(y > 0, y, module.slope * y) ** 2) * jnp.real(module.rate)


def test_the_numbers_of_a_module_that_has_arrays_are_settings():
    module, x = Module(jnp.array([1.0, -2.0])), jnp.eye(2)
    report = check_gradient(leaky, module, x, argnums=0)
    assert report.ok and [leaf.path for leaf in report.leaves] == ["[0].w"]
    assert "treated as constant: [0].slope (float), [0].rate (float)" in report.notes
    gradient = numerical_grad(leaky)(module, x)
    np.testing.assert_allclose(gradient.w, jax.grad(leaky)(module, x).w, rtol=1e-6)
    result = fit(
        lambda m, x: leaky(m, x), module, (x,), optax.sgd(0.1), key=jax.random.key(0), epochs=3
    )
    assert result.params.slope == 0.01 and type(result.params.slope) is float
    assert not np.array_equal(result.params.w, module.w)


def test_numbers_that_are_no_settings_are_differentiated():
    # In containers, in a module without arrays, and where they are asked for.
    assert check_gradient(lambda p: jnp.sum(p["w"]) * p["b"], {"w": jnp.ones(2), "b": 2.0}).ok
    both = numerical_grad(lambda p: jnp.sum(p["w"]) * p["b"])({"w": jnp.ones(2), "b": 2.0})
    assert float(both["b"]) == pytest.approx(2.0)
    report = check_gradient(lambda m: m.w**2 * m.slope, Module(3.0, 2.0, 0.0), argnums=0)
    assert {leaf.path for leaf in report.leaves} == {"[0].w", "[0].slope", "[0].rate"}
    module, everything = Module(jnp.array([1.0, -2.0])), lambda leaf: True
    report = check_gradient(leaky, module, jnp.eye(2), argnums=0, where=everything)
    assert "[0].slope" in [leaf.path for leaf in report.leaves]


Pair = collections.namedtuple("Pair", "square itself")


def test_a_rule_may_return_a_tuple_where_its_function_returns_a_named_one():
    @jax.custom_vjp
    def both(x):
        return Pair(x**2, x)

    both.defvjp(lambda x: ((x**2, x), x), lambda x, g: (2 * x * g[0] + g[1],))
    assert check_gradient(lambda x: jnp.sum(both(x)[0]), X).verdict == "agrees"


def test_a_rule_may_close_over_a_key():
    def noisy(x, key):
        @functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
        def wave(x, factor):
            return factor * jnp.sin(x)

        @wave.defjvp
        def _(factor, x, dx):
            noise = 0 * jax.random.normal(key, ())
            return wave(*x, factor), (factor * jnp.cos(x[0]) + noise) * dx[0]

        return wave(x, 3)

    keys = lambda: jax.random.split(jax.random.key(0))  # noqa: E731
    assert check_gradient(lambda x: jnp.sum(noisy(x, keys()[0])), X).verdict == "agrees"


def test_what_a_callback_raises_at_a_point_nearby_is_not_logged(caplog):
    def host(x):
        if x > 1.01:
            raise ValueError("too far")
        return x**2

    @jax.custom_jvp
    def square(x):
        return jax.pure_callback(host, jax.ShapeDtypeStruct((), x.dtype), x)

    square.defjvp(lambda x, dx: (square(*x), 2 * x[0] * dx[0]))
    report = check_gradient(lambda x: 3 * square(x), jnp.float32(1.0))
    assert report.verdict == "agrees" and not caplog.records


def test_a_gradient_at_infinity_is_shown_as_it_is():
    (leaf,) = check_gradient(jax.nn.logsumexp, jnp.full(3, -jnp.inf)).leaves
    assert leaf.verdict == "unresolved" and math.isnan(leaf.autodiff)


def test_slopes_that_are_nan_are_not_told_as_two():
    report = check_gradient(lambda x: jnp.sum(jnp.log(x)), jnp.array([-1.0, 2.0]))
    assert "from nan" not in str(report)
