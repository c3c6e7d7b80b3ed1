"""One model from outside: the team behind the OpenAI-compatible API. Needs the extra ``serve``."""

from .app import Limits, Server
from .keys import Key, Keyring, KeysError, add_key, new_key, read_keys

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
