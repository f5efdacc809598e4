"""The semantic ops a graph may hold. Importing this module registers them with torch.

    qgraph::seed() -> Tensor                        one random int64 a step, from torch's CPU generator
    qgraph::hadamard(x, signs, axis, output, seed, site)      block rotation along an axis
    qgraph::fake_quant(x, format, axis, seed, site, rounding) quantize and dequantize
    qgraph::rotate_quant(...)                       the two above in one, made by the `lower` pass
    qgraph::quant_backward(grad, x, ...)            a gradient past a quantizer, not straight through
    qgraph::delayed_amax(x, store, row, ...)        the largest magnitude of the steps before
    qgraph::shared_amax(x, format, axis, rows, group)  the largest magnitude over several processes
    qgraph::shared_seed(seed, group), qgraph::stream(seed, number)  the seed of one of them
    qgraph::quantize / qgraph::dequantize           the packed bits
    qgraph::quantize_both(x, format)                those of a matrix along both axes, from one read
    qgraph::scaled_mm(a, a_scale, b, b_scale, ...)  a product of two quantized matrices
    qgraph::grouped_mm(a, b, offsets)               a product for each group of rows
    qgraph::pad_rows, qgraph::pad_ends              groups that begin at a multiple of the block
    qgraph::pack(x, row, column, ...)               NVFP4 for a matrix unit, both orientations at once
    qgraph::nvfp4_mm(a, ..., b, ...)                a product of two sides of `pack`
    qgraph::check(found, source, ...)               found; the first time held against its definition
    qgraph::observed_quant, qgraph::observed_mm     rotate_quant and mm, noting what they do: telemetry

`format` is the text form of a block format. Where `rounding` is not named it is stochastic with a
seed and to nearest without one; `site` tells one place in the graph from another. A seed of
`hadamard` draws its signs anew each step. Each op is defined by the function of the same name in
`qgraph.numerics`; `qgraph.ops.kernels` says which kernel computes it where, to the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qgraph import numerics
from qgraph.formats import parse_format, parse_gradient
from qgraph.ops import check, grouped, observe, packed, shared, stored
from qgraph.ops.history import delayed_amax
from qgraph.ops.quantizing import element_steps, noise_of, rotated, values
from qgraph.ops.work import How

_LIBRARY = torch.library.Library("qgraph", "DEF")


def _seed() -> Tensor:
    return torch.randint(0, 2**32, (1,), dtype=torch.int64)


def _seed_fake() -> Tensor:
    return torch.empty(1, dtype=torch.int64)


def _hadamard(
    x: Tensor, signs: str, axis: int, output: str, seed: Tensor | None = None, site: int = 0
) -> Tensor:
    noise = noise_of(seed, site)
    if noise is not None:
        signs = numerics.random_signs(len(signs), noise.seed, noise.site)
    return rotated(x, signs, axis, output)[0]


def _hadamard_fake(
    x: Tensor, signs: str, axis: int, output: str, seed: Tensor | None = None, site: int = 0
) -> Tensor:
    return x.new_empty(_padded(x, len(signs), axis))


def _fake_quant(
    x: Tensor,
    format: str,
    axis: int,
    seed: Tensor | None = None,
    site: int = 0,
    rounding: str | None = None,
    amax: Tensor | None = None,
) -> Tensor:
    return values(x, format, rounding, How(axis, noise_of(seed, site), amax=amax))


def _fake_quant_fake(
    x: Tensor,
    format: str,
    axis: int,
    seed: Tensor | None = None,
    site: int = 0,
    rounding: str | None = None,
    amax: Tensor | None = None,
) -> Tensor:
    return x.new_empty(x.shape)


def _rotate_quant(
    x: Tensor,
    signs: str,
    output: str,
    format: str,
    axis: int,
    seed: Tensor | None = None,
    site: int = 0,
    rounding: str | None = None,
) -> Tensor:
    return values(x, format, rounding, How(axis, noise_of(seed, site), signs, output))


def _rotate_quant_fake(
    x: Tensor,
    signs: str,
    output: str,
    format: str,
    axis: int,
    seed: Tensor | None = None,
    site: int = 0,
    rounding: str | None = None,
) -> Tensor:
    return x.new_empty(_padded(x, len(signs), axis))


def _observed_quant(
    x: Tensor, signs: str, output: str, format: str, axis: int, seed: Tensor | None, site: int,
    rounding: str | None, amax: Tensor | None, recorder: int, place: str,
) -> Tensor:  # fmt: skip
    noise = noise_of(seed, site)
    x, known = rotated(x, signs, axis, output) if signs else (x, None)
    found = values(x, format, rounding, How(axis, noise, amax=amax, known=known))
    observe.note(recorder, place, x, found, format, axis, noise, amax, element_steps(x))
    return found


def _observed_quant_fake(
    x: Tensor, signs: str, output: str, format: str, axis: int, *_: object
) -> Tensor:
    return x.new_empty(_padded(x, len(signs), axis) if signs else x.shape)


def _quant_backward(grad: Tensor, x: Tensor, format: str, axis: int, gradient: str) -> Tensor:
    found = numerics.quant_backward(grad, x, parse_format(format), axis, parse_gradient(gradient))
    return found.clone() if found is grad else found


def _quant_backward_fake(grad: Tensor, x: Tensor, format: str, axis: int, gradient: str) -> Tensor:
    return grad.new_empty(grad.shape)


def _delayed_amax_fake(x: Tensor, store: int, row: int, length: int, update: bool) -> Tensor:
    return x.new_empty([], dtype=torch.float32)


def _same_fake(seed: Tensor, _: object) -> Tensor:
    return torch.empty_like(seed)


def _padded(x: Tensor, n: int, axis: int) -> list[int]:
    shape = list(x.shape)
    shape[axis] = (shape[axis] + n - 1) // n * n
    return shape


_CHECK = "str signs, str output, str format, int axis, Tensor? seed, int site, str? rounding"
_PLACE = "Tensor? amax, int graph, str place, int[] axes=[]"
_STORED = "Tensor codes, Tensor scales, Tensor tensor_scale, str format"
_OPERANDS = "Tensor a, Tensor a_scale, Tensor b, Tensor b_scale"
_RESULT = "ScalarType dtype, Tensor? bias=None"
_QUANT = "str format, int axis, Tensor? seed=None, int site=0, str? rounding=None"
_OPS = (
    ("seed() -> Tensor", _seed, _seed_fake),
    (
        "hadamard(Tensor x, str signs, int axis, str output, Tensor? seed=None, int site=0) -> Tensor",
        _hadamard,
        _hadamard_fake,
    ),
    (f"fake_quant(Tensor x, {_QUANT}, Tensor? amax=None) -> Tensor", _fake_quant, _fake_quant_fake),
    (
        "delayed_amax(Tensor x, int store, int row, int length, bool update) -> Tensor",
        delayed_amax,
        _delayed_amax_fake,
    ),
    (
        f"rotate_quant(Tensor x, str signs, str output, {_QUANT}) -> Tensor",
        _rotate_quant,
        _rotate_quant_fake,
    ),
    (
        "quant_backward(Tensor grad, Tensor x, str format, int axis, str gradient) -> Tensor",
        _quant_backward,
        _quant_backward_fake,
    ),
    (
        f"quantize(Tensor x, {_QUANT}) -> (Tensor, Tensor, Tensor)",
        stored.quantize,
        stored.quantize_fake,
    ),
    (
        "quantize_both(Tensor x, str format) -> (Tensor, Tensor, Tensor, Tensor)",
        stored.quantize_both,
        stored.quantize_both_fake,
    ),
    (
        f"scaled_mm({_OPERANDS}, str kind, str format_a, str format_b, {_RESULT}) -> Tensor",
        stored.scaled_mm,
        stored.scaled_mm_fake,
    ),
    (
        "grouped_mm(Tensor a, Tensor b, Tensor offsets) -> Tensor",
        grouped.grouped_mm,
        grouped.grouped_mm_fake,
    ),
    (
        "pad_rows(Tensor x, Tensor ends, int multiple, int axis) -> Tensor",
        grouped.pad_rows,
        grouped.pad_rows_fake,
    ),
    (
        f"check(Tensor found, Tensor source, {_CHECK}, {_PLACE}) -> Tensor",
        check.check,
        check.check_fake,
    ),
    (
        "shared_amax(Tensor x, str format, int axis, bool rows, str group) -> Tensor",
        shared.shared_amax,
        shared.shared_amax_fake,
    ),
    ("shared_seed(Tensor seed, str group) -> Tensor", shared.shared_seed, _same_fake),
    ("stream(Tensor seed, int number) -> Tensor", shared.stream, _same_fake),
    (
        f"observed_quant(Tensor x, {_CHECK}, Tensor? amax, int recorder, str place) -> Tensor",
        _observed_quant,
        _observed_quant_fake,
    ),
    (
        "observed_mm(Tensor a, Tensor b, Tensor high_a, Tensor high_b, int recorder, str place) -> Tensor",
        observe.observed_mm,
        observe.observed_mm_fake,
    ),
    (packed.PACK, packed.pack, packed.pack_fake),
    (packed.MULTIPLY, packed.nvfp4_mm, packed.nvfp4_mm_fake),
    ("pad_ends(Tensor ends, int multiple) -> Tensor", grouped.pad_ends, grouped.pad_ends_fake),
    (
        f"dequantize({_STORED}, SymInt[] shape, int axis, ScalarType dtype) -> Tensor",
        stored.dequantize,
        stored.dequantize_fake,
    ),
)
for _schema, _eager, _fake in _OPS:
    _name = _schema.split("(")[0]
    # A draw, or a look at the steps before, is never repeated or folded; the rest are pure. A CUDA graph
    # would replay the seed of the step it was made in.
    _tags = [torch.Tag.cudagraph_unsafe]
    if _name in ("seed", "delayed_amax"):
        _tags.append(torch.Tag.nondeterministic_seeded)
    _LIBRARY.define(_schema, tags=_tags)
    _LIBRARY.impl(_name, _eager, "CompositeExplicitAutograd")
    torch.library.register_fake(f"qgraph::{_name}", _fake, lib=_LIBRARY)

seed = torch.ops.qgraph.seed.default
hadamard = torch.ops.qgraph.hadamard.default
fake_quant = torch.ops.qgraph.fake_quant.default
rotate_quant = torch.ops.qgraph.rotate_quant.default
delayed = torch.ops.qgraph.delayed_amax.default
shared_amax = torch.ops.qgraph.shared_amax.default
shared_seed = torch.ops.qgraph.shared_seed.default
stream = torch.ops.qgraph.stream.default
quant_backward = torch.ops.qgraph.quant_backward.default
quantize = torch.ops.qgraph.quantize.default
quantize_both = torch.ops.qgraph.quantize_both.default
dequantize = torch.ops.qgraph.dequantize.default
grouped_mm = torch.ops.qgraph.grouped_mm.default
checked = torch.ops.qgraph.check.default
observed_quant = torch.ops.qgraph.observed_quant.default
observed_mm = torch.ops.qgraph.observed_mm.default
pad_rows = torch.ops.qgraph.pad_rows.default
pad_ends = torch.ops.qgraph.pad_ends.default
scaled_mm = torch.ops.qgraph.scaled_mm.default
pack = torch.ops.qgraph.pack.default
nvfp4_mm = torch.ops.qgraph.nvfp4_mm.default
