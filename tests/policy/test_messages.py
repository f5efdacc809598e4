"""The exact text of every message a policy file can cause."""

import pytest

from qgraph.errors import PolicyError
from qgraph.policy import KEYS, load_policy_text

HEAD = "qgraph: 1\nname: p\n"
FP4 = "formats: {fp4: {element: e2m1, block: [1, 16], scale: e4m3, tensor_scale: fp32}}\n"
RHT = "transforms: {rht: {hadamard: 16, signs: te}, h32: {hadamard: 32}}\n"
ALL = HEAD + FP4 + RHT  # four lines
RULE = "rules:\n  - {match: {op: linear}, fprop: {input: fp4}}\n"
LINEAR = "match: {op: linear}"
RHT4 = "{format: fp4, transform: rht}"


def _format(entry: str) -> str:
    return f"{HEAD}formats:\n  f: {{{entry}}}\nrules:\n  - {{fprop: {{input: f}}}}\n"


def _transform(entry: str) -> str:
    return f"{HEAD}{FP4}transforms:\n  t: {{{entry}}}\n{RULE}"


def _rule(entry: str) -> str:
    return f"{ALL}rules:\n  - {{{entry}}}\n"


def _match(entry: str) -> str:
    return _rule(f"match: {{{entry}}}, fprop: {{input: fp4}}")


# What is said: the file, then place, key and problem after `p.yaml:`, then the fix.
CASES = {
    "a name that is a path": (
        "qgraph: 1\nname: ../evil\nrules:\n  - {keep: high}\n",
        "2:7: name: '../evil' is no name for a policy",
        "leave out slashes and a leading dot, as in my-nvfp4",
    ),
    "empty file": (
        "",
        "1:1: policy: the file is empty",
        "begin with qgraph: 1",
    ),
    "only comments": (
        "# nothing\n",
        "1:1: policy: the file is empty",
        "begin with qgraph: 1",
    ),
    "not a mapping": (
        "- a\n- b\n",
        "1:1: policy: the file is not a mapping",
        "begin with qgraph: 1",
    ),
    "a lone word": (
        "nvfp4\n",
        "1:1: policy: the file is not a mapping",
        "begin with qgraph: 1",
    ),
    "tab indent": (
        HEAD + "rules:\n\t- {keep: high}\n",
        "4:1: yaml: a tab where YAML takes only spaces",
        "indent with spaces",
    ),
    "open bracket": (
        HEAD + "rules:\n  - {match: {op: linear\n",
        "5:1: yaml: the file ends inside brackets or quotes",
        "close them",
    ),
    "bad indent": (
        HEAD + "rules:\n  - match: {}\n   keep: high\n",
        "5:4: yaml: this does not line up with the lines above",
        "indent it as they are",
    ),
    "colon in value": (
        "qgraph: 1\nname: a: b\n",
        "2:8: yaml: a second ': ' in one entry",
        "put the value in quotes, or on its own line",
    ),
    "control character": (
        "qgraph: 1\nname: a\x00b\n",
        "2:8: yaml: the character '\\x00' is not allowed",
        "remove it",
    ),
    "escape beyond unicode": (
        'qgraph: 1\nname: "\\UFFFFFFFF"\n',
        "2:8: yaml: the number is too large",
        "remove the escape or directive",
    ),
    "half a character": (
        'qgraph: 1\nname: "\\ud800"\n',
        "2:7: name: '\\ud800' holds half a character",
        "remove the escape",
    ),
    "second document": (
        ALL + RULE + "---\nqgraph: 1\n",
        "7:1: yaml: a second document begins",
        "write one policy a file",
    ),
    "alias": (
        HEAD + "formats: &a {}\ntransforms: *a\n",
        "3:10: yaml: anchors and aliases are not supported",
        "write the value out in each place",
    ),
    "alias to nothing": (
        HEAD + "formats: *a\n",
        "3:10: yaml: anchors and aliases are not supported",
        "write the value out in each place",
    ),
    "python tag": (
        "qgraph: 1\nname: !!python/object:os.system {}\n",
        "2:7: yaml: the tag 'tag:yaml.org,2002:python/object:os.system' is not supported",
        "remove it",
    ),
    "too deep": (
        HEAD + "rules: " + "[" * 40 + "\n",
        "3:19: yaml: lists and mappings lie more than 12 deep",
        "close the brackets",
    ),
    "key twice": (
        HEAD + "name: q\n",
        "3:1: name: the key is written twice",
        "keep one; the first is on line 2",
    ),
    "key twice inside a rule": (
        _rule("match: {op: linear, op: conv}, keep: high"),
        "6:26: rules[0].match.op: the key is written twice",
        "keep one; the first is on line 6",
    ),
    "key that is a list": (
        HEAD + "[a]: b\n",
        "3:1: policy: a key is not a word",
        "write key: value",
    ),
    "misspelt key": (
        HEAD + "rulez: []\n",
        "3:1: policy: unknown key 'rulez'",
        "did you mean 'rules'?",
    ),
    "key of a later version": (
        ALL + RULE + "telemetry:\n  - {at: 82%}\n",
        "7:1: policy: unknown key 'telemetry'",
        f"use one of: {', '.join(key.name for key in KEYS)}",
    ),
    "key with a control character": (
        HEAD + '"a\\nb": 1\n' + RULE,
        "3:1: policy: unknown key 'a\\nb'",
        f"use one of: {', '.join(key.name for key in KEYS)}",
    ),
    "missing version": (
        "name: p\nrules:\n  - {keep: high}\n",
        "1:1: policy: the key 'qgraph' is missing",
        "write qgraph: 1",
    ),
    "missing rules": (
        HEAD,
        "1:1: policy: the key 'rules' is missing",
        "write rules: [{match: {op: linear}, keep: high}]",
    ),
    "other version": (
        "qgraph: 2\nname: p\n" + FP4 + RULE,
        "1:9: qgraph: version '2' is unknown",
        "write qgraph: 1",
    ),
    "name without value": (
        "qgraph: 1\nname:\n" + FP4 + RULE,
        "2:6: name: no value is given",
        "write name: nvfp4",
    ),
    "name is empty": (
        "qgraph: 1\nname: ''\n" + FP4 + RULE,
        "2:7: name: it is empty",
        "write name: nvfp4",
    ),
    "name is a number": (
        "qgraph: 1\nname: 8\n" + FP4 + RULE,
        "2:7: name: '8' is a number",
        "put it in quotes: '8'",
    ),
    "coverage without a percent": (
        HEAD + "coverage: {min_flops: 90}\n" + FP4 + RULE,
        "3:23: coverage.min_flops: '90' is not a percent",
        "write a percent such as 90%",
    ),
    "coverage of more than all": (
        HEAD + "coverage: {min_flops: 101%}\n" + FP4 + RULE,
        "3:23: coverage.min_flops: '101%' is more than 100%",
        "write a percent such as 90%",
    ),
    "coverage of another kind": (
        HEAD + "coverage: {min_flop: 90%}\n" + FP4 + RULE,
        "3:12: coverage: unknown key 'min_flop'",
        "did you mean 'min_flops'?",
    ),
    "coverage that is no mapping": (
        HEAD + "coverage: 90%\n" + FP4 + RULE,
        "3:11: coverage: '90%' is not a mapping",
        "write coverage: {min_flops: 90%}",
    ),
    "ragged": (
        HEAD + "ragged: padd\n" + FP4 + RULE,
        "3:9: ragged: unknown 'padd'",
        "did you mean 'pad'?",
    ),
    "formats is a list": (
        HEAD + "formats: [fp4]\n" + RULE,
        "3:10: formats: a list is not a mapping",
        "write formats: {fp8: {element: e4m3, block: tensor, scale: fp32}}",
    ),
    "rules is a mapping": (
        HEAD + FP4 + "rules: {keep: high}\n",
        "4:8: rules: a mapping is not a list",
        "write rules: [{match: {op: linear}, keep: high}]",
    ),
    "no rules": (
        HEAD + "rules: []\n",
        "3:8: rules: it is empty",
        "write rules: [{match: {op: linear}, keep: high}]",
    ),
    "rule is a word": (
        HEAD + "rules: [high]\n",
        "3:9: rules[0]: 'high' is not a mapping",
        "write {match: {op: linear}, keep: high}",
    ),
    "first of two faults": (
        HEAD + "ragged: no\nrules: 3\n",
        "3:9: ragged: unknown 'no'",
        "use one of: pad, keep, error",
    ),
    "format is a word": (
        HEAD + "formats:\n  fp4: e2m1\n" + RULE,
        "4:8: formats.fp4: unknown format 'e2m1'",
        "write element/block/scale, as in e2m1/1x16/e4m3/fp32",
    ),
    "format called high": (
        HEAD + "formats:\n  high: {element: e2m1, block: row, scale: fp32}\n" + RULE,
        "4:3: formats.high: high stands for no format at all",
        "choose another name",
    ),
    "unknown element": (
        _format("element: fe2m1, block: [1, 16], scale: fp32"),
        "4:16: formats.f.element: unknown element format 'fe2m1'",
        "did you mean 'e2m1'?",
    ),
    "missing element": (
        _format("block: [1, 16], scale: fp32"),
        "4:6: formats.f: the key 'element' is missing",
        "write element: e2m1",
    ),
    "unknown block": (
        _format("element: e2m1, block: rows, scale: fp32"),
        "4:29: formats.f.block: unknown block 'rows'",
        "write tensor, row, column, or a tile such as [1, 16]",
    ),
    "block of zero": (
        _format("element: e2m1, block: [0, 16], scale: fp32"),
        "4:29: formats.f.block: block '[0, 16]' is not a tile",
        "write [ACROSS, ALONG], 1 to 1024 by 1 to 1024 elements, as in [1, 16]",
    ),
    "block of three": (
        _format("element: e2m1, block: [1, 2, 3], scale: fp32"),
        "4:29: formats.f.block: block '[1, 2, 3]' is not a tile",
        "write [ACROSS, ALONG], 1 to 1024 by 1 to 1024 elements, as in [1, 16]",
    ),
    "unknown scale": (
        _format("element: e2m1, block: [1, 16], scale: int8"),
        "4:45: formats.f.scale: unknown scale 'int8'",
        "use one of: fp32, none, ue8m0 (or ueXm0), or a float such as e4m3 or ue5m3",
    ),
    "scale is a list": (
        _format("element: e2m1, block: [1, 16], scale: [e4m3]"),
        "4:45: formats.f.scale: a list is not a word",
        "write one word",
    ),
    "scale that cannot hold the ratio": (
        _format("element: fp16, block: [1, 16], scale: e4m3"),
        (
            "4:6: formats.f: 'fp16/1x16/e4m3': the scale e4m3 cannot hold the ratio of ordinary "
            "values to fp16's largest: all would become zero"
        ),
        "write scale: fp32 or ue8m0, or add tensor_scale: fp32",
    ),
    "no exponent and no mantissa": (
        _format("element: e0m0, scale: fp32"),
        "4:16: formats.f.element: 'e0m0' has no exponent",
        "write int2, or eXmY with X from 1 to 8",
    ),
    "element of unknown fields": (
        _format("element: {exponent_bits: 4, mantissa: 3}, scale: fp32"),
        "4:16: formats.f.element: unknown field 'mantissa' of a float",
        "use one of: exponent_bits, mantissa_bits, bias, specials, signed, subnormals, saturate",
    ),
    "element of impossible fields": (
        _format("element: {exponent_bits: 4, mantissa_bits: 3, specials: some}, scale: fp32"),
        "4:16: formats.f.element: specials cannot be 'some'",
        "use one of: ieee, nan_only, fnuz, none",
    ),
    "element values that fall": (
        _format("element: [1, 0], scale: fp32"),
        "4:16: formats.f.element: 'list(1,0)' does not rise",
        "write 2 to 256 finite numbers, the lowest first",
    ),
    "a dialect of other blocks": (
        _format("element: e2m1, block: [1, 32], scale: e4m3, dialect: qutlass"),
        (
            "4:6: formats.f: 'e2m1/1x32/e4m3@qutlass': the dialect qutlass speaks of e2m1 in blocks "
            "of 16 with e4m3 scales"
        ),
        "write element: e2m1, block: [1, 16], scale: e4m3, or no dialect",
    ),
    "an MX dialect of another scale": (
        _format("element: e2m1, block: [1, 32], scale: fp32, dialect: ocp"),
        "4:60: formats.f.dialect: the dialect ocp speaks of ue8m0 scales, rounded floor",
        "write scale: ue8m0 and no scale_rounding",
    ),
    "unknown range": (
        _format("element: e2m1, block: [1, 32], scale: fp32, range: p101"),
        "4:58: formats.f.range: 'p101' is no percentile",
        "write above 0 to 100, as in p99.9",
    ),
    "4over6 of integers": (
        _format("element: int4, block: [1, 16], scale: e4m3, tensor_scale: fp32, range: 4over6"),
        (
            "4:6: formats.f: 'int4/1x16/e4m3:4over6/fp32': 4over6 chooses between the values 6 and 4 "
            "of e2m1"
        ),
        "write element: e2m1, or range: mse",
    ),
    "tensor scale over a row": (
        _format("element: e2m1, block: row, scale: e4m3, tensor_scale: fp32"),
        "4:6: formats.f: 'e2m1/row/e4m3/fp32': a tensor scale goes above scales of tiles",
        "write block: [1, 16], or leave tensor_scale out",
    ),
    "scale rounding of fp32": (
        _format("element: e2m1, block: [1, 16], scale: fp32, scale_rounding: floor"),
        "4:51: formats.f.scale_rounding: the scale fp32 is not rounded 'floor'",
        "use one of: nearest, pow2",
    ),
    "unknown scale rounding": (
        _format("element: e2m1, block: [1, 16], scale: ue8m0, scale_rounding: flor"),
        "4:68: formats.f.scale_rounding: unknown 'flor'",
        "did you mean 'floor'?",
    ),
    "unknown tensor scale": (
        _format("element: e2m1, block: [1, 16], scale: e4m3, tensor_scale: bf16"),
        "4:65: formats.f.tensor_scale: unknown 'bf16'",
        "use one of: fp32, fp32-row",
    ),
    "misspelt format key": (
        _format("elment: e2m1, block: [1, 16], scale: fp32"),
        "4:7: formats.f: unknown key 'elment'",
        "did you mean 'element'?",
    ),
    "hadamard of 12": (
        _transform("hadamard: 12"),
        "5:17: transforms.t.hadamard: no rotation has '12' elements",
        "write a power of two, 2 to 256",
    ),
    "hadamard is a word": (
        _transform("hadamard: big"),
        "5:17: transforms.t.hadamard: no rotation has 'big' elements",
        "write a power of two, 2 to 256",
    ),
    "te signs for 32": (
        _transform("hadamard: 32, signs: te"),
        "5:28: transforms.t.signs: there are 16 te signs, and the rotation takes 32",
        "write hadamard: 16, or signs: none",
    ),
    "unknown signs": (
        _transform("hadamard: 16, signs: random"),
        "5:28: transforms.t.signs: unknown 'random'",
        "use one of: te, none, run, site, step",
    ),
    "unknown output": (
        _transform("hadamard: 16, output: fp8"),
        "5:29: transforms.t.output: unknown 'fp8'",
        "use one of: bf16, fp32",
    ),
    "transform without hadamard": (
        _transform("signs: te"),
        "5:6: transforms.t: the key 'hadamard' is missing",
        "write hadamard: 16",
    ),
    "transform is a number": (
        HEAD + "transforms: {t: 16}\n" + RULE,
        "3:17: transforms.t: '16' is not a mapping",
        "write t: {hadamard: 16, signs: te}",
    ),
    "unknown op": (
        _match("op: linaer"),
        "6:18: rules[0].match.op: unknown 'linaer'",
        "did you mean 'linear'?",
    ),
    "unknown op in a list": (
        _match("op: [linear, liner]"),
        "6:27: rules[0].match.op[1]: unknown 'liner'",
        "did you mean 'linear'?",
    ),
    "no op": (
        _match("op: []"),
        "6:18: rules[0].match.op: it is empty",
        "write op: linear",
    ),
    "op is a mapping": (
        _match("op: {linear: 1}"),
        "6:18: rules[0].match.op: a mapping is not a list",
        "write op: linear",
    ),
    "unknown role": (
        _match("role: forward"),
        "6:20: rules[0].match.role: unknown 'forward'",
        "use one of: fprop, dgrad, wgrad",
    ),
    "unknown match key": (
        _match("modules: lm_head"),
        "6:14: rules[0].match: unknown key 'modules'",
        "did you mean 'module'?",
    ),
    "match is a word": (
        _rule("match: linear, keep: high"),
        "6:13: rules[0].match: 'linear' is not a mapping",
        "write match: {op: linear}",
    ),
    "match without value": (
        _rule("match: , keep: high"),
        "6:12: rules[0].match: no value is given",
        "write match: {op: linear}",
    ),
    "module with a comma": (
        _match("module: 'lm_head, score'"),
        "6:22: rules[0].match.module: 'lm_head, score' has a comma",
        "write a list: [lm_head, score]",
    ),
    "module with a space": (
        _match("module: lm_head score"),
        "6:22: rules[0].match.module: 'lm_head score' has white space",
        "write a list: [lm_head, score]",
    ),
    "module is empty": (
        _match("module: ''"),
        "6:22: rules[0].match.module: the module path is empty",
        "write module: lm_head",
    ),
    "module is a number": (
        _match("module: [3]"),
        "6:23: rules[0].match.module[0]: '3' is not a module path",
        "write module: lm_head",
    ),
    "block is a word": (
        _match("blocks: [last]"),
        "6:23: rules[0].match.blocks[0]: 'last' is not a block",
        "write an index such as 0 or -1, or a range: 0-3",
    ),
    "range upside down": (
        _match("blocks: [0, 3-1]"),
        "6:26: rules[0].match.blocks[1]: the range '3-1' holds no block",
        "write the lower block first",
    ),
    "first blocks as a fraction": (
        _match("first_blocks: 0.15"),
        "6:28: rules[0].match.first_blocks: '0.15' is not a number of blocks",
        "write a number of blocks such as 2, or a percent such as 15%",
    ),
    "last blocks below zero": (
        _match("last_blocks: -1"),
        "6:27: rules[0].match.last_blocks: '-1' is below 0",
        "write a number of blocks such as 2, or a percent such as 15%",
    ),
    "last blocks over 100%": (
        _match("last_blocks: 150%"),
        "6:27: rules[0].match.last_blocks: '150%' is more than 100%",
        "write a number of blocks such as 2, or a percent such as 15%",
    ),
    "keep and a product": (
        _rule("match: {}, keep: high, fprop: {input: fp4}"),
        "6:29: rules[0].fprop: keep and fprop exclude each other",
        "remove one of them",
    ),
    "neither keep nor product": (
        _rule("match: {op: linear}"),
        "6:5: rules[0]: the rule says nothing about the sites it matches",
        "write keep: high, or a product: fprop, dgrad or wgrad",
    ),
    "keep something else": (
        _rule("keep: low"),
        "6:12: rules[0].keep: unknown 'low'",
        "write high",
    ),
    "product is a word": (
        _rule("fprop: fp4"),
        "6:13: rules[0].fprop: 'fp4' is not a mapping",
        "write fprop: {input: fp4}",
    ),
    "product without operands": (
        _rule("fprop: {}"),
        "6:13: rules[0].fprop: it names no operand",
        "write fprop: {input: fp4}",
    ),
    "product without value": (
        _rule("fprop: "),
        "6:12: rules[0].fprop: no value is given",
        "write fprop: {input: fp4}",
    ),
    "operand of another product": (
        _rule("fprop: {grad_output: fp4}"),
        "6:14: rules[0].fprop: unknown key 'grad_output'",
        "use one of: input, weight, lhs, rhs",
    ),
    "weight of a matmul": (
        _rule("match: {op: matmul}, fprop: {lhs: fp4, weight: fp4}"),
        "6:45: rules[0].fprop.weight: op matmul has no weight in fprop",
        "use one of: lhs, rhs",
    ),
    "lhs of a linear": (
        _rule("match: {op: [linear, conv]}, dgrad: {grad_output: fp4, lhs: fp4}"),
        "6:61: rules[0].dgrad.lhs: op linear or conv has no lhs in dgrad",
        "use one of: grad_output, weight",
    ),
    "wgrad of a matmul": (
        _rule("match: {op: [matmul, sdpa]}, wgrad: {input: fp4}"),
        "6:35: rules[0].wgrad: op matmul or sdpa has no wgrad",
        "remove wgrad, or match op linear, conv or experts",
    ),
    "role wgrad of a matmul": (
        _rule("match: {op: matmul, role: wgrad}, keep: high"),
        "6:32: rules[0].match.role: op matmul has no wgrad",
        "write fprop or dgrad",
    ),
    "product outside the roles": (
        _rule("match: {op: linear, role: fprop}, fprop: {input: fp4}, dgrad: {weight: fp4}"),
        "6:61: rules[0].dgrad: the rule matches only fprop",
        "add dgrad to match.role, or remove it here",
    ),
    "unknown format": (
        _rule("match: {op: linear}, fprop: {input: fp44}"),
        "6:42: rules[0].fprop.input: unknown format 'fp44'",
        "did you mean 'fp4'?",
    ),
    "unknown format with none near": (
        _rule("match: {op: linear}, fprop: {input: zzz}"),
        "6:42: rules[0].fprop.input: unknown format 'zzz'",
        "use one of: fp4, high",
    ),
    "operand is a number": (
        _rule("match: {op: linear}, fprop: {input: 4}"),
        "6:42: rules[0].fprop.input: '4' is not a format",
        "write input: fp4",
    ),
    "operand without format": (
        _rule("match: {op: linear}, fprop: {input: {rounding: stochastic}}"),
        "6:42: rules[0].fprop.input: the key 'format' is missing",
        "write format: high",
    ),
    "operand format is a list": (
        _rule("match: {op: linear}, fprop: {input: {format: [fp4]}}"),
        "6:51: rules[0].fprop.input.format: a list is not a name",
        "write format: high",
    ),
    "unknown rounding": (
        _rule("match: {op: linear}, fprop: {input: {format: fp4, rounding: random}}"),
        "6:66: rules[0].fprop.input.rounding: unknown rounding 'random'",
        (
            "use one of: nearest, nearest_away, nearest_zero, nearest_odd, toward_zero, up, down, odd, "
            "stochastic, stochastic_equal"
        ),
    ),
    "bits of a rounding that draws none": (
        _rule("match: {op: linear}, fprop: {input: {format: fp4, rounding: 'up:4'}}"),
        "6:66: rules[0].fprop.input.rounding: 'up:4': only random roundings draw bits",
        "write up",
    ),
    "misspelt name of a known format": (
        _rule("match: {op: linear}, fprop: {input: nvfp3}"),
        "6:42: rules[0].fprop.input: unknown format 'nvfp3'",
        "did you mean 'nvfp4'?",
    ),
    "text form with a wrong part": (
        _rule("match: {op: linear}, fprop: {input: e2m1/1x16/e4m5x}"),
        "6:42: rules[0].fprop.input: unknown scale 'e4m5x'",
        "use one of: fp32, none, ue8m0 (or ueXm0), or a float such as e4m3 or ue5m3",
    ),
    "gradient outside fprop": (
        _rule("match: {op: linear}, dgrad: {weight: {format: fp4, gradient: clipped}}"),
        "6:57: rules[0].dgrad.weight.gradient: dgrad has no gradient of its own",
        "write it in fprop, or remove it",
    ),
    "unknown gradient": (
        _rule("match: {op: linear}, fprop: {input: {format: fp4, gradient: lsq}}"),
        "6:66: rules[0].fprop.input.gradient: unknown gradient 'lsq'",
        "use one of: ste, clipped, spline, dge, dge:5:3; with +absmax for the scale's own",
    ),
    "seed of fixed signs": (
        _transform("hadamard: 16, signs: te, seed: 4"),
        "5:32: transforms.t.seed: signs of te are not drawn from a seed",
        "remove seed, or write signs: run",
    ),
    "seed that is no number": (
        _transform("hadamard: 16, signs: run, seed: x"),
        "5:39: transforms.t.seed: 'x' is no seed",
        "write a whole number from 0 on, below 2**32",
    ),
    "seed below zero": (
        _transform("hadamard: 16, signs: run, seed: -1"),
        "5:39: transforms.t.seed: '-1' is no seed",
        "write a whole number from 0 on, below 2**32",
    ),
    "misspelt operand key": (
        _rule("match: {op: linear}, fprop: {input: {format: fp4, round: nearest}}"),
        "6:56: rules[0].fprop.input: unknown key 'round'",
        "did you mean 'rounding'?",
    ),
    "stochastic high": (
        _rule(
            "match: {op: linear}, fprop: {weight: fp4, input: {format: high, rounding: stochastic}}"
        ),
        "6:80: rules[0].fprop.input.rounding: stochastic rounding needs a format to round to",
        "name a format, or remove rounding",
    ),
    "unknown transform": (
        _rule("match: {op: linear}, fprop: {input: {format: fp4, transform: rth}}"),
        "6:67: rules[0].fprop.input.transform: unknown transform 'rth'",
        "did you mean 'rht'?",
    ),
    "transform with none declared": (
        HEAD + FP4 + "rules:\n  - {fprop: {input: {format: fp4, transform: rht}}}\n",
        "5:46: rules[0].fprop.input.transform: unknown transform 'rht'",
        "declare it under transforms:",
    ),
    "rotated on one side": (
        _rule(f"match: {{op: linear}}, wgrad: {{input: fp4, grad_output: {RHT4}}}"),
        (
            "6:85: rules[0].wgrad.grad_output.transform: rotated on one side only: the "
            "product with input would be wrong"
        ),
        "give input the transform 'rht' too, or remove it here",
    ),
    "rotated for one of two": (
        _rule(f"match: {{op: matmul}}, dgrad: {{grad_output: {RHT4}, rhs: {RHT4}}}"),
        (
            "6:73: rules[0].dgrad.grad_output.transform: rotated on one side only: the "
            "product with lhs would be wrong"
        ),
        "give lhs the transform 'rht' too, or remove it here",
    ),
    "rotated for one of all ops": (
        _rule(f"dgrad: {{grad_output: {RHT4}, weight: {RHT4}}}"),
        (
            "6:52: rules[0].dgrad.grad_output.transform: rotated on one side only: the "
            "product with rhs would be wrong"
        ),
        "give rhs the transform 'rht' too, or remove it here (the rule matches op matmul as well)",
    ),
    "rotated differently": (
        _rule(
            f"match: {{op: linear}}, "
            f"wgrad: {{input: {{format: fp4, transform: h32}}, grad_output: {RHT4}}}"
        ),
        (
            "6:67: rules[0].wgrad.input.transform: input and grad_output are rotated "
            "differently: the product would be wrong"
        ),
        "give both the same transform",
    ),
    "nothing quantized": (
        HEAD + "rules:\n  - {keep: high}\n",
        "3:1: rules: no rule quantizes anything",
        "give an operand a format, or name the policy high",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_message_says_where_what_and_what_to_write(case: str) -> None:
    text, problem, fix = CASES[case]
    with pytest.raises(PolicyError) as caught:
        load_policy_text(text, file="p.yaml")
    assert str(caught.value) == f"p.yaml:{problem}\n  fix: {fix}"
