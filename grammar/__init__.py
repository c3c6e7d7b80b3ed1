"""The plan language: text <-> Plan <-> graph. Pure and synchronous; no I/O, nothing evaluated."""

from .constrain import decoding_grammar
from .diagnostics import RULES, Diagnostic, PlanError, Rule, visible
from .parse import check, parse, parse_file, parse_revision
from .plan import Limits, Plan, Step
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
    "Limits",
    "Plan",
    "PlanError",
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
    "topology",
    "tree",
    "visible",
]
