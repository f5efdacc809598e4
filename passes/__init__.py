"""Graph in, graph out: one rewrite a file. `pipeline.PASSES` is their order."""

from qgraph.passes.insert_check import insert_check
from qgraph.passes.operand import Operand
from qgraph.passes.parts import part_of
from qgraph.passes.pipeline import PASSES, Target, rewrite
from qgraph.passes.places import block_of, frame_module, lookups, module_path, stacks_of
from qgraph.passes.plan import Plan, plan_sites
from qgraph.passes.report import Report, make_totals, report_json
from qgraph.passes.sites import GraphFacts, Site, find_sites
from qgraph.passes.split_products import split_products
from qgraph.passes.table import make_rows, report_text
from qgraph.passes.text import graph_text
from qgraph.passes.traffic import elementwise_traffic

__all__ = [
    "PASSES",
    "GraphFacts",
    "Operand",
    "Plan",
    "Report",
    "Site",
    "Target",
    "block_of",
    "elementwise_traffic",
    "find_sites",
    "frame_module",
    "graph_text",
    "insert_check",
    "lookups",
    "make_rows",
    "make_totals",
    "module_path",
    "part_of",
    "plan_sites",
    "report_json",
    "report_text",
    "rewrite",
    "split_products",
    "stacks_of",
]  # fmt: skip
