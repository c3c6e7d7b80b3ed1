"""The plan language: text <-> Plan <-> graph. Pure and synchronous; no I/O, nothing evaluated."""

from .constrain import decoding_grammar
from .diagnostics import RULES, Diagnostic, PlanError, Rule, visible
from .parse import check, parse, parse_file, parse_revision
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
    "graph",
    "levels",
    "parse",
    "parse_file",
    "parse_revision",
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
