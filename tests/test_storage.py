"""What is stored comes back to the bit, in the shortest of three ways."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruninglab import Masks
from pruninglab.storage import load_sparse, pack, save_sparse, unpack

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
]


def from_bits(seed: int, density: float, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Random bits as numbers: NaN, infinities, −0 and denormals among them; zeros but for a share."""
    rng = np.random.default_rng(seed)
    count, size = int(np.prod(shape)), torch.empty((), dtype=dtype).element_size()
    if dtype == torch.bool:
        raw = rng.integers(0, 2, (count, 1), dtype=np.uint8)
    else:
        raw = rng.integers(0, 256, (count, size), dtype=np.uint8)
        negative_zero = rng.random(count) < 0.1
        raw[negative_zero] = [0] * (size - 1) + [0x80]
    raw[rng.random(count) >= density] = 0
    return torch.from_numpy(raw.reshape(-1)).view(dtype).view(shape)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.reshape(-1).view(torch.uint8).tolist() == b.reshape(-1).view(torch.uint8).tolist()


shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
tensors = st.builds(
    from_bits, st.integers(0, 2**32), st.sampled_from([0.0, 0.02, 0.3, 1.0]), shapes, st.sampled_from(DTYPES)
)


@settings(deadline=None)
@given(tensors)
def test_packing_and_unpacking_changes_no_bit(tensor):
    assert same_bits(unpack(pack(tensor)), tensor)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.text("ab/.", min_size=1, max_size=4), tensors, max_size=4))
def test_a_state_dict_round_trip_through_a_file(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("storage") / "model.safetensors"
    save_sparse(state, path)
    found = load_sparse(path)
    assert found.keys() == state.keys()
    assert all(same_bits(found[name], state[name]) for name in state)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (9, 9)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scalars_and_empty_tensors(shape, dtype):
    for fill in (0, 1):
        tensor = torch.full(shape, fill, dtype=dtype)
        assert same_bits(unpack(pack(tensor)), tensor)


def test_views_that_are_not_contiguous():
    tensor = torch.randn(6, 8).mul_(torch.rand(6, 8) < 0.2).T[::2]
    assert torch.equal(unpack(pack(tensor)), tensor)


def test_more_entries_than_a_short_index_can_number():
    for size in (1 << 16, (1 << 16) + 1):
        tensor = torch.zeros(size)
        tensor[[0, 1, -1]] = torch.tensor([1.0, 2.0, 3.0])
        parts = pack(tensor)
        assert parts["index"].dtype == (torch.uint16 if size == 1 << 16 else torch.int32)
        assert torch.equal(unpack(parts), tensor)


@pytest.mark.parametrize(
    ("kept", "way"),
    [(1000, "dense"), (975, "dense"), (300, "bitmap"), (80, "bitmap"), (30, "index"), (1, "index")],
)
def test_the_shortest_way_is_chosen(kept, way):
    """1000 floats: 4000 bytes whole; 125 + 4 for each kept + 8 as a bitmap; 6 for each kept + 8 by position."""
    tensor = torch.zeros(1000)
    tensor[torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:kept]] = 1
    expected = {"dense": 4000, "bitmap": 125 + 4 * kept + 8, "index": 6 * kept + 8}
    parts = pack(tensor)
    assert way in parts
    assert sum(part.nbytes for part in parts.values()) == expected[way] == min(expected.values())


def test_a_missing_or_broken_file(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="no file"):
        load_sparse(path)
    save_sparse({"w": torch.randn(50)}, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_sparse(path)


def test_a_file_of_something_else_is_refused_and_so_is_what_is_no_tensor(tmp_path):
    path = tmp_path / "masks.safetensors"
    Masks({"fc.weight": torch.ones(2, 2, dtype=torch.bool)}).save(path)
    with pytest.raises(ValueError, match="not one that save_sparse wrote"):
        load_sparse(path)
    with pytest.raises(TypeError, match="tensors only, but 'steps' is int"):
        save_sparse({"w": torch.ones(2), "steps": 3}, path)
    assert Masks.load(path).total() == 4, "what was there stays"
