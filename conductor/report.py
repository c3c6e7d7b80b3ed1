"""The problems of plan files in the formats that people and machines read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import Any

from grammar import RULES, Diagnostic, visible

Problems = Mapping[str, tuple[str, Sequence[Diagnostic]]]
"""By path: the text of the file, and what was found in it."""


class OutputFormat(StrEnum):
    """How `conductor check` prints."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"
    GITHUB = "github"


def report(problems: Problems, form: OutputFormat) -> str:
    """Write the problems of all files; the text ends without a newline."""
    match form:
        case OutputFormat.TEXT:
            return _text(problems)
        case OutputFormat.JSON:
            return json.dumps(_records(problems), indent=2, ensure_ascii=False)
        case OutputFormat.SARIF:
            return json.dumps(_sarif(problems), indent=2, ensure_ascii=False)
        case OutputFormat.GITHUB:
            return "\n".join(_github(path, each) for path, each in _each(problems))


def explain(code: str) -> str:
    """Tell what a code means, with the example that shows it and the one that repairs it.

    Raises:
        ValueError: If there is no such code.
    """
    rule = RULES.get(code.upper())
    if rule is None:
        raise ValueError(f"there is no code {code!r}; the codes are {', '.join(RULES)}")
    from grammar import check

    workers = ["gemini", "opus", "gpt"] if rule.code.startswith("P3") else None
    found = check(rule.bad, workers=workers)[0]
    pool = f" (in a pool of {', '.join(workers)})" if workers else ""
    return (
        f"{rule.code} {rule.name} ({rule.severity})\n{rule.summary}\n\n"
        f"For example{pool}:\n\n{_shorten(rule.bad)}\n{_shorten(found.render(rule.bad))}\n\n"
        f"Right would be:\n\n{_shorten(rule.good)}"
    ).rstrip()


def _shorten(text: str) -> str:
    """Examples of what is too long are cut; nobody wants to read them."""
    lines = [line if len(line) <= 160 else line[:120] + " …" for line in text.splitlines()]
    return "".join(f"    {line}\n" for line in lines)


def _each(problems: Problems) -> list[tuple[str, Diagnostic]]:
    return [(path, each) for path, (_, found) in problems.items() for each in found]


def _text(problems: Problems) -> str:
    shown = [each.render(text, path) for path, (text, found) in problems.items() for each in found]
    errors = sum(each.severity == "error" for _, each in _each(problems))
    warnings = len(shown) - errors
    counts = [
        f"{count} {word}{'' if count == 1 else 's'}"
        for count, word in ((errors, "error"), (warnings, "warning"))
        if count
    ]
    files = "1 file" if len(problems) == 1 else f"{len(problems)} files"
    return "\n\n".join([*shown, f"{files} checked: {', '.join(counts) or 'no problems'}"])


def _records(problems: Problems) -> list[dict[str, Any]]:
    return [
        {"file": path, "severity": each.severity, "name": RULES[each.code].name, **asdict(each)}
        for path, each in _each(problems)
    ]


def _github(path: str, each: Diagnostic) -> str:
    """A workflow command: https://docs.github.com/actions/reference/workflow-commands."""

    def escaped(text: str) -> str:
        return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

    def escaped_property(text: str) -> str:
        return escaped(text).replace(":", "%3A").replace(",", "%2C")

    place = (
        f"file={escaped_property(path)},line={each.line},col={each.column},"
        f"endLine={each.end_line},endColumn={each.end_column},"
        f"title={escaped_property(f'{each.code} {RULES[each.code].name}')}"
    )
    hint = f"; {each.hint}" if each.hint else ""
    return f"::{each.severity} {place}::{escaped(visible(each.message + hint))}"


def _sarif(problems: Problems) -> dict[str, Any]:
    """SARIF 2.1.0, as code-scanning services take it."""
    codes = sorted({each.code for _, each in _each(problems)})
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "conductor check",
                        "rules": [
                            {
                                "id": code,
                                "name": RULES[code].name,
                                "shortDescription": {"text": RULES[code].summary},
                            }
                            for code in codes
                        ],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "results": [
                    {
                        "ruleId": each.code,
                        "ruleIndex": codes.index(each.code),
                        "level": each.severity,
                        "message": {"text": f"{each.message}; {each.hint}".rstrip("; ")},
                        "locations": [
                            {
                                "physicalLocation": {
                                    "artifactLocation": {"uri": path},
                                    "region": {
                                        "startLine": each.line,
                                        "startColumn": each.column,
                                        "endLine": each.end_line,
                                        "endColumn": each.end_column,
                                    },
                                }
                            }
                        ],
                    }
                    for path, each in _each(problems)
                ],
            }
        ],
    }
