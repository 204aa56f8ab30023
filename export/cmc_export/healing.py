"""A thinned model learns from the whole one: what `pretrain --teacher` adds to the loss.

    loss = (1 - w) * cross-entropy of the text + w * KL(teacher || model), means over all positions

The teacher's distribution is over the tokens that the model has: where its vocabulary was cut the
teacher has no rows for the others either, so their mass is shared out among the rest. What is held
out is measured by cross-entropy alone, as in a run without a teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmc_export.delta_model import LlamaForCausalLM
from cmc_export.initial_model import Start, keep_tokens, load, words_of_model
from cmc_export.loop import Batch, Objective
from cmc_local.errors import InputError
from cmc_local.text.vocabulary import from_tokenizer_json


def open_teacher(path: Path, start: Start | None, words: bytes) -> LlamaForCausalLM:
    """The frozen teacher with the tokens of `words`, the model's tokenizer.json.

    Raises InputError for a teacher that has not every token of the model.
    """
    teacher = load(path)
    kept: Sequence[int] | None = None if start is None else start.kept
    before = len(from_tokenizer_json(words)) if start is None else start.vocabulary_before
    if teacher.config.vocab_size != before:
        raise InputError(
            f"{path} has {teacher.config.vocab_size:,} tokens, the model that it is to teach "
            f"{before:,}: give the model that --init names, or another of its vocabulary"
        )
    _check_texts(path, kept, words)
    if kept is not None:
        teacher = keep_tokens(teacher, kept, words)
    return teacher.requires_grad_(False).eval()


def _check_texts(path: Path, kept: Sequence[int] | None, words: bytes) -> None:
    """That the teacher's tokens, where it says what they are, are the model's."""
    theirs = words_of_model(path)
    if theirs is None:
        return
    names, own = from_tokenizer_json(theirs).tokens, from_tokenizer_json(words).tokens
    places = range(len(own)) if kept is None else kept
    wrong = [i for i, place in enumerate(places) if names[place] != own[i]]
    if wrong:
        raise InputError(
            f"{path} means {names[list(places)[wrong[0]]]!r} by a token that is {own[wrong[0]]!r} "
            "in the model: give a teacher of its vocabulary"
        )


class Distillation(Objective):
    """Next tokens, and the teacher's view of them."""

    def __init__(self, teacher: LlamaForCausalLM, weight: float, plain: Objective) -> None:
        """`weight` is the KL's share; `plain` the loss on the text."""
        self.teacher, self.weight, self.plain = teacher, weight, plain

    def counts(self, batch: Batch) -> Tensor:
        """(1,) float: the targets of the batch."""
        return self.plain.counts(batch)

    def loss(self, model: nn.Module, batch: Batch, counts: Tensor) -> Tensor:
        """The step's mean, () float32, nats; cross-entropy alone where nothing is learned."""
        if not torch.is_grad_enabled():
            return self.plain.loss(model, batch, counts)
        ids = batch["input_ids"]
        with torch.no_grad():
            wanted = self.teacher.to(ids.device)(input_ids=ids, use_cache=False).logits
            wanted = torch.log_softmax(wanted.flatten(0, 1).float(), dim=-1)  # (N, V)
        found = model(input_ids=ids, use_cache=False).logits.flatten(0, 1).float()
        losses = F.cross_entropy(found, batch["targets"].flatten(), reduction="sum")
        said = torch.log_softmax(found, dim=-1)
        apart = F.kl_div(said, wanted, reduction="sum", log_target=True)
        return ((1 - self.weight) * losses + self.weight * apart) / counts[0]
