"""The Pool: the workers a plan may use, in a fixed order; and the TOML file that describes it.

::

    [planner]                       # optional: the worker that writes plans, and how
    worker = "gpt"

    [workers.gpt]
    kind  = "openai"                # any server with an OpenAI-compatible API
    url   = "https://api.openai.com/v1"
    model = "gpt-5"
    key   = "${OPENAI_API_KEY}"     # from the environment, never written down

    concurrency = 8                 # the terms on which it is called, see Terms
    fallback = ["small"]            # who stands in when it fails

    [workers.small]
    kind  = "local"                 # a model in this process
    model = "smollm2-135m-instruct" # packaged name, Hugging Face name or folder
    adapter = "players/letters"     # optional: a LoRA adapter, relative to this file
    temperature = 0.7

    [workers.self]
    kind  = "conductor"             # the Conductor itself: a run inside a step

    [run]                           # optional: what every run may take
    dollars = 0.50
    fallback = ["small"]
    router = "router"               # a router's folder: it picks a worker, no plan is written
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import anyio.lowlevel
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.json_schema import SkipJsonSchema

from .connections import HttpClient
from .endpoint import Endpoint
from .errors import PoolError
from .limits import Budget, Guard, Terms
from .local import EngineName, LocalModel, LocalWorker, ToolUse
from .prices import Cost, Price, free, published
from .worker import ConductorWorker, Sampling, Usage, Worker

_NOTHING = Decimal(0)
_EMPTY = "the pool has no workers; a plan needs at least one"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """How plans are asked for; chosen with the pool, since it is about its workers."""

    most_steps: int = 5
    """Longest plan; 5 in the papers."""
    least_steps: int = 1
    """Shortest plan."""
    subtask_characters: int = 160
    """Longest subtask, where decoding is constrained by the grammar."""
    cards: bool = False
    """Whether the Conductor model is told the cards. A trained one knows its pool by number."""
    sampling: Sampling = Sampling(max_tokens=1024)
    """How it decodes; 1,024 tokens at most in the paper."""
    roster: tuple[str, ...] = ()
    """The workers that a trained Conductor model knows, in the order of its numbers; it gets the
    brief prompt. Of a pool it is offered who is in the roster, under the same number whoever else
    is there. Empty: a model that is told what a plan is, and numbers the pool at hand."""
    constrained: bool = True
    """Whether it decodes under the grammar of plans, where it can."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What holds for every run of a pool, unless a run says otherwise."""

    budget: Budget = Budget()
    rounds: int = 1
    """Most rounds of planning."""
    fallback: tuple[str, ...] = ()
    """Workers that stand in for any that fails, after its own fallbacks."""
    router: str = ""
    """Folder of the Router that decides, or "embedded" for the one that comes with the package;
    empty if plans are written."""


class Pool:
    """Workers by name, in order; numbers in a plan count this order from 0.

    A pool is a value: ``only`` and ``without`` give smaller ones. All of them share what is known
    of how the workers do (rates, failures in a row). Enter it (``async with``) to hold
    connections open over several runs; a run enters it by itself otherwise.

    Args:
        workers: The workers. Names must differ; they start with a letter, then letters, digits,
            dots, dashes or underscores.
        planner: The worker that writes plans; it need not be in the pool. The first one if None
            that is not the Conductor itself.
        planning: How plans are asked for.
        terms: On what terms workers are called, by name or for all. In-process models are not
            tried again if nothing is said: they would fail in the same way.
        settings: What holds for every run.
        source: Where it is from, for the record.

    Raises:
        PoolError: If the pool is empty, a name is bad or taken, or a fallback is unknown.
    """

    def __init__(
        self,
        workers: Iterable[Worker],
        *,
        planner: Worker | None = None,
        planning: PlannerSettings = PlannerSettings(),
        terms: Terms | Mapping[str, Terms] | None = None,
        settings: RunSettings = RunSettings(),
        source: str = "",
    ) -> None:
        self._workers: dict[str, Worker] = {}
        for worker in workers:
            if not _NAME.fullmatch(worker.name):
                rule = "start with a letter; then letters, digits, '.', '-' and '_'; at most 64"
                raise PoolError(f"{worker.name!r} can't be the name of a worker: {rule}")
            if worker.name in self._workers:
                raise PoolError(f"two workers are called {worker.name!r}; names must differ")
            self._workers[worker.name] = worker
        if not self._workers:
            raise PoolError(_EMPTY)
        able = (worker for worker in self if not isinstance(worker, ConductorWorker))
        chosen = planner or next(able, None)
        if chosen is None:
            raise PoolError("the pool has no worker but the Conductor itself; add a model")
        self.planner = chosen
        self.planning = planning
        self.settings = settings
        self.source = source
        self._excluded: frozenset[str] = frozenset()
        everyone = {**self._workers, chosen.name: chosen}
        said = dict.fromkeys(everyone, terms) if isinstance(terms, Terms) else terms or {}
        self._guards = {
            name: Guard(said.get(name, _usual_terms(worker))) for name, worker in everyone.items()
        }
        for name in said:
            if name not in everyone:
                raise PoolError(f"there are terms for {name!r}, but no worker is called so")
        self._costs: dict[str, Cost | None] = {}
        self._check_fallbacks()
        self._open: anyio.lowlevel.RunVar[list[AsyncExitStack | None]] = anyio.lowlevel.RunVar(
            f"pool-{id(self)}"
        )

    def _check_fallbacks(self) -> None:
        chains = {f"workers.{name}": each.terms.fallback for name, each in self._guards.items()}
        for where, chain in {**chains, "run": self.settings.fallback}.items():
            for name in chain:
                if name not in self._workers:
                    known = ", ".join(self.names)
                    told = f"no worker is called {name!r}; the pool has: {known}"
                    raise PoolError(f"{where}.fallback: {told}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in order."""
        return tuple(self._workers)

    def __getitem__(self, name: str) -> Worker:
        """Look a worker up.

        Raises:
            PoolError: If there is none of that name.
        """
        try:
            return self._workers[name]
        except KeyError:
            known = ", ".join(self.names)
            raise PoolError(f"no worker is called {name!r}; the pool has: {known}") from None

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def __len__(self) -> int:
        return len(self._workers)

    def terms(self, worker: Worker) -> Terms:
        """On what terms a worker, or a planner from elsewhere, is called."""
        return self.guard(worker).terms

    def guard(self, worker: Worker) -> Guard:
        """What keeps those terms; one for all smaller pools made from this one."""
        if worker.name not in self._guards:  # a planner from elsewhere
            self._guards[worker.name] = Guard(_usual_terms(worker))
        return self._guards[worker.name]

    def cost(self, worker: Worker, usage: Usage | None) -> Decimal | None:
        """Dollars for the tokens of one call; None if tokens or price are unknown."""
        if worker.name not in self._costs:
            self._costs[worker.name] = self._cost_of(worker)
        cost = self._costs[worker.name]
        if cost is free:
            return _NOTHING
        return cost(usage) if cost is not None and usage is not None else None

    def _cost_of(self, worker: Worker) -> Cost | None:
        price = self.terms(worker).price
        if price is not None:
            return price.cost
        if isinstance(worker, Endpoint):
            return published(worker.model, f"https://{worker.host}/")[0]
        return free

    def excludes(self, name: str) -> bool:
        """Whether ``without`` left the worker out, be it as planner."""
        return name in self._excluded

    def only(self, *names: str) -> Pool:
        """Keep the named workers, in the order of this pool.

        Raises:
            PoolError: If a name is unknown.
        """
        for name in names:
            self[name]
        return self._part([name for name in self.names if name in names], self._excluded)

    def without(self, *names: str) -> Pool:
        """Leave the named workers out, as planner too.

        Raises:
            PoolError: If a name is unknown or no worker is left.
        """
        for name in names:
            if name != self.planner.name:
                self[name]
        left = [name for name in self.names if name not in names]
        if not left:
            raise PoolError(f"without {', '.join(names)} no worker is left in the pool")
        return self._part(left, self._excluded | set(names))

    def tagged(self, *tags: str) -> Pool:
        """Keep the workers that have all these tags; the others may not plan either.

        Raises:
            PoolError: If no worker has them.
        """
        known = sorted({tag for worker in self for tag in worker.tags})
        lacking = [worker.name for worker in self if not set(tags) <= set(worker.tags)]
        if len(lacking) == len(self):
            told = f"no worker has the tags {', '.join(tags)}"
            raise PoolError(f"{told}; the pool has: {', '.join(known) or 'none'}")
        if self.planner.name not in self._workers and not set(tags) <= set(self.planner.tags):
            lacking.append(self.planner.name)
        return self.without(*lacking) if lacking else self

    def untagged(self, *tags: str) -> Pool:
        """Leave the workers out that have any of these tags, as planner too.

        Raises:
            PoolError: If no worker is left.
        """
        everyone = {worker.name: worker for worker in (*self, self.planner)}
        hit = [name for name, worker in everyone.items() if set(tags) & set(worker.tags)]
        return self.without(*hit) if hit else self

    def _part(self, names: list[str], excluded: frozenset[str]) -> Pool:
        """A smaller pool; the planner stays unless it is excluded."""
        if not names:
            raise PoolError(_EMPTY)
        part = Pool.__new__(Pool)
        part.__dict__.update(self.__dict__)
        part._workers = {name: self._workers[name] for name in names}
        part._excluded = excluded
        if self.planner.name in excluded:
            able = (worker for worker in part if not isinstance(worker, ConductorWorker))
            planner = next(able, None)
            if planner is None:
                raise PoolError(f"without {', '.join(sorted(excluded))} nobody is left to plan")
            part.planner = planner
        part._open = anyio.lowlevel.RunVar(f"pool-{id(part)}")
        return part

    async def __aenter__(self) -> Self:
        try:
            stacks = self._open.get()
        except LookupError:
            stacks = []
            self._open.set(stacks)
        if stacks:  # the last to leave closes
            stacks.append(None)
            return self
        async with AsyncExitStack() as stack:
            for worker in self:
                await stack.enter_async_context(worker)
            if self.planner not in self._workers.values():
                await stack.enter_async_context(self.planner)
            stacks.append(stack.pop_all())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        stack = self._open.get().pop()
        if stack is not None:
            await stack.aclose()

    @classmethod
    def load(cls, path: str | Path, env: Mapping[str, str] | None = None) -> Pool:
        """Read a pool file.

        Args:
            path: The TOML file.
            env: Where ``${VAR}`` is looked up; the process environment by default.

        Raises:
            PoolError: If the file can't be read or is wrong, or a variable is not set.
        """
        return PoolFile.read(path).build(env)


def _usual_terms(worker: Worker) -> Terms:
    return Terms(**_USUAL["local" if isinstance(worker, LocalWorker) else "openai"])


class _Table(BaseModel):
    # Inputs stay out of errors, since one may be a key.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class SamplingTable(_Table):
    """Decoding settings that several tables share; what is left out is the server's default."""

    temperature: float | None = Field(default=None, ge=0, le=5, strict=True)
    top_p: float | None = Field(default=None, gt=0, le=1, strict=True)
    max_tokens: int | None = Field(default=None, ge=1, strict=True)
    seed: int | None = Field(default=None, strict=True)
    stop: tuple[str, ...] = ()

    @property
    def sampling(self) -> Sampling:
        """The settings as a value."""
        return Sampling(self.temperature, self.top_p, self.max_tokens, self.seed, self.stop)


class PriceTable(_Table):
    """What a worker costs, in dollars per million tokens."""

    input: float = Field(ge=0, strict=True, allow_inf_nan=False)
    output: float = Field(ge=0, strict=True, allow_inf_nan=False)
    cached: float | None = Field(default=None, ge=0, strict=True, allow_inf_nan=False)
    """Of input that the server had cached; as other input if left out."""

    @property
    def price(self) -> Price:
        """The price as a value, to the digits that were written."""
        cached = None if self.cached is None else Decimal(str(self.cached))
        return Price(Decimal(str(self.input)), Decimal(str(self.output)), cached)


class _Named(_Table):
    card: str = ""
    """What it is good at, in a line."""
    tags: tuple[str, ...] = ()
    """Words to choose or exclude it by."""


class ConductorTable(_Named):
    """The Conductor itself as a worker: a run inside a step."""

    kind: Literal["conductor"]

    @property
    def model(self) -> str:
        """What to show where the others show their model."""
        return "the Conductor itself"


_Count = Annotated[int, Field(ge=1, strict=True)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class WorkerTable(_Named, SamplingTable):
    """What every kind of model may say of itself."""

    system: str = ""
    """A system message put before every call."""
    price: PriceTable | None = None
    """What it costs; what is published of the model is used if left out."""
    concurrency: _Count | None = None
    """Most calls at the same time; more wait their turn."""
    requests_per_minute: _Count | None = None
    """Most calls begun in any 60 seconds; more wait."""
    tokens_per_minute: _Count | None = None
    """Most tokens, in and out, in any 60 seconds."""
    retries: int | None = Field(default=None, ge=0, le=20, strict=True)
    """Further tries after one that may go better next time; 2, and 0 in this process."""
    retry_base_s: _Seconds | None = None
    """The first wait is a random part of it; the range doubles with every try."""
    retry_cap_s: _Seconds | None = None
    """The longest wait, unless the server asks for a longer one."""
    retry_total_s: _Seconds | None = None
    """No try begins later than this after the first one."""
    first_text_s: _Seconds | None = None
    """Longest wait for the first piece of text."""
    silence_s: _Seconds | None = None
    """Longest wait between two pieces of text."""
    call_s: _Seconds | None = None
    """Longest time for a whole call."""
    trip_after: _Count | None = None
    """Failures in a row after which it is left alone for open_s."""
    open_s: _Seconds | None = None
    """For how long; then one call is let through, and decides how it goes on."""
    fallback: tuple[str, ...] | None = None
    """Workers that stand in when all tries came to nothing, in this order."""

    @property
    def terms(self) -> dict[str, Any]:
        """The terms that are said, by the names of :class:`Terms`."""
        said = {each.name: getattr(self, each.name) for each in fields(Terms)}
        if self.price is not None:
            said["price"] = self.price.price
        return {name: value for name, value in said.items() if value is not None}


class EndpointTable(WorkerTable):
    """A model behind an OpenAI-compatible server."""

    kind: Literal["openai"]
    url: str
    """Base address, usually ending in /v1."""
    model: str
    """The server's name of the model."""
    key: str = Field(default="", repr=False)
    """API key; write it as ${VARIABLE}."""
    headers: dict[str, str] = Field(default_factory=dict, repr=False)
    timeout_s: float = Field(default=300.0, gt=0, strict=True)
    """Longest silence of the connection."""
    connect_s: float = Field(default=10.0, gt=0, strict=True, allow_inf_nan=False)
    """Longest wait for a connection."""
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # noqa: S105
    """The name of the token limit in requests; OpenAI's own models want max_completion_tokens."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request body, passed as they are."""


class LocalTable(WorkerTable):
    """A model in this process."""

    kind: Literal["local"]
    model: str = "smollm2-135m-instruct"
    """A packaged model, a Hugging Face name or a folder."""
    engine: EngineName = "auto"
    adapter: str = ""
    """Folder of a LoRA adapter, as PEFT saves them; relative to the pool file."""
    input_tokens: int | None = Field(default=None, ge=512, strict=True)
    """Longest prompt that it reads; of a longer one the middle is left out."""
    tools: ToolUse = "free"
    """Of tools that it may call but need not: it is free to, or calls one first and answers then,
    for a model too small to judge."""


class PlannerTable(SamplingTable):
    """Who writes the plans, and within which bounds."""

    worker: str
    """Name of a worker of the pool."""
    most_steps: int = Field(default=5, ge=1, le=16, strict=True)
    least_steps: int = Field(default=1, ge=1, le=16, strict=True)
    subtask_characters: int = Field(default=160, ge=20, le=2000, strict=True)
    cards: bool = Field(default=True, strict=True)
    max_tokens: int | None = Field(default=1024, ge=1, strict=True)
    roster: tuple[str, ...] = ()
    """Workers that it was trained on, in order; what it writes are numbers of this list."""
    constrained: bool = Field(default=True, strict=True)
    """Whether it decodes under the grammar of plans, where it can."""

    @model_validator(mode="after")
    def _least_is_not_more(self) -> Self:
        if self.least_steps > self.most_steps:
            told = f"least_steps is {self.least_steps}, more than most_steps ({self.most_steps})"
            raise ValueError(told)
        return self

    @property
    def settings(self) -> PlannerSettings:
        """The settings as a value."""
        return PlannerSettings(
            self.most_steps,
            self.least_steps,
            self.subtask_characters,
            self.cards,
            self.sampling,
            self.roster,
            self.constrained,
        )


class RunTable(_Table):
    """What holds for every run, unless it is asked for otherwise."""

    dollars: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Most money; what is under way at that moment may go over it."""
    tokens: _Count | None = None
    """Most tokens, in and out together."""
    calls: _Count | None = None
    """Most calls of workers, the planner's and failed ones included."""
    seconds: _Seconds | None = None
    """The deadline."""
    steps: _Count | None = None
    """Most steps of all plans together."""
    depth: int = Field(default=1, ge=0, le=5, strict=True)
    """How deep runs may be nested: the Conductor as a worker of a step of a step..."""
    rounds: int = Field(default=1, ge=1, le=10, strict=True)
    """Most rounds of planning: the Conductor sees the answer and keeps it or plans again."""
    fallback: tuple[str, ...] = ()
    """Workers that stand in for any that fails, after its own fallbacks."""
    router: str = ""
    """Folder of the router that picks a worker, in place of plans: relative to the pool file, or
    "embedded" for the one that comes with the package."""

    @property
    def settings(self) -> RunSettings:
        """The settings as a value."""
        dollars = None if self.dollars is None else Decimal(str(self.dollars))
        budget = Budget(dollars, self.tokens, self.calls, self.seconds, self.steps, self.depth)
        return RunSettings(budget, self.rounds, self.fallback, self.router)


Table = Annotated[EndpointTable | LocalTable | ConductorTable, Field(discriminator="kind")]


class PoolFile(_Table):
    """A pool file: checked, but with its variables not yet looked up."""

    workers: dict[str, Table] = Field(min_length=1)
    planner: PlannerTable | None = None
    run: RunTable = RunTable()
    path: SkipJsonSchema[str] = Field(default="pool.toml", exclude=True)

    @classmethod
    def read(cls, path: str | Path) -> PoolFile:
        """Read and check a file.

        Raises:
            PoolError: If it can't be read, is no TOML, or says something unknown.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise PoolError(f"{path}: {reason}; `conductor init` writes a pool file") from error
        except UnicodeDecodeError as error:
            raise PoolError(f"{path}: not a text in UTF-8; save it as UTF-8") from error
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, path: str = "pool.toml") -> PoolFile:
        """Check the text of a file.

        Raises:
            PoolError: If it is no TOML, or says something unknown.
        """
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise PoolError(f"{path}: not valid TOML: {error}") from error
        if "path" in data:
            raise PoolError(_told(path, {"type": "extra_forbidden", "loc": ("path",)}))
        try:
            return cls.model_validate({**data, "path": path})
        except ValidationError as error:
            raise PoolError("\n".join(_told(path, each) for each in error.errors())) from error

    def build(self, env: Mapping[str, str] | None = None) -> Pool:
        """Make the pool; nothing is connected or loaded yet.

        Raises:
            PoolError: If a variable is not set, or a name or address is bad.
        """
        try:
            return self._pool(env)
        except PoolError as error:
            raise PoolError(f"{self.path}: {error}") from error

    def _pool(self, env: Mapping[str, str] | None) -> Pool:
        client = HttpClient()
        models: dict[tuple[str, str], LocalModel] = {}
        workers = [self.worker(name, env, client, models) for name in self.workers]
        name = self.planning_worker
        planner = next(worker for worker in workers if worker.name == name)
        return Pool(
            workers,
            planner=planner,
            planning=self.planner.settings if self.planner else PlannerSettings(),
            terms={
                name: Terms(**{**_USUAL[table.kind], **table.terms})
                for name, table in self.workers.items()
                if not isinstance(table, ConductorTable)
            },
            settings=replace(self.run.settings, router=self.router),
            source=os.path.abspath(self.path),  # a run may go on in another folder
        )

    @property
    def router(self) -> str:
        """The router of ``[run]``, its folder as an absolute path."""
        named = self.run.router
        if named in ("", "embedded"):
            return named
        return os.path.abspath(Path(self.path).parent / named)

    @property
    def models(self) -> dict[str, EndpointTable | LocalTable]:
        """The workers that are models: all but the Conductor itself."""
        return {
            name: table
            for name, table in self.workers.items()
            if not isinstance(table, ConductorTable)
        }

    @property
    def planning_worker(self) -> str:
        """Name of the worker that plans: the first model if the file does not choose.

        Raises:
            PoolError: If the file chooses one that it does not have, or that is no model.
        """
        if self.planner is None:
            if not self.models:
                raise PoolError("workers: there is none but the Conductor itself; add a model")
            return next(iter(self.models))
        if self.planner.worker not in self.models:
            known = ", ".join(self.models)
            message = f"no worker is called {self.planner.worker!r}; the file has: {known}"
            if self.planner.worker in self.workers:
                message = f"{self.planner.worker!r} is the Conductor itself; name the model it is"
            raise PoolError(f"planner.worker: {message}")
        return self.planner.worker

    def looked_up(
        self, name: str, env: Mapping[str, str] | None = None
    ) -> tuple[EndpointTable | LocalTable, tuple[str, ...]]:
        """Look up the variables of a worker without minding those that are not set.

        Returns:
            Its table, with url and model expanded unless a variable of theirs is missing, and the
            names of all variables that are missing, its key's among them.
        """
        table = self.models[name]
        if isinstance(table, LocalTable):
            return table, ()
        known = os.environ if env is None else env
        texts = (table.url, table.model, table.key, *table.headers.values())
        named = [match[1] for text in texts for match in _VARIABLE.finditer(text) if match[1]]
        missing = tuple(dict.fromkeys(each for each in named if not known.get(each)))
        filled = {}
        for field in ("url", "model"):
            with suppress(PoolError):
                filled[field] = _expand(getattr(table, field), known, f"workers.{name}.{field}")
        return table.model_copy(update=filled), missing

    def worker(
        self,
        name: str,
        env: Mapping[str, str] | None = None,
        client: HttpClient | None = None,
        models: dict[tuple[str, str], LocalModel] | None = None,
    ) -> Worker:
        """Make one worker of the file.

        Raises:
            PoolError: If one of its variables is not set.
        """
        table = self.workers[name]
        if isinstance(table, ConductorTable):
            return ConductorWorker(name, card=table.card, tags=table.tags)
        if isinstance(table, LocalTable):
            models = {} if models is None else models
            key = (table.model, table.engine)
            model = models.setdefault(key, LocalModel(table.model, engine=table.engine))
            return LocalWorker(
                name,
                model,
                adapter=Path(self.path).parent / table.adapter if table.adapter else "",
                sampling=table.sampling,
                system=table.system,
                card=table.card,
                tags=table.tags,
                input_tokens=table.input_tokens,
                tools=table.tools,
            )

        def expand(field: str, text: str) -> str:
            return _expand(text, os.environ if env is None else env, f"workers.{name}.{field}")

        return Endpoint(
            name,
            url=expand("url", table.url),
            model=expand("model", table.model),
            key=expand("key", table.key),
            headers={k: expand(f"headers.{k}", v) for k, v in table.headers.items()},
            sampling=table.sampling,
            system=table.system,
            timeout_s=table.timeout_s,
            connect_s=table.connect_s,
            token_limit_field=table.token_limit_field,
            extra=table.extra,
            card=table.card,
            tags=table.tags,
            client=client,
        )


_USUAL: dict[str, dict[str, Any]] = {
    "openai": {},
    "local": {"retries": 0, "trip_after": None},  # it would fail in the same way
}
_VARIABLE = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)\})?")


def _expand(text: str, env: Mapping[str, str], where: str) -> str:
    """Put the environment's values for ``${VAR}``; ``$$`` is a dollar sign."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if match[0] == "$$":
            return "$"
        if name is None:
            raise PoolError(
                f"{where}: '$' stands alone; write ${{NAME}} for a variable or $$ for $"
            )
        if not env.get(name):
            remedy = f"export {name}=... or take the worker out"
            raise PoolError(f"{where}: the environment variable {name} is not set; {remedy}")
        return env[name]

    return _VARIABLE.sub(value, text)


_TABLES: dict[str, type[_Table]] = {
    "openai": EndpointTable,
    "local": LocalTable,
    "conductor": ConductorTable,
}


def _told(path: str, error: Any) -> str:
    """One line for one problem of a pool file: where, what, and what would be right."""
    location = [str(part) for part in error["loc"]]
    table: type[_Table] = PoolFile
    match location:
        case ["workers", _, kind, *rest]:  # pydantic tells the kind, which is no setting
            table = _TABLES.get(kind, EndpointTable)
            if rest[:1] == ["price"] and len(rest) > 1:
                table = PriceTable
            del location[2]
        case ["planner", _, *_]:
            table = PlannerTable
        case ["run", _, *_]:
            table = RunTable
    where = ".".join(location)
    match error["type"]:
        case "extra_forbidden":
            near = get_close_matches(
                location[-1], known := sorted({*table.model_fields} - {"path"})
            )
            remedy = f"did you mean {near[0]}?" if near else f"possible: {', '.join(known)}"
            what = f"there is no such setting; {remedy}"
        case "missing" | "too_short" if location == ["workers"]:
            what = "a pool needs at least one table [workers.NAME]"
        case "missing":
            what = f"is missing; write {location[-1]} = ..."
        case "tuple_type":
            what = "must be a list"
        case "dict_type" | "model_type" | "model_attributes_type":
            what = "must be a table"
        case "value_error":
            what = str(error["ctx"]["error"])
        case "union_tag_not_found":
            what = 'kind is missing; write kind = "openai", "local" or "conductor"'
        case "union_tag_invalid":
            what = f"kind {error['ctx']['tag']!r} is unknown; possible: {', '.join(_TABLES)}"
        case _:
            what = error["msg"][:1].lower() + error["msg"][1:]
    return f"{path}: {where}: {what}"
