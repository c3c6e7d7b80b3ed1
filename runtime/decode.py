"""The two decoders of in-process models. Imported in the engine thread only: they bring torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

from .adapters import Adapters
from .errors import ModelError
from .svf import Scaler
from .worker import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from .local import Job, Offsets, Precision

Push = Callable[["Job", int], None]
Join = Callable[[int], Sequence["Job"]]

_WORTH_SHARING = 16
"""Fewest tokens in common for which prompts share their keys and values."""
_WORTH_A_PASS = 96
"""Fewest tokens of padding that are worth a pass of their own to avoid."""
_JOIN_EVERY = 8
"""Tokens between two times that jobs may join a batch: those that come together are read
together."""
_ROOM = 32
"""Tokens that keys and values may grow by before they are copied."""
_MOST_ROWS, _MOST_CELLS = 64, 4096
"""Most prompts, and tokens with padding, of a batch that is only read."""


class _Roomy(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of a layer in buffers with room to grow.

    The layer that it takes the place of copies all of them for each token.
    """

    _room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **more: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values, (B, H, T, D) each; gives all there are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        whole = length + key_states.shape[-2]
        room, keys, values = self._room, self.keys, self.values
        assert keys is not None
        assert values is not None
        # Rows that were chosen, or a copy, are elsewhere in memory.
        fits = room is not None and length and room[0].data_ptr() == keys.data_ptr()
        if room is None or not fits or whole > room[0].shape[-2]:
            shape = (*key_states.shape[:2], whole + _ROOM, key_states.shape[-1])
            room = key_states.new_empty(shape), value_states.new_empty(shape)
            if length:
                room[0][:, :, :length] = keys
                room[1][:, :, :length] = values
            self._room = room
        room[0][:, :, length:whole] = key_states
        room[1][:, :, length:whole] = value_states
        self.keys, self.values = room[0][:, :, :whole], room[1][:, :, :whole]
        return self.keys, self.values


def roomy_cache() -> DynamicCache:
    """An empty cache of keys and values that grows without copying."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = _Roomy
    return cache


class _Batch(NamedTuple):
    """Rows that are decoded together, each before the choice of its next token."""

    rows: list[tuple[Job, Any, torch.Generator]]
    """Each job, what is left of its grammar (None: it has none), and its source of chance."""
    logits: torch.Tensor  # (B, vocabulary)
    cache: DynamicCache
    mask: torch.Tensor  # (B, T so far): attention
    positions: torch.Tensor  # (B, 1): of the last token


class TransformersDecoder:
    """Batched decoding with the KV cache in torch: any causal LM, any sampling, any grammar.

    ``model.generate`` is not used, for five things it can't do: settings, a seed and an adapter of
    its own for each row of a batch; leaving a row behind that is done or cancelled; taking in a job
    that comes later; reading what all prompts begin with once; and, for a job alone, pushing the
    tokens that a grammar leaves no choice about through the model in one pass (about half of the
    tokens of a plan, which halves the time).

    Args:
        folder: Model in Hugging Face form, or its name on the hub.
        tokenizer: Its tokenizer.
        threads: CPU threads of torch.
        precision: What a CPU computes in.
    """

    def __init__(
        self,
        folder: str,
        tokenizer: PreTrainedTokenizerFast,
        *,
        threads: int,
        precision: Precision = "float32",
    ) -> None:
        torch.set_num_threads(threads)
        cuda = torch.cuda.is_available()
        self._device = torch.device("cuda" if cuda else "cpu")
        dtype = "auto" if cuda else getattr(torch, precision)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self._model.to(self._device)  # type: ignore[arg-type]  # the wrapper loses its types
        self._model.train(False)
        self._tokenizer = tokenizer
        self._adapters = Adapters(self._model)
        self._grammars: Grammars | None = None
        self._kept: tuple[str, list[int], DynamicCache] | None = None
        """Adapter, tokens and keys/values of the last single job: prompts often share their
        beginning."""
        self._scaler = Scaler(self._model, folder)
        self._offsets: Offsets | None = None
        """Those of what was read last."""
        self._kept_read: tuple[list[int], DynamicCache] = ([], roomy_cache())
        """Tokens and keys/values of what was read last: readings begin with one template."""

    def admit(self, job: Job) -> None:
        """Load the job's adapter, if it has one."""
        self._adapters.load(job.adapter)

    def alike(self, one: Job, other: Job) -> bool:
        """Any jobs share a batch that decode under the same grammar, or under none.

        Their adapters may differ.
        """
        return one.call.grammar == other.call.grammar

    @torch.inference_mode()
    def decode(self, jobs: Sequence[Job], push: Push, join: Join) -> None:
        """Decode to the end of every job, and of those that join."""
        batch = self._decode_one(jobs[0], push, join) if len(jobs) == 1 else self._begun(jobs)
        if batch is not None:
            self._decode_batch(batch, push, join)

    def _matcher(self, grammar: str | None) -> Any:
        if grammar is None:
            return None
        if self._grammars is None:
            self._grammars = Grammars(self._tokenizer, self._model.config.vocab_size)
        return self._grammars.matcher(grammar)

    def _decode_one(self, job: Job, push: Push, join: Join) -> _Batch | None:
        """Decode a job alone.

        Returns:
            The batch that it is in once others have joined it; None if it is over.
        """
        matcher = self._matcher(job.call.grammar)
        dice = self._dice(job.call.sampling)
        self._adapters.use([job.adapter])
        tokens, cache = self._resume(job.adapter, job.prompt)
        fresh = job.prompt[len(tokens) :]
        tokens = list(tokens)
        for step in count(1):
            if job.over:
                break
            if matcher is not None:
                forced = matcher.compute_ff_tokens()
                if forced:
                    matcher.consume_tokens(forced)
                    fresh = fresh + forced
                    for token in forced:
                        push(job, token)
                if matcher.is_stopped() or job.over:
                    break
            logits = self._forward(torch.tensor([fresh]), cache, None, None)
            tokens += fresh
            if step % _JOIN_EVERY == 0 and (more := join(1)):
                mask = torch.ones((1, len(tokens)), dtype=torch.long)
                alone = _Batch([(job, matcher, dice)], logits, cache, mask, mask.sum(-1, True) - 1)
                return self._taken_in(alone, more)
            fresh = [self._next(job, logits[0], matcher, dice, push)]
        if not job.over:  # the forced tokens completed the grammar
            push(job, self._tokenizer.eos_token_id)
        self._kept = (job.adapter, tokens, cache)
        return None

    def _next(
        self, job: Job, logits: torch.Tensor, matcher: Any, dice: torch.Generator, push: Push
    ) -> int:
        """Choose and push the next token of a job; end the job if that completes its grammar."""
        if matcher is not None:
            assert self._grammars is not None
            flags = torch.from_numpy(self._grammars.allowed(matcher))
            logits = logits.masked_fill(~flags, float("-inf"))
        token = _choose(logits, job.call.sampling, dice)
        push(job, token)
        if matcher is not None:
            matcher.consume_token(token)
            if matcher.is_stopped() and not job.over:
                push(job, self._tokenizer.eos_token_id)
        return token

    def _resume(self, adapter: str, prompt: list[int]) -> tuple[list[int], DynamicCache]:
        """Take over what the last job has in common with this prompt, all but its last token."""
        if self._kept is None:
            return [], roomy_cache()
        other, tokens, cache = self._kept
        self._kept = None
        same = _shared([[*tokens, -1], prompt])
        if not same or adapter != other:
            return [], roomy_cache()
        if same < len(tokens):
            cache.crop(same - len(tokens))
        return prompt[:same], cache

    def _begun(self, jobs: Sequence[Job]) -> _Batch:
        """Read prompts; what they begin with is read once an adapter."""
        groups = _begun_alike(sorted(jobs, key=lambda job: len(job.prompt)))
        grammar = self._matcher(jobs[0].call.grammar)
        rows = [
            (job, grammar and grammar.deep_copy(), self._dice(job.call.sampling))
            for group in groups
            for job in group
        ]
        return _Batch(rows, *self._read_prompts(groups))

    def _taken_in(self, batch: _Batch, jobs: Sequence[Job]) -> _Batch:
        """Put more jobs into a batch."""
        more = self._begun(jobs)
        rows = [*batch.rows, *more.rows]
        self._adapters.use([job.adapter for job, _, _ in rows])
        return _Batch(
            rows,
            torch.cat([batch.logits, more.logits]),
            _joined([batch.cache, more.cache]),
            _padded_left([batch.mask, more.mask]),
            torch.cat([batch.positions, more.positions]),
        )

    def _decode_batch(self, batch: _Batch, push: Push, join: Join) -> None:
        """Decode row by row of a batch."""
        rows, logits, cache, mask, positions = batch
        for step in count(1):
            chosen = [
                self._next(job, row, matcher, dice, push)
                for row, (job, matcher, dice) in zip(logits, rows, strict=True)
            ]
            going = [at for at, (job, _, _) in enumerate(rows) if not job.over]
            if not going:
                return
            if len(going) < len(rows):
                cache.batch_select_indices(torch.tensor(going, device=self._device))
                rows = [rows[at] for at in going]
                mask, positions = mask[going], positions[going]
                self._adapters.use([job.adapter for job, _, _ in rows])
                # Rows that are left may all begin later than one that is over.
                if unused := int(mask.argmax(-1).min()):
                    _without(cache, unused)
                    mask = mask[:, unused:]
            ids = torch.tensor([chosen[at] for at in going]).unsqueeze(-1)
            mask = torch.cat([mask, torch.ones((len(rows), 1), dtype=torch.long)], dim=-1)
            positions = positions[:, -1:] + 1
            logits = self._forward(ids, cache, mask, positions)
            if step % _JOIN_EVERY == 0 and (more := join(len(rows))):
                batch = self._taken_in(_Batch(rows, logits, cache, mask, positions), more)
                rows, logits, cache, mask, positions = batch

    def _read_prompts(
        self, groups: Sequence[Sequence[Job]]
    ) -> tuple[torch.Tensor, DynamicCache, torch.Tensor, torch.Tensor]:
        """Read the prompts of jobs, group by group; in each they are sorted by their lengths.

        Those of about one length are read together, so that little is padding.

        Returns:
            Of the jobs in their order: logits of each next token (B, vocabulary), keys and values,
            the attention mask (B, T), and the position of each last token (B, 1).
        """
        logits: list[torch.Tensor] = []
        masks: list[torch.Tensor] = []
        last: list[torch.Tensor] = []
        caches: list[DynamicCache] = []
        for group in groups:
            same = _shared([job.prompt for job in group])
            begun = self._begin(group, same)
            for rows in _alike([len(job.prompt) - same for job in group]):
                pack = [group[row] for row in rows]
                cache = begun
                if same and len(pack) < len(group):
                    cache = deepcopy(begun)
                    cache.batch_select_indices(torch.tensor(rows, device=self._device))
                elif not same:
                    cache = roomy_cache()
                self._adapters.use([job.adapter for job in pack])
                ids, mask, positions = padded([job.prompt[same:] for job in pack], same)
                logits.append(self._forward(ids, cache, mask, positions))
                masks.append(mask)
                last.append(positions[:, -1:])
                caches.append(cache)
        self._adapters.use([job.adapter for group in groups for job in group])
        return torch.cat(logits), _joined(caches), _padded_left(masks), torch.cat(last)

    @torch.inference_mode()
    def read(
        self, prompts: Sequence[list[int]], layer: int, offsets: Offsets | None = None
    ) -> np.ndarray:
        """Give the hidden state of each prompt's last token, without the LM head.

        What the prompts begin with is read once, and not at all if the last readings began with it
        too. Adapters are left out. May be called between two tokens of a decoding.

        Returns:
            (N, D) float32, of the layer of :attr:`runtime.Reader.layer`.

        Raises:
            ModelError: If there is no such layer, or the offsets don't fit.
        """
        depth = int(self._model.config.get_text_config().num_hidden_layers)
        if not -depth - 1 <= layer <= depth:
            told = f"the model has hidden states 0 to {depth}, or -{depth + 1} to -1 from the end"
            raise ModelError(f"there is no hidden state {layer}; {told}")
        vectors: list[Any] = [None] * len(prompts)
        if offsets is not self._offsets:
            self._kept_read, self._offsets = ([], roomy_cache()), offsets
        with self._adapters.none(), self._scaler.scaled(offsets):
            for rows in _packs([len(prompt) for prompt in prompts]):
                batch = [prompts[row] for row in rows]
                read = self._read_one(batch[0], layer) if len(rows) == 1 else None
                found = self._read_batch(batch, layer) if read is None else read
                for row, vector in zip(rows, found.float().cpu().numpy(), strict=True):
                    vectors[row] = vector
        return np.stack(vectors) if vectors else np.zeros((0, self._width), dtype=np.float32)

    @property
    def _width(self) -> int:
        return int(self._model.config.get_text_config().hidden_size)

    def _read_one(self, prompt: list[int], layer: int) -> torch.Tensor:
        cache, same = self._resume_read([*prompt, -1])
        if same == len(prompt):  # read already; but a state is only had by reading
            cache.crop(-1)
            same -= 1
        state = self._states(torch.tensor([prompt[same:]]), cache, None, None, layer)
        self._kept_read = (list(prompt), cache)
        return state

    def _read_batch(self, prompts: Sequence[list[int]], layer: int) -> torch.Tensor:
        same = _shared(prompts)
        begun = prompts[0][:same]
        cache = roomy_cache()
        if same:
            kept, read = self._resume_read([*begun, -1])
            if read < same:
                self._states(torch.tensor([begun[read:]]), kept, None, None, layer)
            self._kept_read = (begun, kept)
            cache = deepcopy(kept)
            rows = torch.zeros(len(prompts), dtype=torch.long, device=self._device)
            cache.batch_select_indices(rows)
        ids, mask, positions = padded([prompt[same:] for prompt in prompts], same)
        return self._states(ids, cache, mask, positions, layer)

    def _resume_read(self, prompt: list[int]) -> tuple[DynamicCache, int]:
        """Take over what the last readings have in common with this prompt, its last token apart.

        Returns:
            Keys and values, of how many tokens.
        """
        tokens, cache = self._kept_read
        self._kept_read = ([], roomy_cache())
        same = _shared([[*tokens, -1], prompt])
        if not same:
            return roomy_cache(), 0
        if same < len(tokens):
            cache.crop(same - len(tokens))
        return cache, same

    def _states(
        self,
        ids: torch.Tensor,  # (B, T)
        cache: DynamicCache,
        mask: torch.Tensor | None,  # (B, T so far)
        positions: torch.Tensor | None,  # (B, T)
        layer: int,
    ) -> torch.Tensor:
        """Hidden states of the last token, (B, D)."""
        final = layer == -1
        out = self._model.base_model(
            input_ids=ids.to(self._device),
            attention_mask=None if mask is None else mask.to(self._device),
            position_ids=None if positions is None else positions.to(self._device),
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=not final,
        )
        states: torch.Tensor = out.last_hidden_state if final else out.hidden_states[layer]
        return states[:, -1]

    def _begin(self, jobs: Sequence[Job], same: int) -> DynamicCache:
        """Read the ``same`` tokens that all begin with; give keys and values, a row a job."""
        begun = jobs[0].prompt[:same]
        adapters = sorted({job.adapter for job in jobs})
        if len(adapters) == 1:
            tokens, cache = self._resume(adapters[0], [*begun, -1])
        else:
            tokens, cache = [], roomy_cache()
        if len(tokens) < same:
            self._adapters.use(adapters)
            ids = torch.tensor([begun[len(tokens) :]] * len(adapters))
            self._forward(ids, cache, None, None)
        if same:
            rows = [adapters.index(job.adapter) for job in jobs]
            cache.batch_select_indices(torch.tensor(rows, device=self._device))
        return cache

    def _forward(
        self,
        ids: torch.Tensor,  # (B, T)
        cache: DynamicCache,
        mask: torch.Tensor | None,  # (B, T so far)
        positions: torch.Tensor | None,  # (B, T)
    ) -> torch.Tensor:
        """Logits of the next token, (B, vocabulary), fp32, on the CPU."""
        out = self._model(
            input_ids=ids.to(self._device),
            attention_mask=None if mask is None else mask.to(self._device),
            position_ids=None if positions is None else positions.to(self._device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = out.logits[:, -1].float().cpu()
        return logits

    def _dice(self, sampling: Sampling) -> torch.Generator:
        """A source of chance for one job, so that its draws don't depend on its batch."""
        generator = torch.Generator()
        if sampling.seed is not None:
            generator.manual_seed(sampling.seed)
        else:
            generator.seed()
        return generator


class Grammars:
    """Says which tokens a decoding grammar allows next.

    Args:
        tokenizer: Of the model.
        vocabulary: How many logits it has, V.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocabulary: int) -> None:
        import llguidance.hf

        self._tokens = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary)
        self._vocabulary = vocabulary

    def matcher(self, grammar: str) -> Any:
        """Begin to match a grammar: an ``llguidance.LLMatcher``, which is told each token.

        Raises:
            ValueError: If it can't be used.
        """
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokens, LLMatcher.grammar_from_lark(grammar))
        if matcher.is_error():
            raise ValueError(f"the grammar is not usable: {matcher.get_error()}")
        return matcher

    def allowed(self, matcher: Any) -> NDArray[np.bool_]:
        """The tokens that may follow what a matcher was told, (V,).

        The bits are unpacked with numpy: llguidance's own torch kernel is compiled on first use,
        for 3 s and only where there is a C++ compiler.
        """
        import llguidance.numpy

        bits = llguidance.numpy.allocate_token_bitmask(1, self._vocabulary)
        llguidance.numpy.fill_next_token_bitmask(matcher, bits, 0)
        flags = np.unpackbits(bits.view(np.uint8), bitorder="little")
        return flags[: self._vocabulary].astype(bool)


def _common(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, each one's last token apart."""
    most = min(map(len, prompts)) - 1
    return next((at for at in range(most) if len({prompt[at] for prompt in prompts}) > 1), most)


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """The same; 0 if hardly any."""
    same = _common(prompts)
    return same if same >= _WORTH_SHARING else 0


def _begun_alike(jobs: Sequence[Job]) -> list[list[Job]]:
    """Part jobs by what their prompts begin with, where that saves more than passes cost.

    A plan's first steps, its later ones and questions that are handed on begin differently.
    """
    prompts = [job.prompt for job in jobs]
    fork = _common(prompts)
    same = fork if fork >= _WORTH_SHARING else 0
    ways: dict[int, list[Job]] = {}
    for job in jobs:
        ways.setdefault(job.prompt[fork], []).append(job)
    groups: list[list[Job]] = []
    rest: list[Job] = []
    for way in ways.values() if len(ways) > 1 else ():
        begun = _shared([job.prompt for job in way])
        adapters = len({job.adapter for job in way})
        if (begun - same) * len(way) - begun * adapters < _WORTH_A_PASS:
            rest += way
        else:
            groups += _begun_alike(way)
    if not groups:
        return [list(jobs)]
    return [*groups, sorted(rest, key=lambda job: len(job.prompt))] if rest else groups


def _alike(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Cut rows, sorted by length, where padding would be more than a fifth of what is read."""
    pack: list[int] = []
    filled = 0
    for row, length in enumerate(lengths):
        cells = (len(pack) + 1) * length
        if pack and cells > 1.25 * (filled + length) and cells - filled - length > _WORTH_A_PASS:
            yield pack
            pack, filled = [], 0
        pack.append(row)
        filled += length
    yield pack


def _joined(caches: Sequence[DynamicCache]) -> DynamicCache:
    """Put the rows of several caches into one, padded on the left."""
    if len(caches) == 1:
        return caches[0]
    width = max(cache.get_seq_length() for cache in caches)
    whole = roomy_cache()
    for number, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        keys, values = (
            torch.cat(
                [torch.nn.functional.pad(each, (0, 0, width - each.shape[-2], 0)) for each in of]
            )
            for of in zip(*((layer.keys, layer.values) for layer in layers), strict=True)
        )
        whole.update(keys, values, number)
    return whole


def _padded_left(masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Put the rows of several attention masks into one."""
    width = max(mask.shape[1] for mask in masks)
    pad = torch.nn.functional.pad
    return torch.cat([pad(mask, (width - mask.shape[1], 0)) for mask in masks])


def _without(cache: DynamicCache, columns: int) -> None:
    """Leave out the first columns of a cache."""
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        layer.keys, layer.values = layer.keys[:, :, columns:], layer.values[:, :, columns:]


def padded(
    rests: Sequence[Sequence[int]], same: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lay what follows ``same`` tokens out in a batch: the last column is the last token of all.

    Returns:
        Token ids (B, T), attention mask (B, same + T), positions (B, T).
    """
    width = max(map(len, rests))
    ids = torch.zeros((len(rests), width), dtype=torch.long)
    mask = torch.zeros((len(rests), same + width), dtype=torch.long)
    mask[:, :same] = 1
    for row, rest in enumerate(rests):
        ids[row, -len(rest) :] = torch.tensor(rest)
        mask[row, -len(rest) :] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, same:]
    return ids, mask, positions


def _packs(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Sort prompts into batches of about one length, so that little is padding."""
    pack: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        cells = (len(pack) + 1) * lengths[row]
        if pack and (len(pack) == _MOST_ROWS or cells > _MOST_CELLS):
            yield pack
            pack = []
        pack.append(row)
    if pack:
        yield pack


def _choose(logits: torch.Tensor, sampling: Sampling, dice: torch.Generator) -> int:
    """Pick the next token from (vocabulary,) logits: greedy at temperature 0, else nucleus."""
    if not sampling.temperature:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        before = ordered.cumsum(-1) - ordered  # mass ahead of each token; the first always stays
        probabilities = torch.zeros_like(probabilities).scatter(
            0, order, ordered.masked_fill(before >= sampling.top_p, 0.0)
        )
    return int(torch.multinomial(probabilities, 1, generator=dice))


class Ctranslate2Decoder:
    """Fast decoding on a CPU: one set of sampling settings a batch, no logits, no seed.

    Args:
        folder: Model in ctranslate2's form.
        tokenizer: Its tokenizer.
        ends: Tokens that end a completion.
        compute: Arithmetic, ``"float32"`` or ``"int8"``.
        threads: CPU threads.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerFast,
        ends: frozenset[int],
        *,
        compute: str,
        threads: int,
    ) -> None:
        import ctranslate2

        self._generator = ctranslate2.Generator(
            str(folder), device="cpu", compute_type=compute, intra_threads=threads
        )
        self._tokenizer = tokenizer
        self._ends = sorted(ends)

    def admit(self, job: Job) -> None:
        """Nothing is needed beside the model: jobs with adapters are not decoded here."""

    def alike(self, one: Job, other: Job) -> bool:
        """Same settings and about the same length.

        Of prompts of different length ctranslate2 reads only the length of the shortest at once
        and the rest token by token, so a long prompt would be slow beside a short one.
        """
        if self._settings(one.call.sampling) != self._settings(other.call.sampling):
            return False
        shorter, longer = sorted((len(one.prompt), len(other.prompt)))
        return longer - shorter <= 8 + shorter // 8

    def decode(self, jobs: Sequence[Job], push: Push, join: Join) -> None:
        """Decode to the end of every job. Nobody joins: ctranslate2 takes no rows in."""

        def step(result: Any) -> bool:
            job: Job = jobs[result.batch_id]
            push(job, result.token_id)
            return job.over

        self._generator.generate_batch(
            [self._tokenizer.convert_ids_to_tokens(job.prompt) for job in jobs],
            max_length=max(job.most_tokens for job in jobs),
            include_prompt_in_result=False,
            end_token=self._ends,
            callback=step,
            **self._settings(jobs[0].call.sampling),
        )

    def _settings(self, sampling: Sampling) -> dict[str, float]:
        if not sampling.temperature:
            return {"sampling_topk": 1}
        top_p = sampling.top_p if sampling.top_p is not None else 1.0
        return {
            "sampling_topk": 0,
            "sampling_topp": top_p,
            "sampling_temperature": sampling.temperature,
        }
