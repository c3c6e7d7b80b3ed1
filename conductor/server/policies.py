"""Model ids: what a client writes in ``model``, and what it stands for.

``conductor`` writes a plan, ``trinity`` lets the router pick one worker, ``worker/NAME`` asks that
one. With ``@`` and a hash an id is pinned: it names this policy with this pool, these prices and
this checkpoint, so that an evaluation can be repeated or fails.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

from runtime import ConductorWorker, Endpoint, LocalWorker, Pool, Worker

from ..orchestrator import Conductor
from ..router import Router, RouterError
from .refusals import Refusal

_DIGITS = 12
_WORKER = "worker/"


@dataclass(frozen=True, slots=True)
class Policy:
    """What an id stands for."""

    name: str
    """conductor, trinity, or worker/NAME."""
    digest: str

    @property
    def pinned(self) -> str:
        """The id that says exactly this."""
        return f"{self.name}@{self.digest}"

    @property
    def worker(self) -> str | None:
        """The worker that answers alone, if one is named."""
        return self.name.removeprefix(_WORKER) if self.name.startswith(_WORKER) else None


class Policies:
    """The ids that a team answers to.

    Args:
        team: The team. Digests are worked out once: a team is a value.
        created: Seconds since 1970, for lists of models.
    """

    def __init__(self, team: Conductor, created: int) -> None:
        pool = team.pool
        self._created = created
        self._workers = {
            f"{_WORKER}{worker.name}": worker
            for worker in pool
            if not isinstance(worker, ConductorWorker)
        }
        described = {worker.name: _described(pool, worker) for worker in pool}
        planner = team.planner
        plans = {
            "pool": list(described.items()),
            "planner": _described(pool, planner.worker),
            "planning": asdict(planner.settings),
            "run": asdict(pool.settings),
        }
        names = {"conductor": _digest("conductor", plans)}
        if team.router is not None:
            names["trinity"] = _digest("trinity", [plans, _decider(team.router)])
        for name, worker in self._workers.items():
            names[name] = _digest(name, described[worker.name])
        self._known = {name: Policy(name, digest) for name, digest in names.items()}

    def find(self, model: str) -> Policy:
        """Look an id up, pinned or not.

        Raises:
            Refusal: 404 if there is none, or what it was pinned to has changed.
        """
        name, at, digest = model.partition("@")
        policy = self._known.get(name)
        if policy is None:
            if name == "trinity":
                told = "no router is configured, so there is no model 'trinity'"
                remedy = "serve with --router, name one in the pool file, or use 'conductor'"
                raise _unknown(f"{told}; {remedy}")
            near = ", ".join([*self._known][:12])
            raise _unknown(f"there is no model {model[:100]!r}; there are: {near}")
        if at and digest != policy.digest:
            told = f"{model[:100]!r} is not what this server runs now, which is {policy.pinned!r}"
            remedy = "pool, prices or checkpoint have changed; restore them, or use the present id"
            raise _unknown(f"{told}: {remedy}")
        return policy

    def __iter__(self) -> Iterator[Policy]:
        return iter(self._known.values())

    def described(self, policy: Policy, asked: str = "") -> dict[str, Any]:
        """A model as the API lists it.

        Args:
            policy: Which.
            asked: The id by which it was asked for.
        """
        told: dict[str, Any] = {
            "id": asked or policy.name,
            "object": "model",
            "created": self._created,
            "owned_by": "conductor",
            "pinned": policy.pinned,
        }
        worker = self._workers.get(policy.name)
        if worker is not None:
            told["card"] = worker.card
            told["tags"] = list(worker.tags)
        return told


def _unknown(told: str) -> Refusal:
    return Refusal(404, told, param="model", code="model_not_found")


def _described(pool: Pool, worker: Worker) -> dict[str, Any]:
    terms = pool.terms(worker)
    return {
        "identity": worker.identity,
        "card": worker.card,
        "tags": worker.tags,
        "terms": asdict(replace(terms, price=None)),
        "price": _price(pool, worker),
    }


def _decider(router: Router) -> dict[str, Any]:
    """What decides a router's picks: its head, and what that reads."""
    encoder = router.encoder
    try:
        read = encoder.digest
    except RouterError:  # the backbone comes with the first pick
        read = encoder.id
    return {
        "head": sha256(router.head.weight.tobytes()).hexdigest(),
        "workers": router.head.workers,
        "encoder": read,
        "roles": router.roles,
        "turns": router.turns,
        "sample": router.sample,
        "seed": router.seed,
    }


def _price(pool: Pool, worker: Worker) -> Any:
    """What decides the cost: the given price; else the tokens of a made-up call, at the published
    one."""
    from runtime import Usage

    if isinstance(worker, LocalWorker):
        return 0
    if not isinstance(worker, Endpoint) and pool.terms(worker).price is None:
        return 0
    sample = Usage(1_000_000, 0), Usage(0, 1_000_000), Usage(1_000_000, 0, 1_000_000)
    return [str(pool.cost(worker, usage)) for usage in sample]


def _digest(name: str, parts: Any) -> str:
    told = json.dumps([name, parts], sort_keys=True, default=str)
    return sha256(told.encode()).hexdigest()[:_DIGITS]
