"""Who asks: a client's account, and the part of the team that it sees."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..orchestrator import Conductor
from .keys import Account, Key, Keyring
from .policies import Policies, Policy
from .refusals import Refusal


@dataclass(slots=True)
class Caller:
    """A client: its account, and the part of the team that it sees."""

    account: Account
    team: Conductor
    policies: Policies

    @property
    def name(self) -> str:
        """Name of the key; empty where no keys are needed."""
        return self.account.key.name

    def find(self, model: str) -> Policy:
        """Look a model id up.

        Raises:
            Refusal: If there is none, or the key may not use it.
        """
        policy = self.policies.find(model)
        allowed = self.account.key.models
        if allowed and policy.name not in allowed:
            told = f"the key {self.name} may use the models {', '.join(allowed)} only"
            raise Refusal(403, told, param="model", code="model_not_allowed")
        return policy


class Callers:
    """The clients of a server.

    Args:
        team: Who answers.
        keys: Who may ask; anybody if None.
    """

    def __init__(self, team: Conductor, keys: Keyring | None) -> None:
        self._team = team
        self._keys = keys
        self._created = int(time.time())
        self._known: dict[str, Caller] = {}
        self._anybody = self._of(Account(Key("")))

    def admit(self, authorization: str) -> Caller:
        """Who asks.

        Args:
            authorization: The header of this name.

        Raises:
            Refusal: 401.
        """
        if self._keys is None:
            return self._anybody
        kind, _, secret = authorization.partition(" ")
        account = self._keys.find(secret.strip()) if kind.lower() == "bearer" else None
        if account is None:
            told = "no valid key: send Authorization: Bearer KEY; `conductor keys add` makes one"
            raise Refusal(401, told, code="invalid_api_key")
        return self._of(account)

    def _of(self, account: Account) -> Caller:
        known = self._known.get(account.key.name)
        if known is None:
            key = account.key
            team = self._team.within(
                only=key.only,
                without=key.without,
                tags=key.tags,
                without_tags=key.without_tags,
                caller=key.name,
            )
            known = Caller(account, team, Policies(team, self._created))
            self._known[key.name] = known
        return known
