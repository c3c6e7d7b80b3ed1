"""One model from outside: the team behind the OpenAI-compatible API. Needs the extra ``serve``."""

from .app import Server
from .keys import Key, Keyring, KeysError, add_key, new_key, read_keys
from .traffic import Limits

__all__ = [
    "Key",
    "Keyring",
    "KeysError",
    "Limits",
    "Server",
    "add_key",
    "new_key",
    "read_keys",
]
