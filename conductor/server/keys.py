"""Keys of clients: which there are, what each may do and has done.

A key is 32 random bytes behind ``sk-conductor-``; the file keeps its SHA-256 only. A digest
without a salt is enough, since nobody can guess 256 bits.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import secrets
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

from runtime import Window

from .refusals import Refusal

_PREFIX = "sk-conductor-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_LISTS = ("models", "only", "without", "tags", "without_tags")
_COUNTS = ("requests_per_minute", "tokens_per_minute", "concurrency")


class KeysError(ValueError):
    """The file of keys can't be read, written, or is wrong."""


@dataclass(frozen=True, slots=True)
class Key:
    """A client, and what it may do."""

    name: str
    sha256: str = ""
    """Of the key, in hexadecimal."""
    models: tuple[str, ...] = ()
    """Model ids that it may use, without their hash; all if empty."""
    only: tuple[str, ...] = ()
    """Workers that may work for it; all if empty."""
    without: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    without_tags: tuple[str, ...] = ()
    dollars: Decimal | None = None
    """What all its runs together may cost; raise it to let it go on."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    """Most requests at the same time."""


def new_key(name: str) -> tuple[str, Key]:
    """Make a key.

    Returns:
        The secret, which nobody keeps, and what is kept.

    Raises:
        KeysError: If the name can't be one.
    """
    if not _NAME.fullmatch(name):
        raise KeysError(f"{name!r} can't name a key; use letters, digits, '.', '-' and '_'")
    secret = _PREFIX + secrets.token_urlsafe(32)
    return secret, Key(name, digest(secret))


def digest(secret: str) -> str:
    """What is kept of a key."""
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def read_keys(path: str | Path) -> tuple[Key, ...]:
    """Read a file of keys.

    Raises:
        KeysError: If it can't be read or says something unknown.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        told = "there is no such file; `conductor keys add NAME` makes it"
        raise KeysError(f"{path}: {told}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise KeysError(f"{path}: {error}") from error
    keys = []
    for name, table in data.items():
        if not isinstance(table, dict) or not _NAME.fullmatch(name):
            raise KeysError(f"{path}: {name} is no table of a key; write [NAME]")
        keys.append(_key(path, name, table))
    return tuple(keys)


def _key(path: str | Path, name: str, table: dict[str, Any]) -> Key:
    said: dict[str, Any] = {}
    for field, value in table.items():
        where = f"{path}: {name}.{field}"
        if field in _LISTS:
            if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
                raise KeysError(f"{where} must be a list of texts")
            said[field] = tuple(value)
        elif field in _COUNTS:
            if type(value) is not int or value < 1:
                raise KeysError(f"{where} must be a whole number, at least 1")
            said[field] = value
        elif field == "dollars":
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise KeysError(f"{where} must be a number over 0")
            said[field] = Decimal(str(value))
        elif field == "sha256":
            if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
                raise KeysError(f"{where} must be 64 hexadecimal digits")
            said[field] = value
        else:
            known = ", ".join(("sha256", *_LISTS, *_COUNTS, "dollars"))
            raise KeysError(f"{where}: there is no such setting; possible: {known}")
    if "sha256" not in said:
        raise KeysError(f"{path}: {name} has no sha256; make the key with `conductor keys add`")
    return Key(name, **said)


def add_key(path: str | Path, name: str) -> str:
    """Make a key and put it into a file, which only its owner can read.

    Returns:
        The secret: shown once, kept nowhere.

    Raises:
        KeysError: If the name is taken, or the file can't be written.
    """
    path = Path(path)
    known = read_keys(path) if path.exists() else ()
    if any(each.name == name for each in known):
        raise KeysError(f"{path}: there is a key {name} already; take its table out first")
    secret, key = new_key(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            table = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
            file.write(f'{"" if file.tell() == 0 else chr(10)}[{table}]\nsha256 = "{key.sha256}"\n')
    except OSError as error:
        raise KeysError(f"{path}: {error.strerror}; name another file") from error
    return secret


class Account:
    """What one client has done of late; not thread-safe, as all of a server."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self.dollars = Decimal(0)
        self.open = 0
        self._requests = _window(key.requests_per_minute)
        self._tokens = _window(key.tokens_per_minute)

    def enter(self, now: float) -> None:
        """Let a request in.

        Raises:
            Refusal: 429 if one of its limits is reached.
        """
        key = self.key
        if key.dollars is not None and self.dollars >= key.dollars:
            told = f"the key {key.name} has used up its {key.dollars} dollars"
            raise Refusal(429, f"{told}; raise dollars in the file of keys", code=_QUOTA)
        if key.concurrency is not None and self.open >= key.concurrency:
            told = f"the key {key.name} has {self.open} requests under way, its limit"
            raise Refusal(429, f"{told}; wait for one", code=_RATE, retry_after_s=1.0)
        waits = [
            window.wait_s(now, 1) for window in (self._requests, self._tokens) if window is not None
        ]
        if (wait := max(waits, default=0.0)) > 0:
            told = f"the key {key.name} is over its rate"
            raise Refusal(429, f"{told}; try in {wait:.1f} s", code=_RATE, retry_after_s=wait)
        if self._requests is not None:
            self._requests.spend(now, 1)
        self.open += 1

    def leave(self) -> None:
        """A request has ended, however."""
        self.open -= 1

    def settle(self, now: float, tokens: int, dollars: Decimal) -> None:
        """Enter what runs took."""
        self.dollars += dollars
        if self._tokens is not None:
            self._tokens.spend(now, tokens)

    def headers(self, now: float) -> dict[str, str]:
        """The limits and what is left of them."""
        told: dict[str, str] = {}
        for name, window, limit in (
            ("requests", self._requests, self.key.requests_per_minute),
            ("tokens", self._tokens, self.key.tokens_per_minute),
        ):
            if window is not None and limit is not None:
                told[f"x-ratelimit-limit-{name}"] = str(limit)
                told[f"x-ratelimit-remaining-{name}"] = str(max(0, window.left(now)))
                told[f"x-ratelimit-reset-{name}"] = f"{window.wait_s(now, limit):.3f}s"
        return told


_QUOTA, _RATE = "insufficient_quota", "rate_limit_exceeded"


def _window(limit: int | None) -> Window | None:
    return Window(limit) if limit is not None else None


class Keyring:
    """All keys of a server, and their accounts.

    Args:
        keys: The keys.
        spent: A file in which it is kept what each has spent; forgotten with the process if None.
    """

    def __init__(self, keys: Iterable[Key], *, spent: str | Path | None = None) -> None:
        self.accounts = {key.name: Account(key) for key in keys}
        self._spent = None if spent is None else Path(spent)
        if self._spent is not None:
            with suppress(FileNotFoundError):
                self._read(self._spent)

    def _read(self, file: Path) -> None:
        try:
            for name, dollars in json.loads(file.read_text(encoding="utf-8")).items():
                if name in self.accounts:
                    self.accounts[name].dollars = Decimal(dollars)
        except (ValueError, ArithmeticError, AttributeError, TypeError) as error:
            told = "does not say what keys have spent; move it away to begin at 0"
            raise KeysError(f"{file}: {told}") from error

    def find(self, secret: str) -> Account | None:
        """The account of a key, in a time that tells nothing of the others."""
        given, found = digest(secret), None
        for account in self.accounts.values():
            if hmac.compare_digest(given, account.key.sha256):
                found = account
        return found

    def keep(self) -> None:
        """Write down what was spent; the file is whole at any moment.

        Raises:
            OSError: If it can't be written.
        """
        if self._spent is None:
            return
        told = {name: str(account.dollars) for name, account in self.accounts.items()}
        draft = self._spent.with_name(self._spent.name + ".new")
        descriptor = os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(told, file)
        draft.replace(self._spent)
