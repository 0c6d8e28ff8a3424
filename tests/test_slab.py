"""The laws of slabs: what stands for an array that changed at one place."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings, strategies as st

from jaxnn.numerical.slab import Slab, any_index, common, cut, dense, fit, unravel, write

SHAPES = [(), (3,), (2, 3), (1, 4), (2, 1, 3)]
few = settings(max_examples=50)


def numbers(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).integers(-9, 9, shape), jnp.float32)


@st.composite
def slabs(draw):
    """A slab, and the array that it stands for."""
    shape = draw(st.sampled_from(SHAPES))
    places = [draw(st.none() | st.integers(0, n - 1)) for n in shape]
    index = tuple(None if i is None else jnp.int32(i) for i in places)
    base, whole = numbers(shape, 0), np.array(numbers(shape, 0))
    part = [1 if i is not None else n for i, n in zip(places, shape, strict=True)]
    new = numbers(part, draw(st.integers(1, 9)))
    whole[tuple(slice(None) if i is None else slice(i, i + 1) for i in places)] = new
    return Slab.of(base, index, new), whole


@few
@given(slabs())
def test_a_slab_stands_for_its_base_with_the_new_values_written_in(pair):
    slab, whole = pair
    np.testing.assert_array_equal(dense(slab), whole)
    assert not any(
        n == 1 and i is not None for n, i in zip(slab.base.shape, slab.index, strict=True)
    )


@few
@given(slabs(), st.data())
def test_to_fit_a_slab_is_to_cut_the_array(pair, data):
    slab, whole = pair
    index = tuple(data.draw(st.sampled_from([None, i])) for i in slab.index)
    np.testing.assert_array_equal(fit(slab, index), cut(jnp.asarray(whole), index))


@few
@given(slabs())
def test_base_and_difference_make_the_array(pair):
    slab, whole = pair
    np.testing.assert_array_equal(slab.base + dense(slab.difference), whole)


@few
@given(slabs())
def test_what_is_written_is_cut_out_again(pair):
    slab, whole = pair
    if any_index(slab.index):
        np.testing.assert_array_equal(
            cut(write(slab.base, slab.index, slab.new), slab.index), slab.new
        )
    unchanged = write(slab.base, slab.index, cut(slab.base, slab.index))
    np.testing.assert_array_equal(unchanged, slab.base)


@few
@given(slabs())
def test_slabs_share_an_index_only_where_it_is_the_very_same(pair):
    slab, _ = pair
    twin = slab._replace(index=tuple(None if i is None else i + 0 for i in slab.index))
    assert common([slab, slab]) == slab.index
    assert not any_index(common([slab, twin]))


@few
@given(st.sampled_from([(), (3,), (2, 3), (4, 1, 5)]), st.data())
def test_a_flat_index_is_unravelled_as_numpy_does(shape, data):
    flat = data.draw(st.integers(0, int(np.prod(shape)) - 1))
    assert tuple(map(int, unravel(flat, shape))) == tuple(map(int, np.unravel_index(flat, shape)))
