"""The random bits: Philox4x32-10 by its published vectors, and how bytes are dealt to elements."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qgraph.numerics import philox, random_bits, random_signs
from qgraph.numerics.noise import philox_words
from tests.numerics.data import law

CPU = torch.device("cpu")
MASK = 2**32 - 1

# Counter, key, result: the lines `philox4x32 10` of Random123's kat_vectors.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def by_the_paper(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x32-10 with Python's integers, written from the paper (Salmon et al. 2011, section 3.4)."""
    r0, l0, r1, l1 = counter
    k0, k1 = key
    for _ in range(10):
        high1, low1 = divmod(0xCD9E8D57 * r1, 2**32)
        high0, low0 = divmod(0xD2511F53 * r0, 2**32)
        r0, l0, r1, l1 = high1 ^ l0 ^ k0, low1, high0 ^ l1 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return r0, l0, r1, l1


@pytest.mark.parametrize(("counter", "key", "want"), KNOWN_ANSWERS)
def test_the_python_version_gives_the_published_vectors(
    counter: tuple[int, ...], key: tuple[int, ...], want: tuple[int, ...]
) -> None:
    assert by_the_paper(counter, key) == want


def test_counter_zero_and_key_zero_give_the_published_vector() -> None:
    assert tuple(philox(torch.tensor(0), 0, 0).tolist()) == KNOWN_ANSWERS[0][2]


@law
@given(st.integers(0, 2**63 - 1), st.integers(0, MASK), st.integers(0, MASK))
def test_every_counter_and_key_agrees_with_the_python_version(
    counter: int, seed: int, site: int
) -> None:
    want = by_the_paper((counter & MASK, counter >> 32, 0, 0), (seed, site))
    assert tuple(philox(torch.tensor(counter), seed, site).tolist()) == want


def test_counters_are_independent_of_their_neighbors_in_the_tensor() -> None:
    counters = torch.tensor([[5, 2**32], [2**40 + 3, 0]])
    together = philox(counters, 7, 8)
    assert together.shape == (2, 2, 4)
    for row in range(2):
        for column in range(2):
            assert torch.equal(together[row, column], philox(counters[row, column], 7, 8))


def test_the_key_is_the_low_32_bits_of_seed_and_site() -> None:
    assert torch.equal(philox(torch.arange(9), 2**32 + 5, 2**40 + 6), philox(torch.arange(9), 5, 6))


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 15), (0, 16), (2, 39), (4, 33)])
def test_byte_j_of_chunk_c_is_byte_j_of_counter_c(row: int, column: int) -> None:
    found = random_bits(torch.Size([5, 40]), 1, 11, 12, CPU)
    counter = row * 3 + column // 16  # three chunks a row, the last one short
    words = by_the_paper((counter, 0, 0, 0), (11, 12))
    assert int(found[row, column]) == words[column % 16 // 4] >> (8 * (column % 4)) & 255


@pytest.mark.parametrize("bits", [17, 24])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 3), (0, 4), (2, 37), (4, 33)])
def test_more_than_16_bits_are_the_highest_of_a_word(bits: int, row: int, column: int) -> None:
    found = random_bits(torch.Size([5, 38]), 1, 11, 12, CPU, bits)
    words = by_the_paper((row * 10 + column // 4, 0, 0, 0), (11, 12))  # ten chunks of four a row
    assert int(found[row, column]) == words[column % 4] >> (32 - bits)


@pytest.mark.parametrize("shape", [(5, 40), (3, 5, 40), (2, 16), (1, 1), (2, 3, 4, 17)])
def test_the_bytes_follow_the_axis_not_the_layout(shape: tuple[int, ...]) -> None:
    turned = torch.Size((*shape[:-2], shape[-1], shape[-2]))
    along_last = random_bits(torch.Size(shape), -1, 1, 2, CPU)
    assert along_last.shape == shape
    assert torch.equal(random_bits(turned, -2, 1, 2, CPU), along_last.mT)


def test_the_axis_may_count_from_either_end() -> None:
    shape = torch.Size([3, 20, 40])
    assert torch.equal(random_bits(shape, 1, 1, 2, CPU), random_bits(shape, -2, 1, 2, CPU))


@pytest.mark.parametrize("shape", [(0, 16), (4, 0), (0, 0), (2, 0, 3)])
def test_empty_tensors_take_no_bytes(shape: tuple[int, ...]) -> None:
    assert random_bits(torch.Size(shape), -1, 1, 2, CPU).shape == shape


def chi_square(values: torch.Tensor) -> float:
    counts = torch.bincount(values.flatten(), minlength=256).double()
    expected = values.numel() / 256
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
@pytest.mark.parametrize("position", [slice(None), 0, 3, 15], ids=str)
def test_bytes_are_uniform_at_every_position(seed: int, position: slice | int) -> None:
    found = random_bits(torch.Size([2**14, 16]), 1, seed, 3, CPU)[:, position]
    # 255 degrees of freedom: mean 255, variance 510; six standard deviations to each side.
    assert abs(chi_square(found) - 255) < 6 * 510**0.5


@pytest.mark.parametrize(
    ("first", "second"), [((1, 1), (2, 1)), ((1, 1), (1, 2)), ((1, 2), (2, 1))]
)
def test_seeds_and_sites_give_unrelated_bytes(
    first: tuple[int, int], second: tuple[int, int]
) -> None:
    shape = torch.Size([2**12, 16])
    a, b = random_bits(shape, 1, *first, CPU), random_bits(shape, 1, *second, CPU)
    assert abs(chi_square(a ^ b) - 255) < 6 * 510**0.5
    equal = float((a == b).float().mean())
    assert abs(equal - 1 / 256) < 6 * (1 / 256 / 2**16) ** 0.5


def test_neighboring_chunks_are_unrelated() -> None:
    found = random_bits(torch.Size([2**13, 16]), 1, 1, 1, CPU)
    assert abs(chi_square(found[1:] ^ found[:-1]) - 255) < 6 * 510**0.5


@pytest.mark.parametrize("counter", [0, 1, 2**32 - 1, 2**40 + 3])
def test_one_counter_value_gives_the_same_words_without_a_tensor(counter: int) -> None:
    for seed, site in ((0, 0), (2**32 - 1, 7), (12345, 2**31)):
        found = philox(torch.tensor([counter]), seed, site)[0].tolist()
        assert found == list(philox_words(counter, seed, site))


def test_signs_are_balanced_and_keyed() -> None:
    assert random_signs(16, 1, 2) == random_signs(32, 1, 2)[:16]
    assert len({random_signs(64, seed, site) for seed in range(8) for site in range(8)}) == 64
    minus = sum(random_signs(256, seed, 0).count("-") for seed in range(64))
    assert abs(minus - 8192) < 6 * 64  # six deviations of 16384 fair draws


@pytest.mark.parametrize(("bits", "served"), [(1, 16), (4, 16), (8, 16), (9, 8), (16, 8)])
def test_any_number_of_bits_is_the_top_of_its_bytes(bits: int, served: int) -> None:
    shape = torch.Size([3, 40])
    found = random_bits(shape, -1, 5, 6, CPU, bits)
    wide = random_bits(shape, -1, 5, 6, CPU, 8 if bits <= 8 else 16)
    assert torch.equal(found, wide >> ((8 if bits <= 8 else 16) - bits))
    assert int(found.max()) < 2**bits
    assert int(found.max()) >= 2**bits // 2
    # The counter of an element's chunk, and its place in the counter's 128 bits.
    chunks, width = -(-40 // served), 128 // served
    for row, column in ((0, 0), (1, 17), (2, 39)):
        counter, place = row * chunks + column // served, column % served
        word = philox_words(counter, 5, 6)[place * width // 32]
        want = (word >> (place * width % 32)) & ((1 << width) - 1)
        assert int(wide[row, column]) == want
