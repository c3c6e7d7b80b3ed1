"""The Pool: the workers a plan may use, in a fixed order; and the TOML file that describes it.

::

    [planner]                       # optional: the worker that writes plans, and how
    worker = "gpt"

    [workers.gpt]
    kind  = "openai"                # any server with an OpenAI-compatible API
    url   = "https://api.openai.com/v1"
    model = "gpt-5"
    key   = "${OPENAI_API_KEY}"     # from the environment, never written down

    [workers.small]
    kind  = "local"                 # a model in this process
    model = "smollm2-135m-instruct" # packaged name, Hugging Face name or folder
    temperature = 0.7
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import anyio.lowlevel
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.json_schema import SkipJsonSchema

from .endpoint import Endpoint, HttpClient
from .errors import PoolError
from .local import EngineName, LocalModel, LocalWorker
from .worker import Sampling, Worker

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


class Pool:
    """Workers by name, in order; numbers in a plan count this order from 0.

    A pool is a value: ``only`` and ``without`` give smaller ones. Enter it (``async with``) to hold
    connections open over several runs; a run enters it by itself otherwise.

    Args:
        workers: The workers. Names must differ; they start with a letter, then letters, digits,
            dots, dashes or underscores.
        planner: The worker that writes plans; it need not be in the pool. The first one if None.
        planning: How plans are asked for.

    Raises:
        PoolError: If the pool is empty or a name is bad or taken.
    """

    def __init__(
        self,
        workers: Iterable[Worker],
        *,
        planner: Worker | None = None,
        planning: PlannerSettings = PlannerSettings(),
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
            raise PoolError("the pool has no workers; a plan needs at least one")
        self.planner = planner or next(iter(self))
        self.planning = planning
        self._open: anyio.lowlevel.RunVar[list[AsyncExitStack]] = anyio.lowlevel.RunVar(
            f"pool-{id(self)}"
        )

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

    def only(self, *names: str) -> Pool:
        """Keep the named workers, in the order of this pool.

        Raises:
            PoolError: If a name is unknown.
        """
        for name in names:
            self[name]
        kept = (worker for worker in self if worker.name in names)
        return Pool(kept, planner=self.planner, planning=self.planning)

    def without(self, *names: str) -> Pool:
        """Leave the named workers out, as planner too.

        Raises:
            PoolError: If a name is unknown or no worker is left.
        """
        for name in names:
            self[name]
        left = [worker for worker in self if worker.name not in names]
        if not left:
            raise PoolError(f"without {', '.join(names)} no worker is left in the pool")
        planner = None if self.planner.name in names else self.planner
        return Pool(left, planner=planner, planning=self.planning)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for worker in self:
                await stack.enter_async_context(worker)
            if self.planner not in self._workers.values():
                await stack.enter_async_context(self.planner)
            try:
                stacks = self._open.get()
            except LookupError:
                stacks = []
                self._open.set(stacks)
            stacks.append(stack.pop_all())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._open.get().pop().aclose()

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


class WorkerTable(SamplingTable):
    """What every kind of worker may say of itself."""

    card: str = ""
    """What it is good at, in a line."""
    tags: tuple[str, ...] = ()
    system: str = ""
    """A system message put before every call."""
    price: PriceTable | None = None
    """What it costs; what is published of the model is used if left out."""


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
    """Longest wait for the next piece of an answer."""
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


class PlannerTable(SamplingTable):
    """Who writes the plans, and within which bounds."""

    worker: str
    """Name of a worker of the pool."""
    most_steps: int = Field(default=5, ge=1, le=16, strict=True)
    least_steps: int = Field(default=1, ge=1, le=16, strict=True)
    subtask_characters: int = Field(default=160, ge=20, le=2000, strict=True)
    cards: bool = Field(default=True, strict=True)
    max_tokens: int | None = Field(default=1024, ge=1, strict=True)

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
            self.most_steps, self.least_steps, self.subtask_characters, self.cards, self.sampling
        )


Table = Annotated[EndpointTable | LocalTable, Field(discriminator="kind")]


class PoolFile(_Table):
    """A pool file: checked, but with its variables not yet looked up."""

    workers: dict[str, Table] = Field(min_length=1)
    planner: PlannerTable | None = None
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
        if self.planner is None:
            return Pool(workers)
        name = self.planning_worker
        planner = next(worker for worker in workers if worker.name == name)
        return Pool(workers, planner=planner, planning=self.planner.settings)

    @property
    def planning_worker(self) -> str:
        """Name of the worker that plans: the first one if the file does not choose.

        Raises:
            PoolError: If the file chooses one that it does not have.
        """
        if self.planner is None:
            return next(iter(self.workers))
        if self.planner.worker not in self.workers:
            known = ", ".join(self.workers)
            message = f"no worker is called {self.planner.worker!r}; the file has: {known}"
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
        table = self.workers[name]
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
        if isinstance(table, LocalTable):
            models = {} if models is None else models
            key = (table.model, table.engine)
            model = models.setdefault(key, LocalModel(table.model, engine=table.engine))
            return LocalWorker(
                name,
                model,
                sampling=table.sampling,
                system=table.system,
                card=table.card,
                tags=table.tags,
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
            token_limit_field=table.token_limit_field,
            extra=table.extra,
            card=table.card,
            tags=table.tags,
            client=client,
        )


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


def _told(path: str, error: Any) -> str:
    """One line for one problem of a pool file: where, what, and what would be right."""
    location = [str(part) for part in error["loc"]]
    table: type[_Table] = PoolFile
    match location:
        case ["workers", _, kind, *rest]:  # pydantic tells the kind, which is no setting
            table = LocalTable if kind == "local" else EndpointTable
            if rest[:1] == ["price"] and len(rest) > 1:
                table = PriceTable
            del location[2]
        case ["planner", _, *_]:
            table = PlannerTable
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
            what = 'kind is missing; write kind = "openai" or kind = "local"'
        case "union_tag_invalid":
            what = f"kind {error['ctx']['tag']!r} is unknown; possible: openai, local"
        case _:
            what = error["msg"][:1].lower() + error["msg"][1:]
    return f"{path}: {where}: {what}"
