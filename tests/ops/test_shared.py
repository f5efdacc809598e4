"""A part quantized with the range of the whole is that part of the whole quantized, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from qgraph import ops
from qgraph.errors import GraphError
from qgraph.formats import parse_format
from qgraph.numerics import REFERENCE, fake_quant
from qgraph.ops.shared import know_group

NVFP4 = "e2m1/1x16/e4m3/fp32"
# Format, axis that is split, whether each row's range is shared.
CASES = [
    (NVFP4, 0, False), (NVFP4, 1, False), ("e2m1/16x16/e4m3/fp32", 0, False),
    ("e2m1/1x16/e4m3:4over6/fp32", 1, False), ("e4m3/tensor/fp32", 1, False),
    ("int8/tensor/fp32", 0, False), ("int8/row/fp32", 1, True), ("int8/column/fp32", 0, True),
]  # fmt: skip


@pytest.fixture
def group() -> Iterator[str]:
    """A group of this process alone."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield know_group(dist.group.WORLD)
    dist.destroy_process_group()


@pytest.mark.parametrize(("text", "axis", "rows"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_with_the_range_of_the_whole_make_the_whole(
    text: str, axis: int, rows: bool, dtype: torch.dtype, group: str
) -> None:
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[3, 70] = 40.0  # the largest magnitude is in the second part
    whole = ops.fake_quant(x, text, -1)
    ranges = ops.shared_amax(x, text, -1, rows, group)
    differs = False
    for part, want in zip(x.chunk(2, axis), whole.chunk(2, axis), strict=True):
        assert torch.equal(ops.fake_quant(part, text, -1, amax=ranges), want)
        exact = fake_quant(part, parse_format(text), -1, None, None, REFERENCE, ranges)
        assert torch.equal(exact, want)
        differs |= not torch.equal(ops.fake_quant(part, text, -1), want)
    assert differs  # alone, a part has another range


def test_nan_is_the_largest_of_all(group: str) -> None:
    x = torch.tensor([[1.0, -3.0], [2.0, 0.5]])
    assert ops.shared_amax(x, NVFP4, -1, False, group) == 3
    x[0, 0] = -torch.inf
    assert ops.shared_amax(x, NVFP4, -1, False, group) == torch.inf
    x[1, 1] = -torch.nan
    assert ops.shared_amax(x, NVFP4, -1, False, group).isnan()
    assert ops.shared_amax(x[:0], NVFP4, -1, False, group) == 0


def test_a_group_nobody_knows_is_told() -> None:
    with pytest.raises(GraphError, match="in no group of processes called 'nobody'"):
        ops.shared_amax(torch.ones(2, 2), NVFP4, -1, False, "nobody")


def test_streams_are_apart_and_the_first_is_the_seed() -> None:
    seed = torch.tensor([4_000_000_000])
    found = [int(ops.stream(seed, number)) for number in range(1000)]
    assert found[0] == 4_000_000_000
    assert len(set(found)) == 1000
    assert all(0 <= value < 2**32 for value in found)
