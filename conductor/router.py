"""The Router (TRINITY): one hidden state of a small language model picks a worker, and nothing is
generated.

The backbone reads the task in one fixed template; its hidden state at the last token but one goes
through a bias-free matrix, a row for each worker, and a softmax. With three more rows the same
state also draws a role, and turns follow one another until a verifier accepts (Xu et al., arXiv
2512.04695).

A router is a folder: ``head.safetensors`` with the matrix, ``router.json`` with all that it holds
for: backbone and its digest, template, workers in order, how it was trained.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from grammar import Plan, single
from runtime import (
    INSTALL,
    ROLES,
    Failure,
    FailureKind,
    LocalModel,
    LocalWorker,
    Message,
    ModelError,
    NoPlan,
    Offsets,
    Pick,
    PlanParsed,
    PlanSource,
    Pool,
    PoolError,
    Reader,
    Role,
    Session,
    States,
    WorkerPicked,
    episode,
    model_digest,
    model_folder,
)

from .config import EMBEDDED, EMBEDDED_MODEL, EMBEDDED_ROUTER, local_model
from .prompt import ROUTER_FRAME, ROUTER_LEAD, ROUTER_SYSTEM, router_messages

if TYPE_CHECKING:
    import numpy as np

    from runtime import Episode

HEAD, SETTINGS = "head.safetensors", "router.json"
"""The two files of a router's folder."""
MOST_TURNS = 5
"""Turns of the loop at most, as in the paper."""

Conversation = str | Sequence[Message]


class RouterError(ValueError):
    """A router can't be loaded, or does not fit its backbone; the message has the remedy."""


class Encoder:
    """The backbone: turns what is asked into hidden states. Nothing is loaded before the first.

    Args:
        model: A model in memory, or its name: a packaged model, a folder, or a causal LM of the
            Hugging Face hub.
        system: The system message of the template; none if empty.
        frame: The user message of the template, with ``{question}`` where the question goes.
        lead: The beginning of a reply that the template ends with; none if empty.
        layer: Which hidden state; see :class:`runtime.Reader`.
        plain: Lines of ``role: content`` in place of the model's chat template.
        most_tokens: Of a longer prompt the middle is left out.
        offsets: Singular-value offsets by name of the matrix, float32; see :mod:`runtime.svf`.
    """

    def __init__(
        self,
        model: LocalModel | str = EMBEDDED_MODEL,
        *,
        system: str = ROUTER_SYSTEM,
        frame: str = ROUTER_FRAME,
        lead: str = ROUTER_LEAD,
        layer: int = -1,
        plain: bool = False,
        most_tokens: int = 1024,
        offsets: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.model = local_model(model) if isinstance(model, str) else model
        self.system, self.frame, self.lead = system, frame, lead
        self.offsets = dict(offsets or {})
        scales = Offsets(self.offsets) if self.offsets else None
        self.reader = Reader(layer, plain, most_tokens, scales)

    @property
    def id(self) -> str:
        """The backbone's name."""
        return self.model.name

    @property
    def digest(self) -> str:
        """What tells these hidden states from others: a hash of weights, offsets, template, layer.

        Two encoders of one digest give the same states, so that they can be kept.
        """
        from hashlib import sha256

        reader = self.reader
        template = [self.system, self.frame, self.lead]
        told = [self.backbone, *template, reader.layer, reader.plain, reader.most_tokens]
        whole = sha256(json.dumps(told).encode())
        for name, offsets in sorted(self.offsets.items()):
            whole.update(name.encode() + b"\0" + offsets.tobytes())
        return whole.hexdigest()

    @property
    def backbone(self) -> str:
        """Digest of the model's weights and tokenizer.

        Raises:
            RouterError: If a model of the Hugging Face hub is not in its cache yet.
        """
        digest = model_digest(self.id)
        if not digest:
            remedy = "read something with it first, or download it"
            raise RouterError(f"{self.id} is not on this machine, so it has no digest; {remedy}")
        return digest

    def states(
        self, conversations: Sequence[Conversation], *, thoughts: Sequence[str] = ()
    ) -> np.ndarray:
        """Read conversations: what users ask, without the template.

        Args:
            conversations: Texts, or messages.
            thoughts: Ideas of solvers so far, for all of them; see :func:`router_messages`.

        Returns:
            (N, D) float32.

        Raises:
            ModelError: If the model can't be loaded or has no such layer.
        """
        return self.model.read(self.rendered(conversations, thoughts), self.reader).vectors

    async def astates(
        self, conversations: Sequence[Conversation], *, thoughts: Sequence[str] = ()
    ) -> States:
        """:meth:`states` in async code, with the number of tokens."""
        return await self.model.aread(self.rendered(conversations, thoughts), self.reader)

    def rendered(
        self, conversations: Sequence[Conversation], thoughts: Sequence[str] = ()
    ) -> list[tuple[Message, ...]]:
        """Put conversations into the template."""
        return [
            router_messages(
                each, system=self.system, frame=self.frame, lead=self.lead, thoughts=thoughts
            )
            for each in conversations
        ]

    def on(self, pool: Pool) -> Encoder:
        """The same encoder with the model object of a worker of the pool, if one has its model:
        so that the weights are in memory once."""
        for worker in pool:
            if isinstance(worker, LocalWorker) and worker.model.name == self.id:
                shared = object.__new__(type(self))
                shared.__dict__.update(self.__dict__, model=worker.model)
                return shared
        return self


@dataclass(frozen=True, eq=False)
class Head:
    """The trained matrix.

    Raises:
        RouterError: If the parts don't fit together.
    """

    weight: np.ndarray
    """(W, D) float32, or (W + 3, D) with roles: solver, thinker, verifier."""
    workers: tuple[str, ...]
    """The workers, in the order of the rows."""
    roles: bool = False

    def __post_init__(self) -> None:
        import numpy as np

        if not self.workers:
            raise RouterError("a head needs at least one worker")
        twice = {name for name in self.workers if self.workers.count(name) > 1}
        if twice:
            raise RouterError(f"a head names {', '.join(sorted(twice))} twice; names must differ")
        rows = len(self.workers) + len(ROLES) * self.roles
        shape = self.weight.shape
        if len(shape) != 2 or shape[0] != rows:
            also = " and 3 roles" if self.roles else ""
            told = f"{len(self.workers)} workers{also} need {rows} rows"
            raise RouterError(f"the head has the shape {shape}; {told}")
        if self.weight.dtype != np.float32:
            raise RouterError(f"the head is of type {self.weight.dtype}; it must be float32")
        if not np.isfinite(self.weight).all():
            raise RouterError("the head holds numbers that are not finite; train it again")

    @property
    def width(self) -> int:
        """D, the length of a hidden state."""
        return int(self.weight.shape[1])

    def logits(self, states: np.ndarray) -> np.ndarray:
        """Logits of the workers, (N, W), of states (N, D)."""
        logits: np.ndarray = states @ self.weight[: len(self.workers)].T
        return logits


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis; -inf gives 0."""
    import numpy as np

    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    chances: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return chances


def probabilities(
    head: Head, states: np.ndarray, allowed: Collection[str] | None = None
) -> np.ndarray:
    """Give each worker's probability, (N, W), for states (N, D).

    Args:
        head: The head.
        states: Hidden states.
        allowed: Names of the workers that may be picked; the others get 0. All if None.

    Raises:
        PoolError: If none of the head's workers is allowed.
    """
    import numpy as np

    logits = head.logits(states)
    if allowed is not None:
        masked = [name not in allowed for name in head.workers]
        if all(masked):
            known = ", ".join(head.workers)
            raise PoolError(f"no worker is left for the router: it knows {known}")
        logits = np.where(masked, -np.inf, logits)
    return softmax(logits)


def role_probabilities(head: Head, states: np.ndarray) -> np.ndarray:
    """Give each role's probability, (N, 3): solver, thinker, verifier.

    Raises:
        RouterError: If the head has no roles.
    """
    if not head.roles:
        raise RouterError("the head has no rows for roles; train one with roles")
    logits: np.ndarray = states @ head.weight[len(head.workers) :].T
    return softmax(logits)


class Router:
    """Picks a worker for a query.

    Args:
        head: The trained matrix.
        encoder: The backbone, as in training; the packaged model with the usual template if None.
        sample: Draw by probability; else the most probable worker is picked.
        seed: For the draws; chance if None.
        roles: Whether turns with roles follow one another, or one worker is picked and answers.
            As the head has rows for roles if None.
        turns: Most turns, with roles.
        training: How it was trained, for the record.
        source: Where it is from: a path, "embedded", or empty.

    Raises:
        RouterError: If roles are asked of a head without rows for them.
    """

    def __init__(
        self,
        head: Head,
        encoder: Encoder | None = None,
        *,
        sample: bool = False,
        seed: int | None = None,
        roles: bool | None = None,
        turns: int = MOST_TURNS,
        training: Mapping[str, Any] | None = None,
        source: str = "",
    ) -> None:
        if roles and not head.roles:
            raise RouterError("roles are asked for, but the head has no rows for them")
        if turns < 1:
            raise RouterError(f"there can't be {turns} turns; give 1 or more")
        self.head = head
        self.encoder = encoder or Encoder()
        self.sample = sample
        self.seed = seed
        self.roles = head.roles if roles is None else roles
        self.turns = turns if self.roles else 1
        self.training = dict(training or {})
        self.source = source

    # --- deciding ----------------------------------------------------------------------------

    def route(
        self,
        messages: Conversation,
        *,
        only: Collection[str] = (),
        exclude: Collection[str] = (),
        sample: bool | None = None,
        seed: int | None = None,
    ) -> Pick:
        """Pick a worker, by one pass of the backbone over what is asked.

        Args:
            messages: What the user asks.
            only: Names of the workers that may be picked; all if empty.
            exclude: Names of workers that may not be picked.
            sample: As for the Router, which decides if None.
            seed: Likewise.

        Raises:
            PoolError: If no worker is left, or a name is none that the router knows.
            ModelError: If the backbone can't be loaded.
            RouterError: If the head does not fit the backbone.
        """
        began = time.monotonic()
        allowed = self.allowed(only, exclude)
        encoder = self.encoder
        states = encoder.model.read(encoder.rendered([messages]), encoder.reader)
        return self._pick(states, allowed, began, sample, seed)

    async def aroute(
        self,
        messages: Conversation,
        *,
        only: Collection[str] = (),
        exclude: Collection[str] = (),
        sample: bool | None = None,
        seed: int | None = None,
    ) -> Pick:
        """:meth:`route` for async code."""
        began = time.monotonic()
        allowed = self.allowed(only, exclude)
        states = await self.encoder.astates([messages])
        return self._pick(states, allowed, began, sample, seed)

    def pick_among(self, messages: Conversation, pool: Sequence[str]) -> Pick:
        """:meth:`route` among the workers of a pool, of which the router may not know all.

        Raises:
            PoolError: If it knows none of them.
        """
        able = [name for name in self.head.workers if name in pool]
        if not able:
            raise PoolError(self._nobody(pool))
        unknown = tuple(name for name in pool if name not in self.head.workers)
        return replace(self.route(messages, only=able), unknown=unknown)

    def _nobody(self, pool: Sequence[str]) -> str:
        known = ", ".join(self.head.workers)
        return f"no worker is left for the router: it knows {known}; there is {', '.join(pool)}"

    def allowed(self, only: Collection[str] = (), exclude: Collection[str] = ()) -> tuple[str, ...]:
        """The workers that may be picked, in the order of the head.

        Raises:
            PoolError: If none is left, or a name is none that the router knows.
        """
        known = ", ".join(self.head.workers)
        for name in (*only, *exclude):
            if name not in self.head.workers:
                raise PoolError(f"no worker is called {name!r}; the router knows: {known}")
        names = [each for each in self.head.workers if not only or each in only]
        left = tuple(each for each in names if each not in exclude)
        if not left:
            raise PoolError(f"no worker is left for the router; it knows: {known}")
        return left

    def _pick(
        self,
        states: States,
        allowed: Sequence[str],
        began: float,
        sample: bool | None = None,
        seed: int | None = None,
        *,
        turn: int = 0,
    ) -> Pick:
        """Decide by a hidden state.

        Args:
            states: The state, in its first row.
            allowed: Names of the workers that may be picked.
            began: When the decision began.
            sample: As for the Router.
            seed: As for the Router.
            turn: Number of the turn, from 0: each draws anew.
        """
        import numpy as np

        state = states.vectors[:1]
        if state.shape[1] != self.head.width:
            told = f"{self.encoder.id} gives hidden states of {state.shape[1]} numbers"
            raise RouterError(f"the head is for {self.head.width}; {told}: train it on this model")
        sample = self.sample if sample is None else sample
        seed = self.seed if seed is None else seed
        dice = np.random.default_rng(None if seed is None else (seed, turn))
        chances = probabilities(self.head, state, allowed)[0]

        def choose(chances: np.ndarray) -> int:
            if not sample:
                return int(chances.argmax())
            chances = chances.astype(np.float64)
            return int(dice.choice(len(chances), p=chances / chances.sum()))

        pick = Pick(
            self.head.workers[choose(chances)],
            {
                name: float(chance)
                for name, chance in zip(self.head.workers, chances, strict=True)
                if name in allowed
            },
            sampled=sample,
            backbone=self.encoder.id,
            tokens=states.tokens[0],
        )
        if self.roles:
            drawn = role_probabilities(self.head, state)[0]
            named = zip(ROLES, drawn, strict=True)
            pick = replace(
                pick,
                role=ROLES[choose(drawn)],
                roles={str(role): float(chance) for role, chance in named},
            )
        return replace(pick, seconds=time.monotonic() - began)

    async def decide(self, session: Session) -> Plan | None:
        """Come to the plan of one step that hands the query to a worker, telling of the pick first.

        With roles this is one turn of the loop; a pick that is in the record already, the run
        having been stopped behind it, is not made again.

        Returns:
            The plan; None to keep the answer: a verifier has accepted it, or there are no turns.

        Raises:
            NoPlan: If no worker is left, the backbone can't be read, or a verifier is picked
                before there is an answer.
        """
        record = session.record
        pick = record.pick
        if pick is None:
            past = episode(record.rounds) if self.roles else None
            if past.accepted if past is not None else record.number:
                return None
            pick = await self._turn(session, past)
            session.emit(WorkerPicked(session.now(), pick))
        if pick.role is Role.VERIFIER and record.previous is None:
            told = "the router picked a verifier before there was an answer, which ends the run"
            raise NoPlan(Failure(FailureKind.NO_ANSWER, told))
        plan = single(pick.worker, session.query)
        session.emit(PlanParsed(session.now(), plan, PlanSource.ROUTER))
        return plan

    async def _turn(self, session: Session, past: Episode | None) -> Pick:
        began = time.monotonic()
        pool = session.pool.names
        allowed = tuple(name for name in self.head.workers if name in pool)
        if not allowed:
            raise NoPlan(Failure(FailureKind.EXCLUDED, self._nobody(pool)))
        seed = self.seed
        if seed is None and session.asked is not None:
            seed = session.asked.sampling.seed
        thoughts = past.thoughts if past is not None else ()
        try:
            states = await self.encoder.astates([session.query], thoughts=thoughts)
            pick = self._pick(states, allowed, began, seed=seed, turn=session.record.number)
        except (ModelError, RouterError) as error:
            raise NoPlan(Failure(FailureKind.MODEL, f"the router: {error}")) from error
        if past is not None and past.suggested is not None:
            pick = replace(pick, role=past.suggested, suggested=True)
        return replace(pick, unknown=tuple(name for name in pool if name not in self.head.workers))

    def on(self, pool: Pool) -> Router:
        """The same router, its backbone shared with a worker of the pool where that is possible."""
        shared = object.__new__(type(self))
        shared.__dict__.update(self.__dict__, encoder=self.encoder.on(pool))
        return shared

    # --- files -------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        model: LocalModel | None = None,
        sample: bool = False,
        seed: int | None = None,
        roles: bool | None = None,
        turns: int = MOST_TURNS,
    ) -> Router:
        """Read a router's folder.

        Args:
            path: The folder; the head that comes with the package if None.
            model: The backbone, if it is in memory already.
            sample: As for the Router, like the rest.

        Raises:
            RouterError: If a file is missing or wrong, or the backbone is another one than that
                of the training.
        """
        if path is None or str(path) == EMBEDDED:
            folder, source = embedded_folder(), EMBEDDED
        else:
            folder, source = Path(path), str(Path(path).absolute())
        settings = _Settings.of(folder)
        head, offsets = _read_head(folder, settings)
        backbone = settings.backbone
        if model is not None and model.name != backbone.name:
            told = f"the router is for {backbone.name}, not {model.name}"
            raise RouterError(f"{folder / SETTINGS}: {told}")
        name = backbone.name
        if model is None and _is_folder_name(name) and not Path(name).is_dir():
            name = str(folder / name)  # a folder beside the router's
        template = settings.template
        encoder = Encoder(
            model or name,
            system=template.system,
            frame=template.frame,
            lead=template.lead,
            layer=template.layer,
            plain=template.plain,
            most_tokens=template.most_tokens,
            offsets=offsets,
        )
        _check_backbone(folder / SETTINGS, encoder, head, backbone.digest)
        return cls(
            head,
            encoder,
            sample=sample,
            seed=seed,
            roles=roles,
            turns=turns,
            training=settings.training,
            source=source,
        )

    def save(self, path: str | Path, *, training: Mapping[str, Any] | None = None) -> None:
        """Write the router's folder; a router of that name is replaced.

        Args:
            path: The folder; made if need be.
            training: How it was trained; what it was loaded with if None.

        Raises:
            RouterError: If the backbone is not on this machine.
            OSError: If the folder can't be written.
        """
        from safetensors.numpy import save as as_bytes

        folder, encoder = Path(path), self.encoder
        folder.mkdir(parents=True, exist_ok=True)
        settings = _Settings(
            backbone=_Backbone(name=encoder.id, digest=encoder.backbone),
            template=_Template(
                system=encoder.system,
                frame=encoder.frame,
                lead=encoder.lead,
                plain=encoder.reader.plain,
                layer=encoder.reader.layer,
                most_tokens=encoder.reader.most_tokens,
            ),
            workers=self.head.workers,
            roles=self.head.roles,
            training=dict(self.training if training is None else training),
        )
        offsets = {_SVF + name: values for name, values in encoder.offsets.items()}
        _put(folder / HEAD, as_bytes({"head": self.head.weight, **offsets}))
        _put(folder / SETTINGS, (settings.model_dump_json(indent=2) + "\n").encode())


def from_trinity(
    vector: np.ndarray,
    workers: Sequence[str],
    model: LocalModel | str,
    *,
    block: int = 26,
    plain: bool = True,
    system: str = "",
    **options: Any,
) -> Router:
    """Make a router of a vector in the layout that TRINITY was released in.

    For each of nine matrices as many offsets as the model is wide, in the order of the state dict
    (token embedding; q, k, v, o, gate, up, down of one block; LM head), then the head: a row for
    each worker and for solver, thinker, verifier. With Qwen3-0.6B and 7 workers that is 9,216 +
    10,240 = 19,456 numbers.

    Args:
        vector: The numbers.
        workers: Names in your pool, in the order of the vector's workers.
        model: The backbone.
        block: The block whose matrices are scaled, from 0: the last but one.
        plain: Which of two formats the sources tell of: lines of ``role: content``, or the chat
            template without thinking.
        system: System message of the template, none if empty.
        options: As for the Router.

    Raises:
        RouterError: If the vector has another length.
    """
    import numpy as np

    flat = np.ascontiguousarray(vector, dtype=np.float32)
    rows = len(_TRINITY) + len(workers) + len(ROLES)
    if flat.ndim != 1 or not flat.size or flat.size % rows:
        told = f"9 matrices, {len(workers)} workers and 3 roles need a multiple of {rows} numbers"
        raise RouterError(f"the vector has the shape {flat.shape}; {told}")
    parts = flat.reshape(rows, -1)
    names = [name.format(block=block) for name in _TRINITY]
    encoder = Encoder(
        model,
        system=system,
        frame="{question}",
        lead="",
        plain=plain,
        offsets={name: part.copy() for name, part in zip(names, parts, strict=False)},
    )
    head = Head(parts[len(names) :].copy(), tuple(workers), roles=True)
    return Router(head, encoder, **options)


_TRINITY = (
    "model.embed_tokens.weight",
    "model.layers.{block}.self_attn.q_proj.weight",
    "model.layers.{block}.self_attn.k_proj.weight",
    "model.layers.{block}.self_attn.v_proj.weight",
    "model.layers.{block}.self_attn.o_proj.weight",
    "model.layers.{block}.mlp.gate_proj.weight",
    "model.layers.{block}.mlp.up_proj.weight",
    "model.layers.{block}.mlp.down_proj.weight",
    "lm_head.weight",
)
"""Names of the scaled matrices in Qwen3's state dict, in its order."""


def embedded_folder() -> Path:
    """The folder of the head that comes with the package.

    Raises:
        RouterError: If this version comes with none.
    """
    if not (EMBEDDED_ROUTER / SETTINGS).is_file():
        remedy = "train one with `conductor train router`, or name its folder with --router PATH"
        raise RouterError(f"this version comes with no trained router; {remedy}")
    return EMBEDDED_ROUTER


# --- parts ----------------------------------------------------------------------------------------


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Backbone(_Table):
    name: str
    """A packaged model, a folder, or a name of the Hugging Face hub."""
    digest: str
    """See :func:`runtime.model_digest`."""


class _Template(_Table):
    system: str
    frame: str = "{question}"
    lead: str = ""
    plain: bool = Field(default=False, strict=True)
    layer: int = Field(default=-1, strict=True)
    most_tokens: int = Field(default=1024, ge=16, strict=True)


class _Settings(_Table):
    """The file ``router.json``."""

    format: Literal[1] = 1
    backbone: _Backbone
    template: _Template
    workers: tuple[str, ...]
    roles: bool = Field(default=False, strict=True)
    training: dict[str, Any] = {}

    @classmethod
    def of(cls, folder: Path) -> _Settings:
        file = folder / SETTINGS
        try:
            return cls.model_validate_json(file.read_text(encoding="utf-8"))
        except OSError as error:
            told = error.strerror or type(error).__name__
            remedy = f"a router is a folder with {HEAD} and {SETTINGS}"
            raise RouterError(f"{file}: {told}; {remedy}") from error
        except UnicodeDecodeError as error:
            raise RouterError(f"{file}: not a text in UTF-8") from error
        except ValidationError as error:
            problems = [_told(problem) for problem in error.errors(include_input=False)]
            raise RouterError("\n".join(f"{file}: {problem}" for problem in problems)) from error


def _told(problem: Any) -> str:
    where = ".".join(map(str, problem["loc"]))
    match problem["type"]:
        case "extra_forbidden":
            what = "there is no such field; a newer version may have written it"
        case "missing":
            what = "is missing"
        case _:
            what = problem["msg"][:1].lower() + problem["msg"][1:]
    return f"{where}: {what}" if where else what


def _read_head(folder: Path, settings: _Settings) -> tuple[Head, dict[str, np.ndarray]]:
    """The head, and the singular-value offsets."""
    file = folder / HEAD
    try:
        import numpy as np
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise RouterError(f"{error.name} is not installed; {INSTALL}") from error
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise RouterError(f"{file}: can't be read: {error}") from error
    weight = tensors.pop("head", None)
    if weight is None:
        raise RouterError(f"{file}: there is no tensor called head")
    unknown = [name for name in tensors if not name.startswith(_SVF)]
    if unknown:
        raise RouterError(f"{file}: {', '.join(unknown)}: there is no such tensor in a router")
    try:
        head = Head(np.ascontiguousarray(weight), settings.workers, settings.roles)
    except RouterError as error:
        raise RouterError(f"{file}: {error}") from error
    return head, {name.removeprefix(_SVF): offsets for name, offsets in tensors.items()}


_SVF = "svf."
"""What the names of singular-value offsets begin with, in the file of the head."""


def _check_backbone(file: Path, encoder: Encoder, head: Head, digest: str) -> None:
    found = model_digest(encoder.id)
    if found and found != digest:
        told = f"the backbone {encoder.id} is not the one it was trained on"
        raise RouterError(
            f"{file}: {told} ({found[:12]}, not {digest[:12]}); get that one, or train again"
        )
    folder = model_folder(encoder.id)
    if folder is None:
        return
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # loading the model will tell
    width = config.get("hidden_size") if isinstance(config, dict) else None
    if isinstance(width, int) and width != head.width:
        told = f"the head is {head.width} wide, {encoder.id} {width}"
        raise RouterError(f"{file}: {told}; train it on this model")


def _is_folder_name(name: str) -> bool:
    return name.startswith((".", "/")) or "\\" in name


def _put(file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    scratch = file.with_name(f".{file.name}.new")
    scratch.write_bytes(content)
    scratch.replace(file)
