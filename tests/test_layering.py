"""The house: layers import downwards, roots list what they offer, and importing them is light."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest

PACKAGES = ("grammar", "runtime", "conductor", "training")
HEAVY = (
    "aiohttp",
    "ctranslate2",
    "datasets",
    "genai_prices",
    "graphviz",
    "httpx",
    "lark",
    "networkx",
    "opentelemetry",
    "peft",
    "prometheus_client",
    "starlette",
    "torch",
    "transformers",
    "trl",
    "uvicorn",
)
ROOT = Path(__file__).parents[1]


def python(code: str) -> str:
    """Run code in a fresh interpreter that sees this checkout."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_layer_imports_only_the_layers_below_it() -> None:
    """The contract in pyproject.toml holds."""
    told = python(
        "import sys; from importlinter.cli import lint_imports\n"
        "sys.exit(lint_imports(no_cache=True))"
    )

    assert "1 kept, 0 broken" in told


@pytest.mark.parametrize("package", ["grammar", "runtime", "conductor"])
def test_importing_a_package_loads_nothing_heavy(package: str) -> None:
    """What only some users need is imported where it is used."""
    told = python(f"import sys, {package}; print(*sorted(sys.modules.keys() & {set(HEAVY)!r}))")

    assert told.split() == []


@pytest.mark.parametrize("package", ["grammar", "runtime", "conductor"])
def test_a_root_lists_what_can_be_imported_from_it(package: str) -> None:
    """Every public name once, in order: CONSTANTS, Classes, functions."""
    root = import_module(package)

    def order(name: str) -> tuple[bool, bool, str]:
        return not name.isupper(), not name[0].isupper(), name

    public = {
        name
        for name, value in vars(root).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert root.__all__ == sorted(public, key=order)


@pytest.mark.parametrize("package", PACKAGES)
def test_types_are_shipped(package: str) -> None:
    """Type checkers of users read our annotations."""
    assert (files(package) / "py.typed").is_file()
