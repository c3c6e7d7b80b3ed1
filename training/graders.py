"""Graders: how right a completion is, from 0 to 1.

Pure, but for two: code runs, in a sandbox only; mathematics and reasoning-gym's scorers compute in
a process of their own, since some replies would keep them busy for ever.

A grader is data that travels with its task. Small models answer in a word, large ones in a
paragraph; so one rule (:func:`final`) finds what a completion finally says, and a grader compares
that. Where a completion names several answers, it is wrong: guessing does not pay.
"""

from __future__ import annotations

import atexit
import json
import re
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator


class GraderError(Exception):
    """A grader can't work here: a package or the sandbox is missing. The message has the remedy."""


@dataclass(frozen=True, slots=True)
class Exact:
    """The final answer is one of these, but for case, spaces, quotes and punctuation around it."""

    answers: tuple[str, ...]
    kind: Literal["exact"] = "exact"


@dataclass(frozen=True, slots=True)
class Number:
    """The last number of the final answer is this one."""

    answer: str
    """Decimal; thousands separators are not minded."""
    tolerance: float = 0.0
    """Largest absolute difference."""
    kind: Literal["number"] = "number"


@dataclass(frozen=True, slots=True)
class Series:
    """The final answer lists these items in this order, however they are separated.

    Items of one character may also stand together: ``e v i f`` or ``evif``.
    """

    items: tuple[str, ...]
    kind: Literal["series"] = "series"


@dataclass(frozen=True, slots=True)
class Choice:
    """The final answer names this option and none of the others."""

    answer: str
    options: tuple[str, ...]
    kind: Literal["choice"] = "choice"


@dataclass(frozen=True, slots=True)
class Mention:
    """The completion names one of these answers, as words, and nothing that would be wrong."""

    answers: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    """What must not be named. What the question names is no matter, unless it names them all,
    answers and wrong ones: then it asks for a choice among them."""
    cased: bool = False
    """Whether capitals matter: chemical symbols."""
    kind: Literal["mention"] = "mention"


@dataclass(frozen=True, slots=True)
class Sentence:
    """The completion is a text of its own: it has these words, and enough that were not given."""

    words: tuple[str, ...]
    """Each must begin a word of the completion."""
    own: int = 4
    """Fewest different words that the question does not have."""
    wrong: tuple[str, ...] = ()
    """Words that must not be there."""
    kind: Literal["sentence"] = "sentence"


@dataclass(frozen=True, slots=True)
class Maths:
    """The final answer equals this expression (LaTeX or plain), by math-verify."""

    answer: str
    kind: Literal["maths"] = "maths"


@dataclass(frozen=True, slots=True)
class Gym:
    """What reasoning-gym's own scorer says of the final answer."""

    name: str
    """Of the family in reasoning-gym."""
    entry: str
    """The entry as JSON."""
    kind: Literal["gym"] = "gym"


@dataclass(frozen=True, slots=True)
class Code:
    """The last code block of the completion passes these tests, run in a sandbox."""

    tests: str
    """Python, run after the code; an exception fails it."""
    seconds: float = 10.0
    kind: Literal["code"] = "code"


Grader: TypeAlias = Annotated[
    Exact | Number | Series | Choice | Mention | Sentence | Maths | Gym | Code,
    Discriminator("kind"),
]


def grade(grader: Grader, completion: str, question: str = "") -> float:
    """Grade a completion.

    Args:
        grader: What is asked of it.
        completion: The worker's text.
        question: What the worker was asked; what it only repeats does not count.

    Returns:
        1 if right, 0 if wrong; reasoning-gym's scorers also give parts.

    Raises:
        GraderError: If the grader can't work here.
    """
    match grader:
        case Exact(answers):
            found = _plain(final(completion))
            return float(found != "" and found in map(_plain, answers))
        case Number(answer, tolerance):
            number = _last_number(final(completion))
            wanted = _last_number(answer)
            if number is None or wanted is None:
                return 0.0
            return float(abs(number - wanted) <= Decimal(str(tolerance)))
        case Series(items):
            return float(_lists(final(completion), items))
        case Choice(answer, options):
            said = final(completion)
            named = {option for option in (*options, answer) if _names(said, option)}
            return float(named == {answer})
        case Mention(answers, wrong, cased):
            own = _named(grader, completion, question)
            right = any(_names(completion, answer, cased) for answer in answers)
            return float(right and not any(other in own for other in {*wrong} - {*answers}))
        case Sentence(words, own, wrong):
            written = _words(completion)
            fresh = set(written) - set(_words(question))
            has_all = all(any(each.startswith(word.lower()) for each in written) for word in words)
            astray = any(_names(completion, each) for each in wrong)
            return float(has_all and len(fresh) >= own and not astray)
        case Maths(answer):
            return _maths(answer, completion)
        case Gym(name, entry):
            return _gym(name, entry, final(completion))
        case Code(tests, seconds):
            return float(run_code(_code(completion), tests, seconds))


# --- votes ----------------------------------------------------------------------------------------


def plurality(grader: Grader, completions: Sequence[str], question: str = "") -> int:
    """Choose the answer that is given most often; knows the kind of answer, not the right one.

    Args:
        grader: Says in which sense two answers are the same: as numbers, as lists, as values.
        completions: At least one.
        question: What was asked; what only repeats it is no answer.

    Returns:
        Where the first of the largest group is. Of groups of one size the earliest wins, and a
        completion that gives no answer loses against any that does.

    Raises:
        ValueError: If there are no completions.
        GraderError: If the grader can't work here.
    """
    if not completions:
        raise ValueError("a vote needs at least one completion")
    groups: list[tuple[Hashable, list[int]]] = []
    for at, completion in enumerate(completions):
        said = answer_of(grader, completion, question)
        for other, members in groups:
            if said == other or (said and other and _same_value(grader, str(said), str(other))):
                members.append(at)
                break
        else:
            groups.append((said, [at]))
    _, members = max(groups, key=lambda group: (group[0] is not None, len(group[1])))
    return members[0]


def answer_of(grader: Grader, completion: str, question: str = "") -> Hashable:
    """Bring what a completion answers to a form in which equal answers are equal.

    Args:
        grader: Says what kind of answer it is. Which one is right makes no difference.
        completion: The worker's text.
        question: What it only repeats of this is no answer.

    Returns:
        None if it gives no answer of that kind.
    """
    match grader:
        case Number():
            return _last_number(final(completion))
        case Series(items):
            parts = re.findall(r"[^\W_]+", final(completion).casefold())
            if len(parts) == 1 and all(len(item) == 1 for item in items):
                parts = list(parts[0])
            return tuple(parts) or None
        case Choice(answer, options):
            said = final(completion)
            return frozenset(o for o in {*options, answer} if _names(said, o)) or None
        case Mention(wrong=wrong) if wrong:
            return _named(grader, completion, question) or None
        case Code():
            return _code(completion).strip() or None
        case Sentence():
            return _plain(completion) or None
        case Exact() | Mention() | Maths() | Gym():
            return _plain(final(completion)) or None


def _named(grader: Mention, completion: str, question: str) -> frozenset[str]:
    """Answers and wrong ones that a completion names of its own accord."""
    known = frozenset({*grader.answers, *grader.wrong})
    asked = {name for name in known if _names(question, name, grader.cased)}
    mine = known if asked == known else known - asked
    return frozenset(name for name in mine if _names(completion, name, grader.cased))


def _same_value(grader: Grader, one: str, other: str) -> bool:
    return isinstance(grader, Maths) and _maths(one, other) == 1.0


# --- what a completion says -----------------------------------------------------------------------

_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_ANSWER = re.compile(r"\banswer(?:\s+is|\s*:|\s*=)+", re.IGNORECASE)


def final(completion: str) -> str:
    r"""Find what a completion finally says.

    That is the content of its last ``\boxed{}``; or else what follows its last "answer is" or
    "answer:" on that line; or else its last line that is not blank, after the last colon that a
    space follows, if there is one.
    """
    if boxed := _BOXED.findall(completion):
        return str(boxed[-1]).strip()
    *before, last = _ANSWER.split(completion)
    if before and (said := last.strip().partition("\n")[0].strip()):
        return said
    lines = [line.strip() for line in completion.splitlines() if line.strip()]
    if not lines:
        return ""
    _, colon, after = lines[-1].rpartition(": ")
    return after.strip() if colon and after.strip() else lines[-1]


def _plain(text: str) -> str:
    """Fold case and spaces, and take off quotes, punctuation and emphasis at both ends."""
    return " ".join(text.casefold().split()).strip(" \t\"'`*_.,;:!?()[]“”‘’")


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def _names(text: str, name: str, cased: bool = False) -> bool:
    flags = 0 if cased else re.IGNORECASE
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, flags) is not None


_NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?")


def _last_number(text: str) -> Decimal | None:
    """The last number; in "12 - 5 = 7" and "10-7" a dash between numbers is no sign."""
    found = None
    for match in _NUMBER.finditer(text):
        digits = match[0].replace(",", "").replace("−", "-")
        before = text[: match.start()].rstrip()
        if digits.startswith("-") and before[-1:].isalnum():
            digits = digits[1:]
        try:
            found = Decimal(digits)
        except InvalidOperation:
            continue
    return found


def _lists(said: str, items: tuple[str, ...]) -> bool:
    wanted = [item.casefold() for item in items]
    parts = re.findall(r"[^\W_]+", said.casefold())
    if all(len(item) == 1 for item in items):
        return parts in (wanted, ["".join(wanted)])
    return parts == wanted


def _maths(answer: str, completion: str) -> float:
    return _referee.score(Maths(answer), completion)


def _gym(name: str, entry: str, said: str) -> float:
    return _referee.score(Gym(name, entry), said)


# --- what may compute for ever --------------------------------------------------------------------

_LOADING_S = 300.0
_MOST_MEMORY = 4 << 30
_PACKAGES = {"maths": ("math_verify", "math-verify"), "gym": ("reasoning_gym", "reasoning-gym")}


class Referee:
    """Grades in a process of its own, which is killed where it computes for too long.

    A signal can't stop Python in the middle of a power or a simplification, and a thread even less.

    Args:
        patience_s: Longest time for one reply.
    """

    def __init__(self, patience_s: float = 10.0) -> None:
        self._patience_s = patience_s
        self._loaded: set[str] = set()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def score(self, grader: Maths | Gym, completion: str) -> float:
        """Grade; a reply that takes too long to judge, or breaks the judge, is wrong.

        Raises:
            GraderError: If the package that judges is not installed.
        """
        module, distribution = _PACKAGES[grader.kind]
        if find_spec(module) is None:
            told = f"{distribution} is missing: pip install 'conductor-lm[train]'"
            raise GraderError(told)
        with self._lock:
            if module not in self._loaded:
                self._ask([{"kind": "load", "module": module}, ""], _LOADING_S)
                self._loaded.add(module)
            return float(self._ask([asdict(grader), completion], self._patience_s) or 0.0)

    def _ask(self, question: list[Any], seconds: float) -> str:
        """Send a line and wait for one; empty if none comes in time."""
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            said = process.stdout.readline()
        except OSError:  # it has died meanwhile
            said = ""
        finally:
            timer.cancel()
        if not said:
            self.end()
        return said

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-W", "ignore", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        self._process = process
        return process

    def end(self) -> None:
        """Let the process go."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        self._loaded.clear()


_referee = Referee()
atexit.register(_referee.end)


def _judge() -> None:
    """Be the referee: a grader and a reply a line, a score a line."""
    with suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    out = sys.stdout
    sys.stdout = sys.stderr  # what a scorer prints is no score
    for line in sys.stdin:
        about, completion = json.loads(line)
        try:
            if about["kind"] == "load":
                score = float(bool(import_module(about["module"])))
                if about["module"] == "math_verify":  # its grammar is built at the first use
                    _verified("1", "1")
            elif about["kind"] == "maths":
                score = _verified(about["answer"], completion)
            else:
                score = _scored(about["name"], about["entry"], completion)
        except Exception:  # whatever a reply does to a scorer: it is no answer
            score = 0.0
        out.write(f"{score}\n")
        out.flush()


def _verified(answer: str, completion: str) -> float:
    from math_verify import parse, verify

    wanted = parse(answer if "$" in answer else f"${answer}$", parsing_timeout=None)
    said = completion if _BOXED.search(completion) else final(completion)
    found = parse(said, parsing_timeout=None) or parse(f"${said}$", parsing_timeout=None)
    return float(bool(verify(wanted, found, timeout_seconds=None)))


def _scored(name: str, entry: str, said: str) -> float:
    import reasoning_gym

    return float(reasoning_gym.get_score_answer_fn(name)(answer=said, entry=json.loads(entry)))


# --- code -----------------------------------------------------------------------------------------

_FENCE = re.compile(r"^```[^\n`]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def _code(completion: str) -> str:
    """Take the last fenced block; the whole text if there is none."""
    blocks = _FENCE.findall(completion)
    return str(blocks[-1]) if blocks else completion


_HARNESS = """\
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
code, tests, passed = sys.stdin.read().split(chr(0))
space = {"__name__": "solution"}
exec(compile(code, "solution", "exec"), space)
exec(compile(tests, "tests", "exec"), space)
sys.stdout.write(passed)
"""


def run_code(code: str, tests: str, seconds: float) -> bool:
    """Run Python and its tests in a sandbox: no network, no files but the system's, read-only.

    Args:
        code: Written by a model.
        tests: Run after it, in the same names.
        seconds: Longest run, wall time.

    Returns:
        Whether both ran to the end. Exiting early does not pass.

    Raises:
        GraderError: If there is no sandbox. Code is never run without one.
    """
    sandbox = shutil.which("bwrap")
    if sandbox is None:
        raise GraderError(
            "code is graded in a sandbox only, and bubblewrap is not installed: "
            "apt install bubblewrap (or dnf, pacman, apk); Linux only"
        )
    passed = secrets.token_hex(16)
    command = [sandbox, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    for folder in ("/usr", "/lib", "/lib64", "/bin", sys.base_prefix):
        if Path(folder).exists():
            command += ["--ro-bind", folder, folder]
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--chdir", "/tmp"]  # noqa: S108
    python = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    command += [str(python), "-I", "-S", "-c", _HARNESS]
    try:
        done = subprocess.run(  # noqa: S603
            command,
            input="\0".join((code.replace("\0", ""), tests, passed)),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return False
    if done.stderr.startswith("bwrap:"):
        raise GraderError(f"the sandbox does not start: {done.stderr.splitlines()[0]}")
    return done.returncode == 0 and done.stdout.endswith(passed)


if __name__ == "__main__":
    _judge()
