"""Editor support: a language server for plan files, over standard input and output.

Every answer is a pure function of a :class:`Source`: the text, what the grammar reads in it, and
the pool file that goes with it. The server at the end only finds those and passes answers on.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version as installed_version
from pathlib import Path

from lsprotocol import types
from pygls.capabilities import get_capability
from pygls.exceptions import JsonRpcInvalidParams
from pygls.lsp.server import LanguageServer
from pygls.uris import from_fs_path, to_fs_path
from pygls.workspace import PositionCodec

from grammar import (
    Diagnostic,
    Document,
    Items,
    ListName,
    PlanError,
    Span,
    check,
    critical_path,
    fix,
    format_file,
    levels,
    quote,
    read_file,
    repair,
    topology,
    visible,
)
from runtime import PoolError, PoolFile

from .config import POOL_FILE

_LABELS: dict[ListName, str] = {
    "subtasks": "what each step has to do",
    "workers": "who does each step",
    "access": "which earlier steps each step reads",
}
_FIXES = {
    "P105": "Put the missing comma",
    "P106": "Make it a comment",
    "P403": "Take out the grant that adds nothing",
}
_CLOSING = {"“": "”", "”": "”", "„": "”", "‘": "’", "’": "’"}
_QUOTES = "\"'“”„‘’"
_LINE_END = re.compile(r"\r\n|\n|\r")
_EXCERPT = 60


@dataclass(frozen=True)
class Source:
    """A plan file as an editor holds it, and the pool it is checked against."""

    text: str
    pool: PoolFile | None = None
    codec: PositionCodec = PositionCodec()
    """How the editor counts columns: in UTF-16 code units unless it says otherwise."""

    @cached_property
    def document(self) -> Document:
        """What stands in the file. Read without the pool: an unknown worker hides no structure."""
        return read_file(self.text)

    @cached_property
    def problems(self) -> tuple[Diagnostic, ...]:
        """Errors and warnings, with the pool."""
        return check(self.text, workers=None if self.pool is None else self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """The workers of the pool, in order."""
        return () if self.pool is None else tuple(self.pool.workers)

    @cached_property
    def lines(self) -> list[str]:
        """The lines as editors count them, without their ends. Ours end at a newline only."""
        return _LINE_END.split(self.text)

    @cached_property
    def starts(self) -> list[int]:
        """Where each of the lines starts."""
        return [0, *(match.end() for match in _LINE_END.finditer(self.text))]

    def offset(self, position: types.Position) -> int:
        """Turn an editor's position into a character offset; outside the text, the nearest one."""
        if position.line >= len(self.lines):
            return len(self.text)
        line = self.lines[position.line]
        units = min(position.character, int(self.codec.client_num_units(line)))
        place = self.codec.position_from_client_units([line], types.Position(0, units))
        return self.starts[position.line] + place.character

    def position(self, offset: int) -> types.Position:
        """Turn a character offset into an editor's position."""
        line = bisect_right(self.starts, offset) - 1
        before = self.lines[line][: offset - self.starts[line]]
        return types.Position(line, int(self.codec.client_num_units(before)))

    def range(self, span: Span) -> types.Range:
        """Turn a span into an editor's range."""
        return types.Range(self.position(span.start), self.position(span.end))

    def place(self, problem: Diagnostic) -> Span:
        """The characters that a problem is about."""
        return _place(self.text, problem)


def _place(text: str, problem: Diagnostic) -> Span:
    starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def at(line: int, column: int) -> int:
        return min(starts[min(line, len(starts)) - 1] + column - 1, len(text))

    start = at(problem.line, problem.column)
    return Span(start, max(start, at(problem.end_line, problem.end_column)))


@dataclass(frozen=True, slots=True)
class _Target:
    """The entry at some place: of which list and step, and which item of it."""

    name: ListName
    index: int
    value: object
    span: Span


def _target(source: Source, offset: int) -> _Target | None:
    for each in source.document.lists:
        for index, entry in enumerate(each.entries):
            if not entry.span.start <= offset <= entry.span.end:
                continue
            if isinstance(entry.value, Items):
                for item, span in zip(entry.value, entry.value.spans, strict=True):
                    if span.start <= offset <= span.end:
                        return _Target(each.name, index, item, span)
            return _Target(each.name, index, entry.value, entry.span)
    return None


# --- diagnostics, and what repairs them --------------------------------------------------------


def diagnostics(source: Source) -> list[types.Diagnostic]:
    """Every problem of the file; the hint is the second line of its message."""
    return [_diagnostic(source, problem) for problem in source.problems]


def _diagnostic(source: Source, problem: Diagnostic) -> types.Diagnostic:
    severity = types.DiagnosticSeverity
    return types.Diagnostic(
        range=source.range(source.place(problem)),
        message=visible("\n".join(filter(None, (problem.message, problem.hint))), "\n"),
        severity=severity.Error if problem.severity == "error" else severity.Warning,
        code=problem.code,
        source="conductor",
    )


def code_actions(
    source: Source, uri: str, asked: types.Range, only: Sequence[str] | None = None
) -> list[types.CodeAction]:
    """The safe repairs of the problems in a range, and the one that makes all in the file.

    Args:
        source: The file.
        uri: Its address, which the edits are for.
        asked: Where the editor wants them.
        only: Kinds of action that are wanted; all if None.
    """
    start, end = source.offset(asked.start), source.offset(asked.end)
    found = []
    if _wanted(types.CodeActionKind.QuickFix, only):
        for problem in source.problems:
            place = source.place(problem)
            edit = fix(source.text, problem)
            if edit is None or place.end < start or end < place.start:
                continue
            found.append(
                types.CodeAction(
                    title=_FIXES.get(problem.code, f"Repair {problem.code}"),
                    kind=types.CodeActionKind.QuickFix,
                    diagnostics=[_diagnostic(source, problem)],
                    is_preferred=True,
                    edit=_edit(uri, [types.TextEdit(source.range(edit.span), edit.text)]),
                )
            )
    if _wanted(types.CodeActionKind.SourceFixAll, only):
        repaired, count = repair(source.text, workers=source.names or None)
        if count:
            found.append(
                types.CodeAction(
                    title=f"Make all safe repairs of this plan ({count})",
                    kind=types.CodeActionKind.SourceFixAll,
                    edit=_edit(uri, _replacing(source, repaired)),
                )
            )
    return found


def _wanted(kind: types.CodeActionKind, only: Sequence[str] | None) -> bool:
    """Kinds are a hierarchy: who asks for "source" gets "source.fixAll"."""
    return only is None or any(f"{kind.value}.".startswith(f"{each}.") for each in only)


def _edit(uri: str, edits: list[types.TextEdit]) -> types.WorkspaceEdit:
    return types.WorkspaceEdit(changes={uri: edits})


def formatting(source: Source) -> list[types.TextEdit]:
    """Lay the file out in the canonical way; nothing if it can't be read. Line ends are kept."""
    try:
        laid_out = format_file(source.text)
    except PlanError:
        return []
    if "\r\n" in source.text:
        laid_out = laid_out.replace("\n", "\r\n")
    return _replacing(source, laid_out)


def _replacing(source: Source, new: str) -> list[types.TextEdit]:
    """Turn the text into another by replacing the lines between the first and last that differ."""
    if new == source.text:
        return []
    before, after = source.text.splitlines(True), new.splitlines(True)
    least = min(len(before), len(after))
    same = next((at for at in range(least) if before[at] != after[at]), least)
    tail = 0
    while tail < least - same and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    start = sum(map(len, before[:same]))
    end = len(source.text) - sum(map(len, before[len(before) - tail :]))
    text = "".join(after[same : len(after) - tail])
    return [types.TextEdit(source.range(Span(start, end)), text)]


# --- hover -------------------------------------------------------------------------------------


def hover(source: Source, offset: int, *, markdown: bool = True) -> types.Hover | None:
    """Tell about the worker or step at a place; None where there is nothing to tell."""
    target = _target(source, offset)
    if target is None:
        return None
    if target.name == "workers":
        told = _of_worker(source, target.value)
    else:
        told = _of_step(source, target.index)
    if not told:
        return None
    title, *lines = map(visible, told)
    if markdown:
        text = "  \n".join((f"**{_escaped(title)}**", *map(_escaped, lines)))
        content = types.MarkupContent(types.MarkupKind.Markdown, text)
    else:
        content = types.MarkupContent(types.MarkupKind.PlainText, "\n".join((title, *lines)))
    return types.Hover(content, source.range(target.span))


def _escaped(text: str) -> str:
    """What a file says stays text: no links, images or HTML come of it."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~&:.-])", r"\\\1", text)


def _of_worker(source: Source, value: object) -> list[str]:
    number = _number(value)
    if not isinstance(value, str | int):
        return []
    if source.pool is None:
        known = f"worker {number} of the pool" if number is not None else str(value)
        return [known, f"no {POOL_FILE} found here or above; `conductor init` writes one"]
    name = _named(source, value)
    if name is None:
        return [f"{value}: not in the pool", f"it has: {', '.join(source.names)}"]
    table = source.pool.workers[name]
    lines = [name, f"worker {source.names.index(name)} · {table.kind} · {table.model}"]
    lines += [table.card] if table.card else []
    lines += [f"tags: {', '.join(table.tags)}"] if table.tags else []
    return lines


def _number(value: object) -> int | None:
    """The number of a worker that is not named; digits in quotes are a number too."""
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() and len(value) <= 6 else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _named(source: Source, value: object) -> str | None:
    """The worker of the pool that an entry means, if there is one."""
    number = _number(value)
    if number is not None:
        return source.names[number] if 0 <= number < len(source.names) else None
    return value if isinstance(value, str) and value in source.names else None


def _of_step(source: Source, index: int) -> list[str]:
    plan = source.document.plan
    if plan is None:
        return []
    step = plan.steps[index]
    worker = _named(source, step.worker) or step.worker
    lines = [f"Step {index} · {worker}", _excerpt(step.subtask)]
    if step.access:
        lines.append("sees the query, and the subtask and reply of:")
        lines += [
            f"  {earlier}: {_excerpt(plan.steps[earlier].subtask)}" for earlier in step.access
        ]
    else:
        lines.append("sees the query, and no other step")
    readers = plan.readers()[index]
    if step is plan.final:
        lines.append("its reply is the answer")
    elif readers:
        lines.append(f"read by {_steps(readers)}")
    else:
        lines.append("read by nobody: its call is wasted")
    rows = levels(plan)
    level = next(at for at, row in enumerate(rows) if index in row)
    beside = [each for each in rows[level] if each != index]
    told = f"topology {topology(plan)}: level {level + 1} of {len(rows)}"
    lines.append(told + (f", at the same time as {_steps(beside)}" if beside else ""))
    path, _ = critical_path(plan)
    if index in path and len(path) > 1:
        lines.append(f"on the longest chain: {' → '.join(map(str, path))}")
    return lines


def _steps(indices: Sequence[int]) -> str:
    return f"step{'' if len(indices) == 1 else 's'} {', '.join(map(str, indices))}"


def _excerpt(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _EXCERPT else line[: _EXCERPT - 1] + "…"


# --- completion --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Cursor:
    """A place in a list that may be half written."""

    name: ListName
    index: int
    """The step whose entry is being written."""
    nested: bool
    """Inside the brackets of one access entry."""
    start: int
    """Where what is being written begins."""
    mark: str
    """The quote that it begins with, if any."""
    items: tuple[object, ...]
    """What stands before it inside the same brackets."""
    closed: Document
    """The text up to here, made complete: what could be read of it."""


def _cursor(source: Source, offset: int) -> _Cursor | None:
    """Find out what is being written: the text up to here is closed, then read as always."""
    before = source.text[:offset]
    seen = read_file(before)
    if not seen.lists or not seen.lists[-1].broken:
        return None
    last = seen.lists[-1]
    opened = (_place(before, each).start for each in seen.errors if each.code == "P104")
    string = next((at for at in opened if at > last.bracket), None)
    mark = ""
    endings = ["", "0"]  # a word or number under way; or nothing yet, and then as if there were one
    if string is not None:
        mark = before[string]
        mark = mark * 3 if before.startswith(mark * 3, string) else mark
        odd = (len(before) - len(before.rstrip("\\"))) % 2
        endings = ["\\" * odd + _CLOSING.get(mark, mark)]
    for ending in endings:
        for brackets in ("]", "]]"):
            closed = read_file(before + ending + brackets)
            found = _last_entry(closed, last.start, nested=brackets == "]]")
            if found is None or found[0].end != offset + len(ending):
                continue  # nothing, or a blank or comma stands behind it
            span, index, items = found
            if string is None and before[span.start : span.start + 1] in (*_QUOTES, "["):
                return None  # just behind a string or list that is complete
            if any(
                each.code == "P105" and _place(closed.text, each).start == span.start
                for each in closed.errors
            ):
                return None  # a comma has to come first
            return _Cursor(last.name, index, brackets == "]]", span.start, mark, items, closed)
    return None


def _last_entry(
    closed: Document, start: int, *, nested: bool
) -> tuple[Span, int, tuple[object, ...]] | None:
    """Where the last entry (or item of it) of the list at the end is, its step, what precedes."""
    whole = closed.lists[-1] if closed.lists else None
    if whole is None or whole.start != start or whole.end != len(closed.text):
        return None
    if not whole.entries:
        return None
    index, entry = len(whole.entries) - 1, whole.entries[-1]
    if not nested:
        return entry.span, index, ()
    if not isinstance(entry.value, Items) or not entry.value:
        return None
    return entry.value.spans[-1], index, tuple(entry.value[:-1])


def completion(
    source: Source, offset: int, *, snippets: bool = False
) -> list[types.CompletionItem]:
    """What may be written at a place: workers, steps to read, or a label.

    Args:
        source: The file.
        offset: Where the cursor is.
        snippets: Whether the editor can put the cursor inside what it inserts.
    """
    cursor = _cursor(source, offset)
    if cursor is not None and cursor.name == "workers":
        return _complete(source, offset, cursor, _workers(source, cursor))
    if cursor is not None and cursor.name == "access":
        return _complete(source, offset, cursor, _grants(source, offset, cursor))
    if cursor is None or not cursor.mark:
        return _labels(source, offset, snippets)
    return []


@dataclass(frozen=True, slots=True)
class _Choice:
    """Something that may stand in a list."""

    label: str
    kind: types.CompletionItemKind
    detail: str
    told: str = ""
    string: bool = False
    """To be written in quotes."""


def _complete(
    source: Source, offset: int, cursor: _Cursor, choices: Iterator[_Choice]
) -> list[types.CompletionItem]:
    """Write choices in place of what has been begun, in its quotes if it has some."""
    target = _target(source, offset)
    end = target.span.end if target is not None and target.span.start == cursor.start else offset
    if _LINE_END.search(source.text, cursor.start, end):
        end = offset
    place = source.range(Span(cursor.start, end))
    mark = cursor.mark if cursor.mark in ('"', "'") else '"'
    found: list[types.CompletionItem] = []
    for each in choices:
        if cursor.mark and not each.string:
            continue
        written = f"{mark}{each.label}{mark}" if each.string else each.label
        begun = f"{cursor.mark}{each.label}" if cursor.mark else each.label
        item = types.CompletionItem(
            label=each.label,
            kind=each.kind,
            detail=visible(each.detail),
            documentation=visible(each.told, "\n") or None,
            sort_text=f"{len(found):04}",
            filter_text=begun,
            text_edit=types.TextEdit(place, written),
        )
        found.append(item)
    return found


def _workers(source: Source, cursor: _Cursor) -> Iterator[_Choice]:
    kind = types.CompletionItemKind
    if source.pool is None:
        values = [*_values(source, cursor, "workers")]
        names = (v for v in values if isinstance(v, str) and v.strip() and _number(v) is None)
        begun = cursor.closed.text[cursor.start + len(cursor.mark) : -1 - len(cursor.mark)]
        for name in dict.fromkeys(names):
            if name != begun and name.isprintable() and not set(name) & set("\"'\\"):
                yield _Choice(name, kind.EnumMember, "named in this plan", string=True)
        return
    for at, (name, table) in enumerate(source.pool.workers.items()):
        detail = f"{at} · {table.kind} · {table.model}"
        told = "\n".join(filter(None, (table.card, ", ".join(table.tags))))
        yield _Choice(name, kind.EnumMember, detail, told, string=True)
    for at, name in enumerate(source.names):
        yield _Choice(str(at), kind.Value, name)


def _grants(source: Source, offset: int, cursor: _Cursor) -> Iterator[_Choice]:
    kind = types.CompletionItemKind
    subtasks = [*_values(source, cursor, "subtasks")]
    taken = {str(item) for item in cursor.items}
    entry = source.document.entry("access", cursor.index)
    if cursor.nested and entry is not None and isinstance(entry.value, Items):
        spans = zip(entry.value, entry.value.spans, strict=True)
        taken |= {str(value) for value, span in spans if span.start > offset}
    if not cursor.nested:
        yield _Choice("[]", kind.Value, "just the query")
    for at in range(cursor.index):
        told = str(subtasks[at]) if at < len(subtasks) else ""
        if str(at) not in taken:
            label = str(at) if cursor.nested else f"[{at}]"
            yield _Choice(label, kind.Value, _excerpt(told), told)
    if cursor.index and not taken:
        yield _Choice("all", kind.Keyword, "every earlier step", string=True)


def _values(source: Source, cursor: _Cursor, name: ListName) -> Iterator[object]:
    """The entries of a list: of the whole file, or if that can't be read, of what is before."""
    for document in (source.document, cursor.closed):
        for each in document.lists:
            if each.name == name and each.entries:
                yield from (entry.value for entry in each.entries)
                return


def _labels(source: Source, offset: int, snippets: bool) -> list[types.CompletionItem]:
    """The lists that the file does not have yet, where a line begins."""
    line = bisect_right(source.starts, offset) - 1
    start = source.starts[line]
    if not re.fullmatch(r"\w*", source.text[start:offset]):
        return []
    present = {each.name for each in source.document.lists}
    place = source.range(Span(start, offset))
    return [
        types.CompletionItem(
            label=name,
            kind=types.CompletionItemKind.Property,
            detail=told,
            sort_text=str(at),
            text_edit=types.TextEdit(place, f"{name:<8} = [{'$0]' if snippets else ''}"),
            insert_text_format=types.InsertTextFormat.Snippet if snippets else None,
        )
        for at, (name, told) in enumerate(_LABELS.items())
        if name not in present
    ]


# --- rename, and the outline -------------------------------------------------------------------


def renameable(source: Source, offset: int) -> types.PrepareRenamePlaceholder | None:
    """The worker at a place, as it may be renamed."""
    target = _worker_at(source, offset)
    if target is None:
        return None
    span = target.span
    written = source.text[span.start : span.end]
    if isinstance(target.value, str):
        width = 3 if written.startswith(('"""', "'''")) else 1
        span = Span(span.start + width, span.end - width)
    shown = _named(source, target.value) or str(target.value)
    return types.PrepareRenamePlaceholder(source.range(span), visible(shown))


def rename(source: Source, offset: int, new: str) -> list[types.TextEdit]:
    """Give the worker at a place another name, or number, wherever the file has it.

    Asked on a name, it leaves numbers alone. Asked on a number, it changes that number, and the
    name that it stands for.

    Raises:
        ValueError: If there is no worker at this place, or the new name is blank.
    """
    target = _worker_at(source, offset)
    if target is None:
        raise ValueError("only workers can be renamed; put the cursor on an entry of `workers`")
    new = new.strip()
    if not new:
        raise ValueError("the new name of a worker is blank; write a name of the pool")
    written = str(int(new)) if _number(new) is not None else quote(new)
    number, name = _number(target.value), _named(source, target.value)

    def same(value: object) -> bool:
        if number is None:
            return value == target.value
        return _number(value) == number or (name is not None and value == name)

    return [
        types.TextEdit(source.range(entry.span), written)
        for each in source.document.lists
        if each.name == "workers"
        for entry in each.entries
        if isinstance(entry.value, str | int) and same(entry.value)
    ]


def _worker_at(source: Source, offset: int) -> _Target | None:
    target = _target(source, offset)
    if target is None or target.name != "workers":
        return None
    named = isinstance(target.value, str) and bool(target.value.strip())
    return target if named or _number(target.value) is not None else None


def symbols(source: Source) -> list[types.DocumentSymbol]:
    """The steps, as the outline of the file."""
    document = source.document
    found = []
    for each in document.lists:
        if each.name != "subtasks":
            continue
        for index, entry in enumerate(each.entries):
            worker = document.entry("workers", index)
            access = document.entry("access", index)
            told = []
            if worker is not None:
                told.append(str(_named(source, worker.value) or worker.value))
            if access is not None and access.value:
                told.append("reads " + source.text[access.span.start : access.span.end].strip("[]"))
            place = source.range(entry.span)
            found.append(
                types.DocumentSymbol(
                    name=visible(f"{index} {_excerpt(str(entry.value))}"),
                    detail=visible(_excerpt(" · ".join(told))),
                    kind=types.SymbolKind.Function,
                    range=place,
                    selection_range=place,
                )
            )
    return found


# --- the server --------------------------------------------------------------------------------


class _Pools:
    """The pool files in use, read again when they change."""

    def __init__(self, given: Path | None) -> None:
        self._given = given
        self._read: dict[Path, tuple[object, PoolFile | None]] = {}

    def of(self, path: Path | None, tell: Callable[[str], None]) -> PoolFile | None:
        """Find the pool of a plan file: the given one, or the nearest going up the folders.

        Args:
            path: The plan file; None if it has not been saved.
            tell: Is told once, in a line, what is wrong with a pool file.
        """
        file = self._given or self._nearest(path)
        if file is None:
            return None
        try:
            stat = file.stat()
            stamp: object = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except OSError:
            stamp = None
        if file not in self._read or self._read[file][0] != stamp:
            try:
                pool = PoolFile.read(file)
            except PoolError as error:
                tell(visible(str(error).splitlines()[0]))
                pool = None
            self._read[file] = stamp, pool
        return self._read[file][1]

    def _nearest(self, path: Path | None) -> Path | None:
        folders = () if path is None else path.parents
        found = (folder / POOL_FILE for folder in folders)
        return next((each for each in found if each.is_file()), None)


def server(pool: Path | None = None) -> LanguageServer:
    """Make the server.

    Args:
        pool: The pool file for all plans; else the ``conductor.toml`` nearest to each.
    """
    # Whole texts only: pygls cuts lines where Python does, editors do not.
    made = LanguageServer(
        "conductor",
        installed_version("conductor-lm"),
        text_document_sync_kind=types.TextDocumentSyncKind.Full,
    )
    pools = _Pools(pool)
    folder = None if pool is None else from_fs_path(str(pool.resolve().parent))

    def source(uri: str) -> Source:
        path = to_fs_path(uri) if uri.startswith("file:") else None

        def tell(text: str) -> None:
            made.window_show_message(types.ShowMessageParams(types.MessageType.Warning, text))

        text = made.workspace.get_text_document(uri).source
        described = pools.of(Path(path) if path else None, tell)
        return Source(text, described, made.workspace.position_codec)

    def publish(uri: str) -> None:
        version = made.workspace.get_text_document(uri).version
        found = diagnostics(source(uri))
        made.text_document_publish_diagnostics(
            types.PublishDiagnosticsParams(uri, found, version=version)
        )

    def able(capability: str, default: object = False) -> object:
        return get_capability(made.client_capabilities, capability, default)

    @made.feature(types.INITIALIZED)
    async def _(params: types.InitializedParams) -> None:
        if not able("workspace.did_change_watched_files.dynamic_registration"):
            return  # changes of the pool are seen with the next change of a plan
        pattern: str | types.RelativePattern = f"**/{POOL_FILE}"
        if pool is not None:
            relative = able("workspace.did_change_watched_files.relative_pattern_support")
            known = relative and folder is not None
            pattern = types.RelativePattern(folder or "", pool.name) if known else f"**/{pool.name}"
        watched = types.DidChangeWatchedFilesRegistrationOptions([types.FileSystemWatcher(pattern)])
        registration = types.Registration("pool", types.WORKSPACE_DID_CHANGE_WATCHED_FILES, watched)
        await made.client_register_capability_async(types.RegistrationParams([registration]))

    @made.feature(types.WORKSPACE_DID_CHANGE_WATCHED_FILES)
    def _(params: types.DidChangeWatchedFilesParams) -> None:
        for document in made.workspace.text_documents.values():
            publish(document.uri)

    @made.feature(types.TEXT_DOCUMENT_DID_OPEN)
    def _(params: types.DidOpenTextDocumentParams) -> None:
        publish(params.text_document.uri)

    @made.feature(types.TEXT_DOCUMENT_DID_CHANGE)
    def _(params: types.DidChangeTextDocumentParams) -> None:
        publish(params.text_document.uri)

    @made.feature(types.TEXT_DOCUMENT_DID_SAVE)
    def _(params: types.DidSaveTextDocumentParams) -> None:
        publish(params.text_document.uri)

    @made.feature(types.TEXT_DOCUMENT_DID_CLOSE)
    def _(params: types.DidCloseTextDocumentParams) -> None:
        made.text_document_publish_diagnostics(
            types.PublishDiagnosticsParams(params.text_document.uri, [])
        )

    @made.feature(types.TEXT_DOCUMENT_HOVER)
    def _(params: types.HoverParams) -> types.Hover | None:
        at = source(params.text_document.uri)
        formats = able("text_document.hover.content_format", None) or []
        markdown = types.MarkupKind.Markdown in formats  # type: ignore[operator]  # a sequence
        return hover(at, at.offset(params.position), markdown=markdown)

    triggers = types.CompletionOptions(trigger_characters=['"', "'", "[", ","])

    @made.feature(types.TEXT_DOCUMENT_COMPLETION, triggers)
    def _(params: types.CompletionParams) -> list[types.CompletionItem]:
        at = source(params.text_document.uri)
        snippets = able("text_document.completion.completion_item.snippet_support")
        return completion(at, at.offset(params.position), snippets=bool(snippets))

    @made.feature(types.TEXT_DOCUMENT_PREPARE_RENAME)
    def _(params: types.PrepareRenameParams) -> types.PrepareRenamePlaceholder | None:
        at = source(params.text_document.uri)
        return renameable(at, at.offset(params.position))

    @made.feature(types.TEXT_DOCUMENT_RENAME, types.RenameOptions(prepare_provider=True))
    def _(params: types.RenameParams) -> types.WorkspaceEdit:
        at = source(params.text_document.uri)
        try:
            edits = rename(at, at.offset(params.position), params.new_name)
        except ValueError as error:
            raise JsonRpcInvalidParams(str(error)) from error
        return _edit(params.text_document.uri, edits)

    @made.feature(types.TEXT_DOCUMENT_FORMATTING)
    def _(params: types.DocumentFormattingParams) -> list[types.TextEdit]:
        return formatting(source(params.text_document.uri))

    kinds = [types.CodeActionKind.QuickFix, types.CodeActionKind.SourceFixAll]

    @made.feature(types.TEXT_DOCUMENT_CODE_ACTION, types.CodeActionOptions(kinds))
    def _(params: types.CodeActionParams) -> list[types.CodeAction]:
        uri = params.text_document.uri
        only = params.context.only
        wanted = None if only is None else [getattr(each, "value", each) for each in only]
        return code_actions(source(uri), uri, params.range, wanted)

    @made.feature(types.TEXT_DOCUMENT_DOCUMENT_SYMBOL)
    def _(params: types.DocumentSymbolParams) -> list[types.DocumentSymbol]:
        return symbols(source(params.text_document.uri))

    return made


def serve(pool: Path | None = None) -> None:
    """Talk to an editor over standard input and output until it says goodbye."""
    server(pool).start_io()
