"""Colours for plan files in terminals and documents: a Pygments lexer, registered as ``plan``.

It only colours. Its expressions mirror the terminals of ``plan.lark``; what is right is decided
there.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from pygments.lexer import RegexLexer, bygroups, include, words
from pygments.token import (
    Comment,
    Keyword,
    Name,
    Number,
    Operator,
    Punctuation,
    String,
    Whitespace,
)

_MARK = r"""["'`*]{0,3}"""
_NAMES = r"sub[_ -]?tasks?|workers?|(?:worker|model)[_ -]?ids?|access(?:[_ -]?lists?)?"
_LABEL = rf"{_MARK}(?:{_NAMES}){_MARK}"
_SEPARATOR = r"(?::\s?[Ll]ist(?:\[[\w\[\], |]{0,40}\])?\s?=|[=:])\*{0,2}(?:\s*```\w{0,12})?"
_ESCAPE = r"\\(?:u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{2}|[\s\S])"


def _string(kind: Any, plain: str, end: str) -> list[Any]:
    """The inside of a string: escapes, what is plain, and the quote that ends it."""
    return [(_ESCAPE, String.Escape), (plain, kind), (end, kind, "#pop")]


class PlanLexer(RegexLexer):
    """Tokens of a plan file: labels, strings with their escapes, numbers, "all" and comments.

    Text outside the lists that is no comment comes out as errors: it makes the file no plan.
    """

    name = "Conductor plan"
    aliases: ClassVar[list[str]] = ["plan"]
    filenames: ClassVar[list[str]] = ["*.plan"]
    mimetypes: ClassVar[list[str]] = ["text/x-conductor-plan"]
    flags = re.MULTILINE

    tokens: ClassVar[dict[str, Any]] = {
        "root": [
            include("blank"),
            (
                rf"(?i:(?<!\w)({_LABEL}))(\s*)({_SEPARATOR})",
                bygroups(Name.Attribute, Whitespace, Operator),  # type: ignore[no-untyped-call]  # its stub
            ),
            (r"\[", Punctuation, "list"),
            (r"[{},]", Punctuation),
        ],
        "blank": [
            (r"[\s\ufeff]+", Whitespace),
            (r"#[^\n]*", Comment.Single),
        ],
        "list": [
            include("blank"),
            (r"\[", Punctuation, "#push"),
            (r"\]", Punctuation, "#pop"),
            (r",", Punctuation),
            (r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?", Number),
            (words(("True", "true", "False", "false", "None", "null"), suffix=r"\b"), Keyword),
            (r"(?i:all)(?![\w./-])", Keyword.Constant),
            (r"[^\W\d][\w./-]*", Name),
            (r'"""', String.Double, "triple-double"),
            (r"'''", String.Single, "triple-single"),
            (r'"', String.Double, "double"),
            (r"'", String.Single, "single"),
            (r"[“”„]", String.Double, "curly-double"),
            (r"[‘’]", String.Single, "curly-single"),
        ],
        "double": _string(String.Double, r'[^"\\]+', '"'),
        "single": _string(String.Single, r"(?:[^'\\]|(?<=\w)'(?=\w))+", "'"),
        "triple-double": _string(String.Double, r'(?:[^"\\]|"(?!""))+', '"""'),
        "triple-single": _string(String.Single, r"(?:[^'\\]|'(?!''))+", "'''"),
        "curly-double": _string(String.Double, r"[^“”„\\]+", "[“”]"),
        "curly-single": _string(String.Single, r"(?:[^‘’\\]|(?<=\w)’(?=\w))+", "[‘’]"),
    }
