"""`vectors.npz` is what its generator makes: inputs drawn again, codes and scales by rules in numpy."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.numerics.make_vectors import FILE, FORMATS, inputs, make

VECTORS = np.load(FILE)
STORED = dict(zip(VECTORS["kinds"].tolist(), VECTORS["x"], strict=True))


def bits(x: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(x).view(np.uint8)


def test_the_inputs_are_drawn_again() -> None:
    drawn = inputs()
    assert [*drawn] == [*STORED]
    for kind, x in drawn.items():
        if torch.backends.cpu.get_cpu_capability() == "DEFAULT":  # normal numbers off by a rounding
            np.testing.assert_allclose(x, STORED[kind], rtol=1e-5)
        else:
            assert np.array_equal(bits(x), bits(STORED[kind])), kind


MADE = make(STORED)


def test_the_file_holds_these_arrays_and_no_others() -> None:
    assert sorted(MADE) == sorted(VECTORS.files)
    assert len(FORMATS) == 22


@pytest.mark.parametrize("name", [name for name in VECTORS.files if name != "kinds"])
def test_the_rules_give_the_array_again(name: str) -> None:
    made, stored = MADE[name], VECTORS[name]
    assert (made.shape, made.dtype) == (stored.shape, stored.dtype)
    assert np.array_equal(bits(made), bits(stored))
