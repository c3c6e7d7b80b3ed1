"""Models in this process: an engine thread per model that decodes waiting calls together.

Concurrent calls of one model are batched instead of run side by side: on a CPU a batch of eight
costs about twice as much as one call, not eight times. Two decoders share the work:

* ``transformers`` runs every causal LM and gives logits, so grammars, seeds and adapters work;
* ``ctranslate2`` is about twice as fast for plain text on a CPU and gives the same text, since it
  computes in float32. Its int8 form is another three times faster, but answers change: the
  packaged model no longer knows the capital of France.

``engine="auto"`` takes ctranslate2 for plain text of packaged models, transformers for the rest.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import anyio
import sniffio

from .calling import (
    call_grammar,
    has_results,
    narrowed,
    offered,
    results_briefly,
    template_turns,
    told_briefly,
    told_plainly,
    with_calls,
    without_middle,
)
from .errors import FailureKind, ModelError, WorkerError
from .models import INSTALL, PACKAGED, Progress, available, fetch, fetch_fast
from .worker import (
    Call,
    Completion,
    FinishReason,
    Health,
    Message,
    OnText,
    Sampling,
    Tool,
    Usage,
    identity_of,
    ignore,
    with_system,
)

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerFast

    from .decode import Ctranslate2Decoder, TransformersDecoder

Precision = Literal["float32", "bfloat16"]
EngineName = Literal["auto", "transformers", "ctranslate2", "ctranslate2-int8"]

ToolUse = Literal["free", "first"]

ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""The file of an adapter's matrices, by PEFT's name for it."""
_MOST_TOKENS = 512
"""Longest completion where neither call nor worker says otherwise."""
_GATHER_S = 0.01
"""How long an idle engine waits for one more call to decode together with those that came."""
_WIDEST = 32
"""Most calls in one batch: a wider one answers more calls in a second, each of them later."""


@dataclass(slots=True)
class Job:
    """One call in the engine's terms, with its ways back to the caller."""

    call: Call
    deliver: Callable[[str | Completion | WorkerError], None]
    """Hands over a piece of text or the end. Called from the engine thread."""
    adapter: str = ""
    """Folder of the adapter to answer with; the model as it is if empty."""
    most_input: int | None = None
    """Longest prompt, in tokens; of a longer one the middle is left out."""
    circling: bool = True
    """Whether it may say the same again and again; else the third time ends it."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    prompt: list[int] = field(default_factory=list)
    """Token ids of the rendered messages."""
    most_tokens: int = _MOST_TOKENS
    text: str = ""
    tokens: int = 0
    finish: FinishReason | None = None
    stream: Any = None
    """The tokenizers DecodeStream: token ids to text without splitting a character."""
    held: str = ""
    """Text not handed over yet, since it may be the beginning of a stop string."""

    @property
    def over(self) -> bool:
        """Whether no more tokens are wanted."""
        return self.finish is not None or self.cancelled.is_set()


@dataclass(frozen=True, slots=True, eq=False)
class Offsets:
    """Singular-value offsets with which a model is read; see :mod:`runtime.svf`. Compared by
    identity."""

    values: Mapping[str, np.ndarray]
    """By name of the matrix, as in the model's state dict: a number for each singular value,
    float32, from the largest value on."""


@dataclass(frozen=True, slots=True)
class Reader:
    """How conversations are read for their hidden states; readings of equal readers share a pass.

    A conversation is rendered with the prompt that asks for an answer at its end (and with the
    beginning of one, if it ends with an assistant message), and the state is that of the last token
    but one. That token is the same for all conversations and stands behind
    their whole text.
    """

    layer: int = -1
    """Which of the model's hidden states: -1 is what the LM head gets (the final layer, after the
    last norm), 0 the token embeddings, n what the n-th block gives."""
    plain: bool = False
    """Render as lines of ``role: content`` and not with the model's chat template."""
    most_tokens: int = 1024
    """Of a longer prompt the middle is left out: a decision must not take minutes."""
    offsets: Offsets | None = None
    """Scales some of the model's matrices; workers that share the model do not see it."""


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """Hidden states of conversations."""

    vectors: np.ndarray
    """(N, D) float32, one row a conversation."""
    tokens: tuple[int, ...]
    """Length of each prompt."""


@dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    """Conversations that wait to be read."""

    conversations: tuple[tuple[Message, ...], ...]
    reader: Reader
    states: Future[States] = field(default_factory=Future)


class Decoder(Protocol):
    """Decodes a batch of jobs to their ends."""

    def decode(
        self,
        jobs: Sequence[Job],
        push: Callable[[Job, int], None],
        join: Callable[[int], Sequence[Job]],
    ) -> None:
        """Generate until every job is over, giving each token to ``push`` as it is chosen.

        ``push`` sets ``job.finish`` when a job is over. An end-of-text token is pushed too.
        ``join``, told how many rows there are, gives jobs that came meanwhile and can share the
        batch; a decoder that takes them in answers them too.
        """

    def admit(self, job: Job) -> None:
        """Load what the job needs beside the model.

        Raises:
            ModelError: If that is missing or does not fit.
        """

    def alike(self, one: Job, other: Job) -> bool:
        """Whether two jobs can share a batch."""


class LocalModel:
    """One model in memory, shared by all workers made from it.

    Args:
        name: A packaged model (see ``conductor models``), a folder in Hugging Face form, or the
            name of a causal LM on the Hugging Face hub.
        engine: See the module's docstring.
        progress: Is told about long preparations (download, conversion).

    Nothing is loaded before the first call. The engine thread is a daemon: it holds no resource
    but memory.
    """

    def __init__(
        self,
        name: str,
        *,
        engine: EngineName = "auto",
        progress: Progress = lambda stage: None,
    ) -> None:
        self.name = name
        self.progress = progress
        self.engine: EngineName = engine
        self.threads: int | None = None
        """CPU threads that decode, to be set before the first call; None is half the cores, since a
        second thread on a core that is busy makes decoding slower."""
        self.precision: Precision = "float32"
        """What transformers computes in on a CPU, to be set before the first call. The second is
        twice as fast where the CPU has instructions for it, and replies change a little."""
        self.widest = _WIDEST
        """Most calls in one batch."""
        self._waiting: deque[Job] = deque()
        self._ready: list[Job] = []
        """Of the engine thread: calls that were prepared and wait for a batch."""
        self._readings: deque[_Reading] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._tokenizer: PreTrainedTokenizerFast | None = None
        self._folder = ""
        self._window = 0
        self._ends: frozenset[int] = frozenset()
        self._slow: TransformersDecoder | None = None
        self._quick: Ctranslate2Decoder | None = None

    async def complete(
        self,
        call: Call,
        on_text: OnText = ignore,
        *,
        adapter: str = "",
        most_input: int | None = None,
        circling: bool = True,
    ) -> Completion:
        """Answer a call; waits its turn in the engine.

        Args:
            call: What is asked.
            on_text: Gets the pieces of the completion.
            adapter: Folder of a LoRA adapter, as PEFT saves them, to answer with. Calls with
                different adapters are decoded in one batch.
            most_input: Longest prompt, in tokens; of longer ones the middle is left out, see
                :func:`shortened`.
            circling: Whether it may say the same again and again, up to its limit of tokens; else
                the third time ends it (``FinishReason.OTHER``).

        Raises:
            WorkerError: If the model or adapter can't be loaded, or the prompt is too long.
        """
        post = _poster()
        send, receive = anyio.create_memory_object_stream[str | Completion | WorkerError](
            float("inf")
        )

        def arrive(item: str | Completion | WorkerError) -> None:
            with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
                send.send_nowait(item)

        def deliver(item: str | Completion | WorkerError) -> None:
            try:
                post(arrive, item)
            except RuntimeError:  # the event loop has ended, and the call with it
                job.cancelled.set()

        job = Job(call, deliver, adapter, most_input, circling)
        with send, receive:
            try:
                self._submit(job)
                async for item in receive:
                    if isinstance(item, Completion):
                        return item
                    if isinstance(item, WorkerError):
                        raise item
                    on_text(item)
            finally:
                job.cancelled.set()
        raise AssertionError("the stream is closed by this function alone")

    async def aread(
        self, conversations: Sequence[Sequence[Message]], reader: Reader = Reader()
    ) -> States:
        """Give the hidden states of conversations: no token is generated, no logit computed.

        Readings do not wait for answers that are being decoded: they come between two tokens.

        Raises:
            ModelError: If the model can't be loaded or has no such layer.
        """
        post = _poster()
        arrived = anyio.Event()

        def arrive(future: Future[States]) -> None:
            with suppress(RuntimeError):  # the event loop has ended
                post(arrived.set)

        future = self._submit_reading(conversations, reader)
        future.add_done_callback(arrive)
        try:
            await arrived.wait()
        finally:
            future.cancel()
        return future.result()

    def read(self, conversations: Sequence[Sequence[Message]], reader: Reader = Reader()) -> States:
        """:meth:`aread` for code that is not async."""
        return self._submit_reading(conversations, reader).result()

    def check(self) -> Health:
        """Say whether the model is installed and fetched, without loading it."""
        needed = ["torch", "transformers"]
        if self._fast:
            needed.append("ctranslate2")
        missing = [package for package in needed if find_spec(package) is None]
        if missing:
            return Health(False, f"{', '.join(missing)} not installed: {INSTALL}")
        if self.name in PACKAGED:
            model = PACKAGED[self.name]
            if available(self.name):
                return Health(True, f"in this process, {model.parameters}, {model.licence}")
            size = f"{model.megabytes} MB"
            return Health(True, f"{size} to fetch on first use (conductor models pull)")
        if Path(self.name).is_dir():
            return Health(True, f"in this process, from {self.name}")
        return Health(True, "from the Hugging Face hub or its cache, on first use")

    @property
    def _fast(self) -> bool:
        """Whether plain text goes through ctranslate2."""
        auto = self.engine == "auto" and self.name in PACKAGED
        return auto or self.engine.startswith("ctranslate2")

    # --- the engine thread ---------------------------------------------------------------------

    def _submit(self, job: Job) -> None:
        with self._changed:
            self._waiting.append(job)
            self._wake()

    def _submit_reading(
        self, conversations: Sequence[Sequence[Message]], reader: Reader
    ) -> Future[States]:
        reading = _Reading(tuple(map(tuple, conversations)), reader)
        with self._changed:
            self._readings.append(reading)
            self._wake()
        return reading.states

    def _wake(self) -> None:
        self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._serve, name=f"model {self.name}", daemon=True
            )
            self._thread.start()
            atexit.register(self._stop)

    def _stop(self) -> None:
        """Let the engine thread end before the interpreter does, or native threads abort it."""
        with self._changed:
            self._stopping = True
            for job in self._waiting:
                job.cancelled.set()
            for reading in self._readings:
                reading.states.cancel()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout=30)

    def _serve(self) -> None:
        while not self._stopping:
            with self._changed:
                if not self._ready:
                    self._changed.wait_for(
                        lambda: self._waiting or self._readings or self._stopping
                    )
                    self._gather()
            self._read_waiting()
            self._take()
            if self._ready:
                self._decode(self._batch(self._ready[0], self.widest))
        self._slow = self._quick = None

    def _gather(self) -> None:
        """Wait while more calls come, up to as many as a batch takes."""
        seen = 0
        while seen < len(self._waiting) < self.widest and not self._readings:
            seen = len(self._waiting)
            self._changed.wait_for(
                lambda: self._readings or self._stopping or len(self._waiting) >= self.widest,
                _GATHER_S,
            )

    def _read_waiting(self) -> None:
        """Read all conversations that wait, those of equal readers together."""
        while self._readings:
            with self._changed:
                reader = self._readings[0].reader
                alike = [each for each in self._readings if each.reader == reader]
                self._readings = deque(each for each in self._readings if each.reader != reader)
            alike = [each for each in alike if each.states.set_running_or_notify_cancel()]
            try:
                states = self._read([one for each in alike for one in each.conversations], reader)
            except ModelError as error:
                for each in alike:
                    each.states.set_exception(error)
            except Exception as error:  # a broken model or template must not kill the engine
                told = f"{self.name} can't be read: {type(error).__name__}: {error}"
                for each in alike:
                    each.states.set_exception(ModelError(told))
            else:
                start = 0
                for each in alike:
                    end = start + len(each.conversations)
                    part = States(states.vectors[start:end], states.tokens[start:end])
                    each.states.set_result(part)
                    start = end

    def _read(self, conversations: Sequence[tuple[Message, ...]], reader: Reader) -> States:
        self._load()
        assert self._tokenizer is not None
        most = min(reader.most_tokens, self._window)
        prompts = []
        for conversation in conversations:
            prompts.append(
                reading_ids(self._tokenizer, conversation, plain=reader.plain, most=most)
            )
        # Attention is causal: the last token can't change the state of the one before it.
        vectors = self._exact().read([ids[:-1] for ids in prompts], reader.layer, reader.offsets)
        return States(vectors, tuple(map(len, prompts)))

    def _take(self) -> None:
        """Make the calls that wait ready."""
        with self._changed:
            new = list(self._waiting)
            self._waiting.clear()
        self._ready += [job for job in new if self._prepare(job)]
        self._ready = [job for job in self._ready if not job.cancelled.is_set()]

    def _alike(self, one: Job, other: Job) -> bool:
        decoder = self._decoder(one)
        return other is one or (self._decoder(other) is decoder and decoder.alike(one, other))

    def _batch(self, first: Job, most: int) -> list[Job]:
        """Take what is ready and can share a batch with a job, the oldest first."""
        batch = [job for job in self._ready if self._alike(first, job)][:most]
        chosen = set(map(id, batch))
        self._ready = [job for job in self._ready if id(job) not in chosen]
        return batch

    def _joining(self, first: Job, rows: int) -> list[Job]:
        """Take the calls that may join a batch under way, of so many rows and a job like these.

        Nobody, if somebody waits who can't: their turn would never come.
        """
        self._take()
        if not all(self._alike(first, job) for job in self._ready):
            return []
        return self._batch(first, max(0, self.widest - rows))

    def _prepare(self, job: Job) -> bool:
        """Render and tokenize; hand over the failure instead if that can't be done."""
        try:
            self._load()
            assert self._tokenizer is not None
            render = partial(
                prompt_ids,
                self._tokenizer,
                tools=job.call.tools,
                demanded=job.call.tool_choice == "required",
            )
            messages = job.call.messages
            if job.most_input is not None:
                most = min(job.most_input, self._window - 1)
                messages = shortened(messages, lambda those: len(render(those)) <= most)
            job.prompt = render(messages)
            job.stream = _decode_stream()
            wanted = job.call.sampling.max_tokens or _MOST_TOKENS
            job.most_tokens = min(wanted, self._window - len(job.prompt))
            if job.most_tokens < 1:
                length = len(job.prompt)
                message = f"the prompt has {length} tokens; {self.name} reads {self._window}"
                raise WorkerError(FailureKind.REJECTED, message)
            self._decoder(job).admit(job)
        except WorkerError as error:
            job.deliver(error)
            return False
        except ModelError as error:
            job.deliver(WorkerError(FailureKind.MODEL, str(error)))
            return False
        except Exception as error:  # a broken model or template must not kill the engine
            told = f"{self.name} can't be used: {type(error).__name__}: {error}"
            job.deliver(WorkerError(FailureKind.MODEL, told))
            return False
        return True

    def _decode(self, batch: list[Job]) -> None:
        first = batch[0]

        def join(rows: int) -> list[Job]:
            more = self._joining(first, rows)
            batch.extend(more)
            return more

        try:
            self._decoder(first).decode(tuple(batch), self._push, join)
        except Exception as error:  # out of memory, a bad grammar: the batch fails, not the engine
            told = f"{self.name} failed: {type(error).__name__}: {error}"
            for job in batch:
                if job.finish is None:
                    job.deliver(WorkerError(FailureKind.MODEL, told))

    def _push(self, job: Job, token: int) -> None:
        """Take one more token of a job: pass its text on; if it is over, hand it over at once."""
        if self._readings:
            self._read_waiting()
        if self._stopping:
            job.cancelled.set()
        if job.over:
            return
        job.tokens += 1
        if token in self._ends:
            job.finish = FinishReason.STOP
        else:
            assert self._tokenizer is not None
            piece = job.stream.step(self._tokenizer.backend_tokenizer, token)
            if piece:
                self._pass_on(job, piece)
            if job.finish is None and job.tokens >= job.most_tokens:
                job.finish = FinishReason.LENGTH
            if job.finish is None and not job.circling and _circles(job.text):
                job.finish = FinishReason.OTHER
        if job.finish is not None:
            if job.held:
                job.deliver(job.held)
            usage = Usage(len(job.prompt), job.tokens)
            job.deliver(Completion(job.text, job.finish, usage, self.name))

    def _pass_on(self, job: Job, piece: str) -> None:
        job.text += piece
        job.held += piece
        stops = job.call.sampling.stop
        found = [at for stop in stops if (at := job.text.find(stop)) >= 0]
        if found:
            surplus = len(job.text) - min(found)
            job.text = job.text[: min(found)]
            job.held = job.held[: max(0, len(job.held) - surplus)]
            job.finish = FinishReason.STOP
            return
        keep = max((_overlap(job.held, stop) for stop in stops), default=0)
        out, job.held = job.held[: len(job.held) - keep], job.held[len(job.held) - keep :]
        if out:
            job.deliver(out)

    # --- loading -------------------------------------------------------------------------------

    def _load(self) -> None:
        if self._tokenizer is not None:
            return
        try:
            from transformers import AutoConfig, AutoTokenizer, logging
        except ImportError as error:
            raise ModelError(f"{error.name} is not installed: {INSTALL}") from error
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        if self.name in PACKAGED:
            self._folder = str(fetch(self.name, self.progress))
        else:
            self._folder = self.name
        self.progress(f"loading {self.name}")
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(self._folder)
            config = AutoConfig.from_pretrained(self._folder)
        except OSError as error:
            raise ModelError(
                f"no model {self.name!r}: it is neither packaged ({', '.join(PACKAGED)}) nor a "
                "folder, and the Hugging Face hub did not give it"
            ) from error
        if tokenizer.chat_template is None:
            raise ModelError(f"{self.name} has no chat template; take an instruction-tuned model")
        self._window = int(getattr(config, "max_position_embeddings", 2048))
        self._ends = _end_tokens(tokenizer)
        self._tokenizer = tokenizer

    def _decoder(self, job: Job) -> Decoder:
        sampled = (job.call.sampling.temperature or 0) > 0
        exact = job.call.grammar is not None or (sampled and job.call.sampling.seed is not None)
        exact = exact or job.adapter != ""
        if not self._fast or exact:
            return self._exact()
        if self._quick is None:
            self._quick = self._make_quick()
        return self._quick

    def _exact(self) -> TransformersDecoder:
        if self._slow is None:
            from .decode import TransformersDecoder

            assert self._tokenizer is not None
            self._slow = TransformersDecoder(
                self._folder,
                self._tokenizer,
                threads=self.threads or _half(),
                precision=self.precision,
            )
        return self._slow

    def _make_quick(self) -> Ctranslate2Decoder:
        from .decode import Ctranslate2Decoder

        assert self._tokenizer is not None
        small = self.engine == "ctranslate2-int8"
        weights: Literal["int8", "float16"] = "int8" if small else "float16"
        folder = fetch_fast(Path(self._folder), weights, self.progress)
        compute = "int8" if small else "float32"
        return Ctranslate2Decoder(
            folder,
            self._tokenizer,
            self._ends,
            compute=compute,
            threads=self.threads or _half(),
        )


class LocalWorker:
    """A worker in this process. Several may share one model and differ in settings and adapter.

    Args:
        name: Its name in the pool.
        model: The model, or its name for a model of its own.
        adapter: Folder of a LoRA adapter, as PEFT saves them; the model as it is if empty.
        sampling: How it decodes, where a call leaves that open.
        system: A system message put before every call.
        card: What it is good at.
        tags: Words to choose or exclude it by.
        input_tokens: Longest prompt that it reads; of a longer one the middle is left out, with a
            word in its place, see :func:`shortened`. None to refuse what the model can't read
            whole.
        tools: What it makes of tools that it may call but need not. ``"free"``: its answer is
            searched for calls. ``"first"``, for a model that is too small to judge: it calls one
            first, decoded under the schemas, and answers once it has the result.
    """

    constrains = True

    def __init__(
        self,
        name: str,
        model: LocalModel | str = "smollm2-135m-instruct",
        *,
        adapter: str | Path = "",
        sampling: Sampling = Sampling(),
        system: str = "",
        card: str = "",
        tags: Sequence[str] = (),
        input_tokens: int | None = None,
        tools: ToolUse = "free",
    ) -> None:
        self.name = name
        self.model = LocalModel(model) if isinstance(model, str) else model
        self.adapter = str(adapter)
        self.sampling = sampling
        self.system = system
        self.card = card
        self.tags = tuple(tags)
        self.input_tokens = input_tokens
        self.tools: ToolUse = tools

    @property
    def identity(self) -> str:
        """Model, engine, a digest of the adapter, and settings, as JSON."""
        return identity_of(
            "local",
            model=self.model.name,
            engine=self.model.engine,
            adapter=_digest(self.adapter),
            sampling=self.sampling,
            system=self.system,
            input_tokens=self.input_tokens,
            tools=self.tools if self.tools != "free" else "",
        )

    async def complete(self, call: Call, on_text: OnText = ignore) -> Completion:
        """Decode with this worker's settings under the call's own.

        A ``response_format`` is a grammar here, so what is written is of that form.

        Raises:
            WorkerError: Also if the call asks for what no model in this process does.
        """
        self._check(call)
        tools, demanded = offered(call)
        small = self.tools == "first" and bool(tools)
        calls = demanded or (small and not has_results(call.messages))
        if small:
            asked = self._asked_briefly(call, tools, calls=calls)
        else:
            asked = self._asked(call, tools, demanded=demanded)
        complete = partial(
            self.model.complete,
            asked,
            adapter=self.adapter,
            most_input=self.input_tokens,
            circling=calls or not small,
        )
        if not tools or (small and not calls):
            return await complete(on_text)
        # What turns out to be a call is no text, so none is passed on before that is known.
        completion = with_calls(await complete(lambda text: on_text("")), tools)
        if calls and not completion.tool_calls:
            told = "the token limit cut its tool call off; raise max_tokens"
            raise WorkerError(FailureKind.BAD_RESPONSE, f"{self.name}: {told}")
        if completion.text:
            on_text(completion.text)
        return completion

    def _asked(self, call: Call, tools: tuple[Tool, ...], *, demanded: bool) -> Call:
        """The call in the terms of the model: what it says of itself filled in, and a grammar."""
        grammar = call.grammar
        if grammar is None and call.response_format and not demanded:
            grammar = _json_grammar(call.response_format)
        if tools and (demanded or grammar):
            grammar = call_grammar(tools, "" if demanded else grammar or "")
        return replace(
            call,
            messages=with_system(self.system, call.messages),
            sampling=call.sampling.over(self.sampling),
            grammar=grammar,
            tools=tools,
            tool_choice="required" if demanded else None,
        )

    def _asked_briefly(self, call: Call, tools: tuple[Tool, ...], *, calls: bool) -> Call:
        """As :meth:`_asked`, where tools are told in the fewest words: ask for a call, or for an
        answer with what the last ones gave."""
        limits = Sampling(temperature=0.0 if calls else None, max_tokens=_MOST_TOKENS)
        sampling = call.sampling.over(limits)
        if not calls:
            told = replace(call, messages=results_briefly(call.messages), sampling=sampling)
            return self._asked(told, (), demanded=False)
        few = narrowed(tools)
        return replace(
            call,
            messages=told_briefly(call.messages, few),
            sampling=sampling.over(self.sampling),
            grammar=call_grammar(few),
            tools=(),
            tool_choice=None,
        )

    def _check(self, call: Call) -> None:
        sampling = call.sampling
        told = [f"the setting {name}" for name in json.loads(call.extra or "{}")]
        told += ["frequency_penalty"] if sampling.frequency_penalty else []
        told += ["presence_penalty"] if sampling.presence_penalty else []
        told += ["content that is no text"] if any(each.parts for each in call.messages) else []
        if told:
            what = f"{self.name} runs in this process and has no {told[0]}"
            raise WorkerError(FailureKind.REJECTED, f"{what}; leave it out or ask a server")

    async def check(self) -> Health:
        """Say whether the model is installed and fetched, and the adapter there."""
        if self.adapter and not (Path(self.adapter) / ADAPTER_WEIGHTS).is_file():
            return Health(False, f"no adapter in {self.adapter}: {ADAPTER_WEIGHTS} is missing")
        return self.model.check()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass


def _digest(adapter: str) -> str:
    """SHA-256 of an adapter's weights; its folder if they can't be read."""
    try:
        return sha256((Path(adapter) / ADAPTER_WEIGHTS).read_bytes()).hexdigest() if adapter else ""
    except OSError:
        return adapter


def _poster() -> Callable[..., object]:
    """Return what hands a function and its arguments from any thread to the running event loop.

    anyio's own way, ``from_thread.run_sync``, waits for the result: a loop that is busy, or ends at
    that moment, would hold up the engine and with it the calls of all other loops.
    """
    if sniffio.current_async_library() == "trio":
        import trio

        return trio.lowlevel.current_trio_token().run_sync_soon
    import asyncio

    return asyncio.get_running_loop().call_soon_threadsafe


def _half() -> int:
    """Half the cores."""
    return max(1, (os.cpu_count() or 2) // 2)


_ROLES: dict[str, Literal["system"]] = {"developer": "system"}
"""Newer words, which templates don't know."""


def _json_grammar(response_format: str) -> str | None:
    """The Lark text of a response format, for llguidance; None for plain text."""
    form = json.loads(response_format)
    if form["type"] == "text":
        return None
    schema = form["json_schema"]["schema"] if form["type"] == "json_schema" else {"type": "object"}
    # Free white space lets a small model write blanks until its tokens are used up.
    compact = {**schema, "x-guidance": {"whitespace_flexible": False}}
    return f"start: %json {json.dumps(compact)}"


def shortened(
    messages: Sequence[Message], fits: Callable[[Sequence[Message]], bool]
) -> tuple[Message, ...]:
    """Leave out the middle of texts until the whole fits, of the longest ones first.

    Beginning and end of each stay, with a word in between that says how much is missing: a
    question is short, or stands at the end of what it is about. Calls of tools stay whole.

    Args:
        messages: What is too long, or not.
        fits: Whether messages are short enough.

    Returns:
        As much as fits; the shortest form that there is if that does not fit either.
    """
    if fits(messages):
        return tuple(messages)
    low, high = 0, max((len(each.content) for each in messages), default=0)
    while high - low > _FINE:
        middle = (low + high) // 2
        fine = fits([_cut(each, middle) for each in messages])
        low, high = (middle, high) if fine else (low, middle)
    return tuple(_cut(each, low) for each in messages)


_FINE = 50
"""How near to what would just fit a prompt is cut, in characters a message."""


def _cut(message: Message, most: int) -> Message:
    return replace(message, content=without_middle(message.content, most))


def prompt_ids(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    *,
    thinking: bool | None = None,
    tools: Sequence[Tool] = (),
    demanded: bool = False,
) -> list[int]:
    """Turn messages into token ids; only the chat template writes control tokens.

    Tools are told through the template if it takes them, else in words, see
    :mod:`runtime.calling`; ``demanded`` says that one has to be called.

    What a message holds of them, say "<|im_end|>", is encoded as the letters it is made of, or a
    worker could end its reader's turn and speak as the system. All other text keeps its ids, but
    for U+F0000 and U+F0001, with which transformers marks such places: content loses them.
    """
    messages = [replace(each, role=_ROLES.get(each.role, each.role)) for each in messages]
    # A template that does not know the word passes it over.
    more: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
    if _takes_tools(tokenizer):
        if tools:
            more["tools"] = [dict(each.declaration) for each in tools]
    else:
        messages = told_plainly(messages, tools, demanded=demanded)
    turns = template_turns(messages)
    ids: list[int] = tokenizer.apply_chat_template(  # type: ignore[assignment]  # as return_dict says
        turns, add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True, **more
    )
    return ids


def _takes_tools(tokenizer: PreTrainedTokenizerFast) -> bool:
    template = tokenizer.chat_template
    if isinstance(template, dict):  # of several, transformers takes the one for tools by itself
        return "tool_use" in template or "tools" in template.get("default", "")
    return template is not None and "tools" in template and "tool_calls" in template


def reading_ids(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    *,
    plain: bool = False,
    most: int | None = None,
) -> list[int]:
    """Turn messages into the token ids that a router reads; see :class:`Reader`.

    As :func:`prompt_ids`; a template that knows no system messages gets their text in the first
    user message. An assistant message at the end is the beginning of the reply.

    Args:
        tokenizer: The backbone's.
        messages: What is read.
        plain: As in :class:`Reader`.
        most: Of more tokens the middle is left out.
    """
    ids = _reading_ids(tokenizer, messages, plain)
    if most is None or len(ids) <= most:
        return ids
    return [*ids[: most // 2], *ids[most // 2 - most :]]


def _reading_ids(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], plain: bool
) -> list[int]:
    if messages[-1].role == "assistant" and not plain:
        begun = _reading_ids(tokenizer, messages[:-1], plain)
        lead = tokenizer(messages[-1].content, add_special_tokens=False, split_special_tokens=True)
        return [*begun, *lead["input_ids"]]
    if plain:
        text = "\n".join(f"{message.role}: {message.content}" for message in messages)
        ids: list[int] = tokenizer(text, split_special_tokens=True)["input_ids"]
        return ids
    from jinja2 import TemplateError

    try:
        return prompt_ids(tokenizer, messages, thinking=False)
    except TemplateError:
        system, *rest = messages
        if system.role != "system" or not rest:
            raise
        told = replace(rest[0], content=f"{system.content}\n\n{rest[0].content}")
        return prompt_ids(tokenizer, [told, *rest[1:]], thinking=False)


def _decode_stream() -> Any:
    from tokenizers.decoders import DecodeStream

    return DecodeStream(skip_special_tokens=True)


def _end_tokens(tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """Every token that ends a turn: models name one, but write others as well."""
    known = ("<|im_end|>", "<|endoftext|>", "</s>", "<end_of_turn>", "<|eot_id|>")
    vocabulary = tokenizer.get_vocab()
    ends = {vocabulary[token] for token in known if token in vocabulary}
    return frozenset(ends | {tokenizer.eos_token_id} - {None})


def _circles(text: str) -> bool:
    """Whether a sentence or line of some length stands in it for the third time."""
    said = Counter(each for each in _SENTENCES.split(text) if len(each) >= _SENTENCE)
    return any(times > 2 for times in said.values())


_SENTENCES = re.compile(r"\n|(?<=[.!?:]) ")
_SENTENCE = 10
"""Characters of what may not be said three times."""


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
