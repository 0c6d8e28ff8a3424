"""The scripts of `examples/steps`: each takes the steps of a loop by hand, to the bit."""

import importlib.util
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import UNOPTIMISED
from versions import since

import jaxnn
from jaxnn.data import shuffled

pytestmark = pytest.mark.promotes  # optax does

KEY = jax.random.key(0)
FOLDER = pathlib.Path(__file__).parents[1] / "examples" / "steps"
OWN = "dp_sgd gan kronecker lookahead loss_scaling target_network without_bad_examples".split()


def script(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_hand(step, state, data, epochs, key, batch_size):
    """The loop that everybody writes, compiled in an epoch's scan."""
    count = len(jax.tree.leaves(data)[0])

    @jax.jit
    def epoch(state, epoch_key):
        rows = shuffled(epoch_key, count).reshape(-1, batch_size)

        def one(state, given):
            i, rows = given
            batch = jax.tree.map(lambda a: a[rows], data)
            return step(state, batch, jax.random.fold_in(epoch_key, i))

        return jax.lax.scan(one, state, (jnp.arange(len(rows)), rows))

    records = []
    for number in range(1, epochs + 1):
        state, record = epoch(state, jax.random.fold_in(key, number))
        records.append(record["loss"])
    return state, np.concatenate(records)


def test_each_script_is_tried_here():
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == sorted([*OWN, "sam"])


def compare(name):
    given = script(name)
    data = getattr(given, "DATA", None) or (given.RING,)
    result = jaxnn.train(given.step, given.STATE, data, epochs=2, **given.RUN)
    state, losses = by_hand(given.step, given.STATE, data, 2, **given.RUN)
    np.testing.assert_array_equal(result.history.step_loss, losses)
    bits = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    same = lambda a, b: np.testing.assert_array_equal(bits(a), bits(b))  # noqa: E731
    jax.tree.map(same, result.state, state)


@since(0, 8)
def test_the_steps_are_those_of_a_loop_by_hand(compiled_as_usual):
    done = compiled_as_usual(__file__, UNOPTIMISED)
    assert done.returncode == 0 and done.stdout.split() == OWN, done.stderr


def test_what_the_scripts_are_for():
    """Overflow halves the scale and leaves the step out; bad examples are counted."""
    given = script("loss_scaling")
    state = (*given.STATE[:2], jnp.float32(2**30), jnp.int32(0))
    (params, _, scale, _), _ = jax.jit(given.step)(state, [x[:50] for x in given.DATA], KEY)
    assert scale == 2**29 and (params["W1"] == given.PARAMS["W1"]).all()
    given = script("without_bad_examples")
    record = jaxnn.train(given.step, given.STATE, given.DATA, epochs=1, **given.RUN).history
    assert record.aux["left out"].sum() == 15 and np.isfinite(record.step_loss).all()


if __name__ == "__main__":
    warnings.simplefilter("error")
    for name in OWN:
        compare(name)
        print(name)
