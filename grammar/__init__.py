"""The plan language: text <-> Plan <-> graph. Pure and synchronous; no I/O, nothing evaluated."""

from .constrain import decoding_grammar
from .diagnostics import RULES, Diagnostic, PlanError, Rule, visible
from .format import format_file
from .lint import Edit, check, fix, repair
from .parse import Document, parse, parse_file, parse_revision, read_file
from .plan import Limits, Plan, Step
from .render import (
    LayoutMissing,
    Mark,
    Row,
    terminal_rows,
    to_dot,
    to_mermaid,
    to_png,
    to_svg,
    to_terminal,
)
from .topology import (
    Topology,
    best_of_n,
    chain,
    critical_path,
    debate,
    diamond,
    graph,
    levels,
    single,
    topology,
    tree,
)

__all__ = [
    "RULES",
    "Diagnostic",
    "Document",
    "Edit",
    "LayoutMissing",
    "Limits",
    "Mark",
    "Plan",
    "PlanError",
    "Row",
    "Rule",
    "Step",
    "Topology",
    "best_of_n",
    "chain",
    "check",
    "critical_path",
    "debate",
    "decoding_grammar",
    "diamond",
    "fix",
    "format_file",
    "graph",
    "levels",
    "parse",
    "parse_file",
    "parse_revision",
    "read_file",
    "repair",
    "single",
    "terminal_rows",
    "to_dot",
    "to_mermaid",
    "to_png",
    "to_svg",
    "to_terminal",
    "topology",
    "tree",
    "visible",
]
