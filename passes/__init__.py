"""Graph in, graph out: one rewrite a file. `pipeline.PASSES` is their order."""

from qgraph.passes.graph.operand import Operand
from qgraph.passes.graph.places import block_of, frame_module, lookups, module_path, stacks_of
from qgraph.passes.graph.text import graph_text
from qgraph.passes.halves.saved import SavedTensor
from qgraph.passes.halves.stash import stash
from qgraph.passes.joint.split_products import split_products
from qgraph.passes.pipeline import PASSES, Target, rewrite
from qgraph.passes.plan import Plan, plan_sites
from qgraph.passes.report.computed import fallback_lines
from qgraph.passes.report.entries import (
    Entry,
    OperandEntry,
    Report,
    make_totals,
    read_report,
    report_json,
)
from qgraph.passes.report.table import make_rows, report_text, table_lines
from qgraph.passes.sites.find import GraphFacts, Site, find_sites
from qgraph.passes.sites.parts import part_of
from qgraph.passes.sites.processes import Processes, Split
from qgraph.passes.sites.traffic import elementwise_traffic
from qgraph.passes.watch.insert_check import insert_check
from qgraph.passes.watch.insert_observe import insert_observe
from qgraph.passes.work import multiply_of, quantize_of

__all__ = [
    "PASSES",
    "Entry",
    "GraphFacts",
    "Operand",
    "OperandEntry",
    "Plan",
    "Processes",
    "Report",
    "SavedTensor",
    "Site",
    "Split",
    "Target",
    "block_of",
    "elementwise_traffic",
    "fallback_lines",
    "find_sites",
    "frame_module",
    "graph_text",
    "insert_check",
    "insert_observe",
    "lookups",
    "make_rows",
    "make_totals",
    "module_path",
    "multiply_of",
    "part_of",
    "plan_sites",
    "quantize_of",
    "read_report",
    "report_json",
    "report_text",
    "rewrite",
    "split_products",
    "stacks_of",
    "stash",
    "table_lines",
]  # fmt: skip
