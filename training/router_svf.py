"""Bend the router's backbone: singular-value offsets of one block, learned with the head.

The offsets (SVF, section 3 of the TRINITY paper, arXiv 2512.04695; :mod:`runtime.svf`) scale the
singular values of the seven matrices of the last block but one: a few thousand numbers. The loss is
that of :mod:`training.router_sft`. What lies below the block never changes, so its output is
computed once and kept in memory; an update goes through two blocks of thirty.

The head that is trained along is thrown away: once the states have changed, SFT trains another one
on them, in a frame and with settings of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from conductor.router import Encoder
from runtime import fetch, model_folder, reading_ids

from .router_sft import Examples, Fitted, targets
from .states import Array
from .tasks import Task

if TYPE_CHECKING:
    import torch

MATRICES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""Matrices of a block that are scaled, by their names in Llama and Qwen models."""


class SVF(BaseModel):
    """How the offsets are trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: float = Field(default=0.01, gt=0)
    """Learning rate of Adam for the offsets; the head has a tenth of it."""
    updates: int = Field(default=60, ge=1)
    batch: int = Field(default=16, ge=1)
    """Tasks of an update."""
    every: int = Field(default=15, ge=1)
    """Updates from one look at the validation tasks to the next."""


@dataclass(frozen=True, slots=True)
class Bend:
    """One look at the validation tasks."""

    update: int
    loss: float | None
    """Mean KL(p || policy) of the updates since the last look, in nats; None before the first."""
    validation_loss: float


@dataclass(frozen=True, eq=False)
class Bent:
    """Trained offsets."""

    offsets: dict[str, Array]
    """By name of the matrix, float32, a number for each singular value; those with the least
    validation loss. All zero if no look was better than the first."""
    looks: tuple[Bend, ...]


def bend(
    encoder: Encoder,
    fitted: Fitted,
    train: tuple[Sequence[Task], Examples],
    validation: tuple[Sequence[Task], Examples],
    settings: SVF = SVF(),
    *,
    seed: int = 0,
    report: Callable[[Bend], None] = lambda look: None,
    stop: Callable[[], bool] = lambda: False,
) -> Bent:
    """Train offsets for an encoder without any, from a head that fits its states.

    Args:
        encoder: The backbone; it must read the final layer.
        fitted: Where the head begins, and the temperature of the targets.
        train: Tasks, and what is known of them. Tasks on which all workers tie are left out.
        validation: Likewise: what chooses between looks.
        settings: How.
        seed: Of the order of the tasks.
        report: Is told of every look.
        stop: Is asked before every update; what is best so far is given.

    Raises:
        ValueError: If the encoder has offsets or reads another layer, the model's blocks have other
            names, or no task tells workers apart.
    """
    import torch

    if encoder.offsets or encoder.reader.layer != -1:
        raise ValueError("offsets are trained for a backbone without any, read at the final layer")
    blocks = _Blocks.of(encoder)
    tau = fitted.setting.tau
    learned, checked = (_decided(*part) for part in (train, validation))
    if not learned[0]:
        raise ValueError("all workers score the same on every training task; nothing to learn")
    below, below_checked = (blocks.below(part[0], settings.batch) for part in (learned, checked))
    soft, soft_checked = (
        torch.from_numpy(targets(rewards, tau)) for _, rewards in (learned, checked)
    )
    offsets = {
        name: torch.zeros(min(weight.shape), requires_grad=True)
        for name, weight in blocks.weights.items()
    }
    basis = torch.from_numpy(fitted.frame.basis)
    # As soft as its targets: sharpening came afterwards.
    theta = torch.from_numpy(fitted.theta / fitted.sharpness).clone().requires_grad_()
    optimizer = torch.optim.Adam(
        [
            {"params": list(offsets.values()), "lr": settings.rate},
            {"params": [theta], "lr": settings.rate / 10},
        ]
    )

    def loss_of(rows: Sequence[int], inputs: Sequence[torch.Tensor], goal: torch.Tensor) -> Any:
        states = blocks.states([inputs[row] for row in rows], offsets)
        policy = torch.log_softmax(states @ basis @ theta.T, dim=-1)
        return torch.nn.functional.kl_div(policy, goal[list(rows)], reduction="batchmean")

    def look(update: int, loss: float | None) -> Bend:
        with torch.no_grad():
            rows = range(len(below_checked))
            parts = [list(rows[at : at + settings.batch]) for at in rows[:: settings.batch]]
            found = sum(float(loss_of(p, below_checked, soft_checked)) * len(p) for p in parts)
        return Bend(update, loss, found / max(1, len(below_checked)))

    random = np.random.default_rng(seed)
    order: list[int] = []
    looks = [look(0, None)]
    report(looks[0])
    best = looks[0].validation_loss, {name: each.detach().clone() for name, each in offsets.items()}
    losses: list[float] = []
    for update in range(1, settings.updates + 1):
        if stop():
            break
        if len(order) < settings.batch:
            order = random.permutation(len(below)).tolist() + order
        rows = [order.pop() for _ in range(min(settings.batch, len(order)))]
        loss = loss_of(rows, below, soft)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if update % settings.every == 0 or update == settings.updates:
            looks.append(look(update, float(np.mean(losses))))
            losses.clear()
            report(looks[-1])
            if looks[-1].validation_loss < best[0]:
                kept = {name: each.detach().clone() for name, each in offsets.items()}
                best = looks[-1].validation_loss, kept
    return Bent({name: each.numpy() for name, each in best[1].items()}, tuple(looks))


def bent(encoder: Encoder, offsets: dict[str, Array]) -> Encoder:
    """Give the encoder with these offsets."""
    reader = encoder.reader
    return Encoder(
        encoder.model,
        system=encoder.system,
        frame=encoder.frame,
        lead=encoder.lead,
        plain=reader.plain,
        most_tokens=reader.most_tokens,
        offsets=offsets,
    )


def _decided(tasks: Sequence[Task], examples: Examples) -> tuple[list[str], Array]:
    kept = examples.decided
    questions = [task.question for task, keep in zip(tasks, kept, strict=True) if keep]
    return questions, examples.rewards[kept]


@dataclass(frozen=True, eq=False)
class _Blocks:
    """The last two blocks of a model, and what is needed to run them."""

    encoder: Encoder
    tokenizer: Any
    body: Any
    names: tuple[str, ...]
    """Of the scaled matrices, in the state dict."""
    weights: dict[str, torch.Tensor]
    spectra: dict[str, Any]

    @classmethod
    def of(cls, encoder: Encoder) -> _Blocks:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from runtime.svf import Spectrum

        folder = model_folder(encoder.id) or fetch(encoder.id)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model.train(False).requires_grad_(False)
        at = len(model.model.layers) - 2
        own = dict(model.named_parameters())
        names = tuple(f"model.layers.{at}.{each}.weight" for each in MATRICES)
        if at < 0 or (missing := [name for name in names if name not in own]):
            told = missing[0] if at >= 0 else "two blocks"
            raise ValueError(f"{encoder.id} has no {told}; its blocks can't be scaled")
        weights = {name: own[name].data for name in names}
        spectra = {name: Spectrum.of(weight) for name, weight in weights.items()}
        return cls(encoder, tokenizer, model.model, names, weights, spectra)

    def below(self, questions: Sequence[str], batch: int) -> list[torch.Tensor]:
        """What goes into the two blocks for each question, (T, D), up to the token that is read."""
        import torch

        reader = self.encoder.reader
        prompts = [
            reading_ids(self.tokenizer, each, plain=reader.plain, most=reader.most_tokens)[:-1]
            for each in self.encoder.rendered(questions)
        ]
        found: dict[int, torch.Tensor] = {}
        order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            padded = torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(prompts[row]) for row in rows], batch_first=True
            )
            with torch.no_grad():
                out = self.body(padded, use_cache=False, output_hidden_states=True)
            for row, hidden in zip(rows, out.hidden_states[-3], strict=True):
                found[row] = hidden[: len(prompts[row])].clone()
        return [found[row] for row in range(len(prompts))]

    def states(
        self, inputs: Sequence[torch.Tensor], offsets: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Hidden states (N, D) of inputs (T, D) each, with the offsets in place.

        Padded on the right: attention is causal, so no token sees what is behind it.
        """
        import torch

        lengths = torch.tensor([len(each) for each in inputs])
        hidden = torch.nn.utils.rnn.pad_sequence(list(inputs), batch_first=True)
        positions = torch.arange(hidden.shape[1])[None]
        turned = self.body.rotary_emb(hidden, positions)
        scaled, last = self.body.layers[-2:]
        prefix = self.names[0].removesuffix(MATRICES[0] + ".weight")
        made = {
            name.removeprefix(prefix): self.spectra[name].scale(self.weights[name], offsets[name])[
                0
            ]
            for name in self.names
        }
        for block, weights in ((scaled, made), (last, {})):
            arguments = {"position_embeddings": turned, "position_ids": positions}
            out = torch.func.functional_call(block, weights, (hidden,), arguments)
            hidden = out[0] if isinstance(out, tuple) else out
        read: torch.Tensor = self.body.norm(hidden[torch.arange(len(inputs)), lengths - 1])
        return read
