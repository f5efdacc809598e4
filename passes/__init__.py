"""Graph in, graph out: one rewrite a file. `pipeline.PASSES` is their order."""

from qgraph.passes.graph.edit import below_permutes
from qgraph.passes.graph.operand import Operand
from qgraph.passes.graph.places import (
    Layer,
    block_of,
    frame_module,
    lookups,
    module_path,
    numbered_stack,
    stacks_of,
)
from qgraph.passes.graph.quantizer import Quantizer, quantizer_of
from qgraph.passes.graph.targets import (
    RESHAPES,
    VIEWS,
    argument_node,
    aten,
    is_grouped,
    names_product,
    sizes_of,
    value_of,
)
from qgraph.passes.graph.text import graph_text
from qgraph.passes.halves.stash import stash
from qgraph.passes.model.attention import take_attention_apart
from qgraph.passes.pipeline import PASSES, names_of, run_passes
from qgraph.passes.plan import Plan, open_plans, plan_sites, whole_attention
from qgraph.passes.report.computed import fallback_lines
from qgraph.passes.report.elsewhere import Elsewhere, elsewhere_text
from qgraph.passes.report.entries import (
    Entry,
    ProductOperand,
    Report,
    make_totals,
    read_report,
    report_json,
)
from qgraph.passes.report.table import (
    COLUMNS,
    make_rows,
    report_text,
    table_cells,
    table_lines,
    total_lines,
)
from qgraph.passes.sites.attention import quantizes_attention
from qgraph.passes.sites.find import find_sites
from qgraph.passes.sites.parts import part_of
from qgraph.passes.sites.processes import Processes, Split
from qgraph.passes.sites.saved import SavedTensor
from qgraph.passes.sites.site import GraphFacts, Site
from qgraph.passes.sites.splits import check_parts
from qgraph.passes.sites.traffic import elementwise_traffic
from qgraph.passes.step import Halves, Pass, Step, Target, Watch
from qgraph.passes.work import multiply_of, quantize_of

__all__ = [
    "COLUMNS",
    "PASSES",
    "RESHAPES",
    "VIEWS",
    "Elsewhere",
    "Entry",
    "GraphFacts",
    "Halves",
    "Layer",
    "Operand",
    "Pass",
    "Plan",
    "Processes",
    "ProductOperand",
    "Quantizer",
    "Report",
    "SavedTensor",
    "Site",
    "Split",
    "Step",
    "Target",
    "Watch",
    "argument_node",
    "aten",
    "below_permutes",
    "block_of",
    "check_parts",
    "elementwise_traffic",
    "elsewhere_text",
    "fallback_lines",
    "find_sites",
    "frame_module",
    "graph_text",
    "is_grouped",
    "lookups",
    "make_rows",
    "make_totals",
    "module_path",
    "multiply_of",
    "names_of",
    "names_product",
    "numbered_stack",
    "open_plans",
    "part_of",
    "plan_sites",
    "quantize_of",
    "quantizer_of",
    "quantizes_attention",
    "read_report",
    "report_json",
    "report_text",
    "run_passes",
    "sizes_of",
    "stacks_of",
    "stash",
    "table_cells",
    "table_lines",
    "take_attention_apart",
    "total_lines",
    "value_of",
    "whole_attention",
]
