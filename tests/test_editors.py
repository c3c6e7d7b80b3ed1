"""editors/ and docs/editors.md: their files say what the language and the server do."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grammar import read_file

ROOT = Path(__file__).parents[1]
EXTENSION = ROOT / "editors" / "vscode"
PAGE = (ROOT / "docs" / "editors.md").read_text(encoding="utf-8")


def read(name: str) -> Any:
    """A JSON file of the extension."""
    return json.loads((EXTENSION / name).read_text(encoding="utf-8"))


def rules(node: object) -> Iterator[dict[str, Any]]:
    """Every rule of the TextMate grammar."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from rules(value)
    elif isinstance(node, list):
        for value in node:
            yield from rules(value)


TEXTMATE = read("syntaxes/plan.tmLanguage.json")


def test_the_expressions_of_the_grammar_compile_and_its_parts_exist() -> None:
    """What is included is defined, what is defined is included."""
    patterns = [
        rule[key] for rule in rules(TEXTMATE) for key in ("match", "begin", "end") if key in rule
    ]
    for pattern in patterns:
        re.compile(pattern)
    included = {rule["include"].lstrip("#") for rule in rules(TEXTMATE) if "include" in rule}

    assert len(patterns) > 15
    assert included == set(TEXTMATE["repository"])


LABELS = [
    *("subtasks", "workers", "access", "model_id", "access_list", "worker ids", "Sub-Task"),
    *("**workers**", "`model ids`", '"access"', "ACCESS-LISTS", "sub_tasks", "worker"),
]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("separator", ["=", ":", ": List[int] ="])
def test_what_the_language_takes_for_a_label_is_coloured_as_one(label: str, separator: str) -> None:
    """The parser is the judge."""
    (found,) = read_file(f"{label} {separator} []").lists
    assert found.start == 0

    match = re.match(TEXTMATE["repository"]["label"]["match"], f"{label} {separator} []")
    assert match is not None
    assert match.groups() == (label, separator)


def test_the_extension_is_of_one_piece() -> None:
    """Its files exist; language, ending and scope agree; the server is the command that we have."""
    package = read("package.json")
    (language,) = package["contributes"]["languages"]
    (colours,) = package["contributes"]["grammars"]

    assert (language["id"], language["extensions"]) == ("plan", [".plan"])
    assert (colours["language"], colours["scopeName"]) == ("plan", TEXTMATE["scopeName"])
    for name in (package["main"], language["configuration"], colours["path"]):
        assert (EXTENSION / name).is_file()
    assert read("language-configuration.json")["comments"] == {"lineComment": "#"}
    assert '["lsp", "--pool", pool] : ["lsp"]' in (EXTENSION / "extension.js").read_text("utf-8")
    commands = package["contributes"]["configuration"]["properties"]["conductor.command"]
    assert commands["scope"] == "machine"  # a folder that is opened must not choose what is run


def test_the_configuration_for_helix_is_toml_that_starts_the_server() -> None:
    """And says the same as the one for Neovim."""
    helix = tomllib.loads(re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0])
    (language,) = helix["language"]
    (neovim,) = re.findall(r"```lua\n(.*?)```", PAGE, re.DOTALL)

    assert helix["language-server"]["conductor"] == {"command": "conductor", "args": ["lsp"]}
    assert (language["name"], language["file-types"]) == ("plan", ["plan"])
    assert language["language-servers"] == ["conductor"]
    assert 'cmd = { "conductor", "lsp" }' in neovim
