"""What jaxnn relies on about JAX and is promised nowhere: one fact a line.

Where a fact does not hold on a new release, `interpret.py` and `sources.py` in `jaxnn/numerical`
are the places to say so.
"""
# ruff: noqa: F401  the table is text, and uses what is imported

import gc
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.core import Tracer
from jax.experimental import io_callback, pallas
from jax.extend import core
from jax.extend.core import primitives as p
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType, PartitionSpec

from jaxnn._jax import VERSION
from jaxnn.numerical import sources
from jaxnn.numerical.interpret import (
    bind,
    called,
    derivative_rules,
    is_foreign,
    make_jaxpr,
    scan_sizes,
    shard_map_parts,
    trace_context,
)
from jaxnn.numerical.sources import rule_source

X = jnp.array([0.5, 1.5, 2.5])
LIKE = jax.ShapeDtypeStruct((), np.float32)
TAKE = lax.GatherDimensionNumbers((), (0,), (0,))
sin = lax.sin


@jax.custom_jvp
def by_jvp(x):
    return x**2


@jax.custom_vjp
def by_vjp(x):
    return x**2


by_jvp.defjvps(lambda t, y, x: 2 * x * t)
by_vjp.defvjp(lambda x: (x**2, x), lambda x, t: (2 * x * t,))
jitted, remat = jax.jit(sin), jax.checkpoint(sin)


def scan(x):
    return lax.scan(lambda c, y: (c + y * x, c), jnp.zeros(3), jnp.ones((4, 3)))[0]


def loop(x):
    return lax.while_loop(lambda c: c[0] < x[0], lambda c: c + x, jnp.zeros(3))


def branch(x):
    return lax.cond(x[0] > 0, sin, lax.cos, x)


def solve(x):
    scaled = lambda v: x * v  # noqa: E731
    return lax.custom_linear_solve(scaled, X, lambda _, b: b / x, lambda _, b: b / x)


def root(x):
    found = lambda f, guess: x**0.5  # noqa: E731
    return lax.custom_root(lambda y: y**2 - x, x, found, lambda g, y: y / g(jnp.ones_like(y)))


def mesh():
    return jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))


def mapped(x):
    spec = PartitionSpec("i")
    total = lambda x: lax.psum(x, "i")  # noqa: E731
    return jax.shard_map(total, mesh=mesh(), in_specs=(spec,), out_specs=PartitionSpec())(x)


def kernel(x):
    def double(read, write):
        write[...] = 2 * read[...]

    return pallas.pallas_call(double, jax.ShapeDtypeStruct((3,), np.float32), interpret=True)(x)


def program(f, x=X):
    return jax.make_jaxpr(f)(x)


def equation(f, x=X):
    return program(f, x).eqns[-1]


def params(f, x=X):
    return equation(f, x).params


def primitive(f, x=X):
    return equation(f, x).primitive


def inner(f):
    """The program that a call with a rule of its own stands for."""
    return params(f)["call_jaxpr"]


def again(f, x=X):
    """The function's last equation, bound to `x` alone."""
    return bind(equation(f), [x])[0]


def slope_again(f):
    return jax.grad(lambda x: jnp.sum(again(f, x)))(X)


def same(one, other):
    return bool(np.allclose(np.asarray(one), np.asarray(other)))


def within(x64, f, *args):
    with jax.enable_x64(x64):
        return f(*args)


def private(module, name):
    return getattr(sys.modules[f"jax._src.{module}"], name)


def forgets(transform):
    """Whether JAX lets go of a function, and of the data in it, once nobody else holds it."""
    data = np.ones(3)
    f = lambda x: jnp.sum(x * data)  # noqa: E731
    transform(f)(X)
    alive = weakref.ref(f)
    del f
    gc.collect()
    return alive() is None


def sees_a_trace():
    """Whether an array made inside a trace shows it, though no argument is traced."""
    seen = []
    jax.make_jaxpr(lambda: seen.append(isinstance(jnp.zeros(()), Tracer)))()
    return seen == [True]


def scaled(x):
    return x * np.ones(3)


def convolved(x):
    return lax.conv(x[None, None], x[None, None], (1,), "SAME")


def taken(x):
    return lax.gather(x, np.array([[0]]), TAKE, (1,))


def end_to_end(x):
    return jnp.concatenate([x, x])


def callback(x):
    return jax.pure_callback(abs, LIKE, x)


# Each is evaluated by itself: its text is the test's name.
FACTS = """
isinstance(program(sin), core.ClosedJaxpr)
program(sin).in_avals[0].shape == program(sin).out_avals[0].shape == (3,)
len(program(scaled).consts) == len(program(scaled).jaxpr.constvars)
isinstance(equation(lambda x: x * 2.0).invars[1], core.Literal)
equation(lambda x: x * 2.0).invars[1].val == 2.0
not program(sin).effects
program(lambda x: jax.debug.print("{}", x)).effects
hasattr(equation(sin).ctx.manager, "__enter__")
program(sin).in_avals[0].update(dtype=jnp.dtype("float16")).dtype == jnp.float16
program(sin).jaxpr.replace(eqns=[]).eqns == []
same(core.jaxpr_as_fun(program(sin))(X)[0], sin(X))
primitive(jitted) is p.jit_p and "jaxpr" in params(jitted)
same(core.jaxpr_as_fun(core.ClosedJaxpr(called(equation(remat)), ()))(X)[0], sin(X))
primitive(by_jvp) is p.custom_jvp_call_p and "call_jaxpr" in params(by_jvp)
primitive(by_vjp) is p.custom_vjp_call_p and "call_jaxpr" in params(by_vjp)
isinstance(p.call_p, core.Primitive) and isinstance(p.closed_call_p, core.Primitive)
p.custom_jvp_call_p.name == "custom_jvp_call" and p.custom_vjp_call_p.name == "custom_vjp_call"
inner(by_jvp).jaxpr.debug_info.func_src_info.startswith(f"by_jvp at {__file__}:")
inner(by_vjp).jaxpr.debug_info.func_src_info.startswith(f"by_vjp at {__file__}:")
called(equation(root)).out_avals[0].shape == (3,)
primitive(mapped) is private("shard_map", "shard_map_p")
shard_map_parts(equation(mapped)).options["axis_names"] == {"i"}
primitive(kernel) is private("pallas.pallas_call", "pallas_call_p")
same(again(sin), sin(X))
same(again(jitted), sin(X)) and same(slope_again(jitted), jnp.cos(X))
same(again(remat), sin(X)) and same(slope_again(remat), jnp.cos(X))
same(again(by_jvp), X**2) and same(slope_again(by_jvp), 2 * X)
same(again(by_vjp), X**2) and same(slope_again(by_vjp), 2 * X)
primitive(scan) is p.scan_p and len(params(scan)["jaxpr"].in_avals) == 3
scan_sizes(params(scan)) == (1, 1)
{"length", "reverse", "unroll"} <= set(params(scan))
primitive(loop) is p.while_p and {"cond_jaxpr", "body_jaxpr"} <= set(params(loop))
params(loop)["cond_nconsts"] == params(loop)["body_nconsts"] == 1
params(jax.vmap(loop), X[None])["cond_jaxpr"].out_avals[0].shape == (1,)
primitive(end_to_end) is p.concatenate_p and params(end_to_end)["dimension"] == 0
VERSION < (0, 10) or primitive(lambda x: jnp.stack([x, x])) is private("lax.lax", "stack_p")
VERSION < (0, 10) or params(lambda x: jnp.stack([x, x], 1))["axis"] == 1
params(lambda x: x.reshape(3, 1))["dimensions"] is None
params(lambda x: lax.reshape(x[None], (3,), (1, 0)))["dimensions"] == (1, 0)
primitive(branch) is p.cond_p and len(params(branch)["branches"]) == 2
primitive(solve) is p.linear_solve_p and hasattr(params(solve)["jaxprs"], "matvec")
hasattr(params(solve)["jaxprs"], "solve")
params(solve)["const_lengths"]._fields[:3] == ("matvec", "vecmat", "solve")
len(equation(solve).invars) == sum(params(solve)["const_lengths"]) + 1
is_foreign(primitive(callback, LIKE))
is_foreign(primitive(lambda x: io_callback(abs, LIKE, x), LIKE))
is_foreign(primitive(lambda x: jax.debug.callback(abs, x)))
is_foreign(primitive(lambda x: jax.debug.print("{}", x)))
is_foreign(primitive(lambda x: jax.ffi.ffi_call("none", LIKE)(x), LIKE))
is_foreign(primitive(kernel)) and not is_foreign(primitive(sin))
params(lambda x: jnp.sum(x, 0))["axes"] == (0,)
params(lambda x: jnp.max(x, 0))["axes"] == (0,)
params(lambda x: lax.argmax(x, 0, np.int32))["axes"] == (0,)
params(lambda x: lax.broadcast_in_dim(x, (2, 3), (1,)))["broadcast_dimensions"] == (1,)
params(lambda x: lax.broadcast_in_dim(x, (2, 3), (1,)))["shape"] == (2, 3)
params(lambda x: x.T, jnp.ones((2, 3)))["permutation"] == (1, 0)
params(lambda x: lax.reshape(x, (3, 1)))["dimensions"] is None
params(lambda x: lax.rev(x, (0,)))["dimensions"] == (0,)
{"start_indices", "limit_indices", "strides"} <= set(params(lambda x: x[0:2]))
params(lambda x: lax.dynamic_slice(x, [0], [2]))["slice_sizes"] == (2,)
primitive(lambda x: lax.split(x, (1, 2))) is lax.split_p
params(lambda x: lax.split(x, (1, 2)))["sizes"] == (1, 2)
params(lambda x: lax.concatenate([x, x], 0))["dimension"] == 0
params(lambda x: jnp.dot(x, x))["dimension_numbers"] == (((0,), (0,)), ((), ()))
{"dimension_numbers", "slice_sizes", "fill_value"} <= set(params(taken))
{"window_strides", "padding", "lhs_dilation", "rhs_dilation"} <= set(params(convolved))
{"dimension_numbers", "feature_group_count", "batch_group_count"} <= set(params(convolved))
equation(lambda x: lax.select_n(x > 0, x, -x)).invars[0].aval.dtype == bool
hasattr(batching.primitive_batchers, "__setitem__") and hasattr(ad.primitive_jvps, "__setitem__")
callable(ad.instantiate_zeros) and callable(mlir.lower_fun) and callable(mlir.register_lowering)
within(True, jnp.result_type, float) == jnp.float64
within(True, trace_context) != within(False, trace_context) and hash(trace_context())
hash(derivative_rules()) and all(map(len, derivative_rules()[:3]))
ad.primitive_jvps[p.sin_p] in derivative_rules()[0]
ad.primitive_transposes[p.mul_p] in derivative_rules()[2] + derivative_rules()[3]
within(False, jnp.result_type, float) == jnp.float32
within(True, program, lambda x: x.astype("float64")).out_avals[0].dtype == jnp.float64
jax.random.PRNGKey(0).dtype == jnp.uint32
jnp.issubdtype(jax.random.key(0).dtype, jax.dtypes.prng_key)
callable(mesh())
sees_a_trace()
forgets(jax.jit)
forgets(jax.grad)
forgets(jax.make_jaxpr)
""".strip().splitlines()


@pytest.mark.parametrize("fact", FACTS)
def test_what_is_relied_on_of_jax(fact):
    assert eval(fact)  # noqa: S307


def test_where_a_users_rule_stands_is_kept_with_its_call():
    """`sources.rule_source`"""
    forward, backward = lambda x: (x, None), lambda _, ct: (ct,)
    by_vjp, by_jvp = jax.custom_vjp(lambda x: x), jax.custom_jvp(lambda x: x)
    by_vjp.defvjp(forward, backward)
    by_jvp.defjvp(rule := lambda x, t: (x[0], t[0]))
    for f, of_rule in ((by_vjp, backward), (jax.vmap(by_vjp), backward), (by_jvp, rule)):
        (eqn,) = jax.make_jaxpr(f)(X).eqns
        place = f"{__file__}:{of_rule.__code__.co_firstlineno} (<lambda>)"
        assert rule_source(eqn) == place


def test_a_function_of_jaxs_with_a_rule_of_the_users_keeps_its_name(monkeypatch):
    """`sources.source`, also if JAX has traced the function in another line of the user's before"""
    tanh = jax.custom_vjp(lax.tanh)
    tanh.defvjp(lambda x: (lax.tanh(x), None), lambda _, ct: (ct,))
    (eqn,) = jax.make_jaxpr(tanh)(X).eqns
    monkeypatch.setattr(sources, "line_of", lambda eqn: "model.py:3 (loss)")
    assert sources.source(eqn)[0] == "tanh"


def test_numbers_in_a_program_keep_the_dtypes_of_its_trace():
    """`interpret.make_jaxpr`: JAX 0.7 would evaluate them in the dtypes of the evaluation."""
    counted = make_jaxpr(lambda x: lax.while_loop(lambda c: c[0] < 3, step, (0, x))[1])(X)
    step_again = core.jaxpr_as_fun(counted)
    with jax.enable_x64(True):
        assert same(step_again(X)[0], 8 * X)
        assert same(jax.jit(step_again)(X)[0], 8 * X)


def step(carry):
    return carry[0] + 1, carry[1] * 2.0
