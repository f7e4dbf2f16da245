"""Packing arrays into one: nothing changes on the way, and what is no packed step is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tandem.wire import pack, unpack

DTYPES = st.sampled_from([np.int32, np.int64, np.float32, np.uint8])
SOME = st.dictionaries(st.text(max_size=8), DTYPES.flatmap(lambda t: arrays(t, array_shapes(min_side=0, max_side=5))))


@given(SOME)
def test_what_is_packed_comes_back(some: dict[str, np.ndarray]) -> None:
    again = unpack(pack(some))
    assert list(again) == list(some)
    for name, array in some.items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array)


@given(st.binary(max_size=64))
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="a packed step cannot be read"):
        unpack(np.frombuffer(data, np.uint8))


def test_a_truncated_step_is_refused() -> None:
    packed = pack({"tokens": np.arange(100)})
    with pytest.raises(ValueError, match="a packed step cannot be read"):
        unpack(packed[:-8])
