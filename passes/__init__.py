"""Graph in, graph out: one rewrite a file. `pipeline.PASSES` is their order."""

from qgraph.passes.insert_check import insert_check
from qgraph.passes.insert_observe import insert_observe
from qgraph.passes.operand import Operand
from qgraph.passes.parts import part_of
from qgraph.passes.pipeline import PASSES, Target, rewrite
from qgraph.passes.places import block_of, frame_module, lookups, module_path, stacks_of
from qgraph.passes.plan import Plan, plan_sites
from qgraph.passes.processes import Processes, Split
from qgraph.passes.report import Entry, OperandEntry, Report, make_totals, read_report, report_json
from qgraph.passes.saved import SavedTensor
from qgraph.passes.sites import GraphFacts, Site, find_sites
from qgraph.passes.split_products import split_products
from qgraph.passes.stash import stash
from qgraph.passes.table import make_rows, report_text, table_lines
from qgraph.passes.text import graph_text
from qgraph.passes.traffic import elementwise_traffic

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
    "find_sites",
    "frame_module",
    "graph_text",
    "insert_check",
    "insert_observe",
    "lookups",
    "make_rows",
    "make_totals",
    "module_path",
    "part_of",
    "plan_sites",
    "read_report",
    "report_json",
    "report_text",
    "rewrite",
    "split_products",
    "stacks_of",
    "stash",
    "table_lines",
]  # fmt: skip
