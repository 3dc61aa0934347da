"""How SLIM's student learns to say what the teacher said (WWW 2024): next-token loss on the rationale alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from vlm2rec.backbones.load import Backbone
from vlm2rec.backbones.packing import Prompt
from vlm2rec.config import SLIM, Config
from vlm2rec.training.loop import Step


@dataclass(frozen=True)
class Example:
    """A student's prompt, and the tokens of the rationale that it should say."""

    prompt: Prompt
    answer: list[int]


def label(backbone: Backbone, rationale: str, most: int) -> list[int]:
    """Tokens of a rationale as a student should say it, cut after `most`; where it ends before, it is told to stop."""
    ids = backbone.title_tokens(rationale)
    end = backbone.tokenizer.eos_token_id
    return ids[:most] if end is None or len(ids) >= most else [*ids, int(end)]


def distillation(logits: Tensor, tokens: Tensor) -> Tensor:
    """Sum of -log P of tokens `(T,)` from logits `(T, V)`, in float32: the source's loss, its minus sign kept."""
    return cross_entropy(logits.float(), tokens, reduction="sum")


def rationale_logits(backbone: Backbone, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Logits `(T, V)` of every token `(T,)` of the rationales, each from the state of the token before it.

    No logits are made of the prompts: with a vocabulary of many thousands they would be most of the memory.
    """
    rows = [[*example.prompt.ids, *example.answer] for example in examples]
    states, _ = backbone.states(rows, [visual for example in examples for visual in example.prompt.visuals])
    before = [
        states[row, len(example.prompt.ids) - 1 : len(example.prompt.ids) + len(example.answer) - 1]
        for row, example in enumerate(examples)
    ]
    tokens = torch.tensor([token for example in examples for token in example.answer], device=states.device)
    return backbone.logits(torch.cat(before)), tokens


def distillation_step(backbone: Backbone, examples: Sequence[Example], config: Config) -> Step:
    """One batch of the student's training, for `fit`; the loss is a mean over the batch's rationale tokens."""
    assert isinstance(config.method, SLIM)
    size, seed = config.method.batch_size, config.seed
    part = config.training.micro_batch or size
    steps_per_epoch = -(-len(examples) // size)

    def step(k: int, backward: Callable[[Tensor], None]) -> Mapping[str, float]:
        epoch, place = divmod(k, steps_per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(examples))
        batch = [examples[row] for row in order[place * size : (place + 1) * size]]
        count = sum(len(example.answer) for example in batch)
        loss = 0.0
        for start in range(0, len(batch), part):  # a sum over tokens: parts of a batch add up to the whole
            value = distillation(*rationale_logits(backbone, batch[start : start + part])) / count
            backward(value)
            loss += float(value.detach())
        return {"loss": loss, "samples": float(len(batch)), "tokens": float(count)}

    return step
