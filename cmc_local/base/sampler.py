"""Choosing the next token by llama.cpp's native samplers, on whatever logits the base model holds.

The chain has llama.cpp's own order: biases, penalties, top-k, typical, top-p, min-p, temperature,
then a draw; temperature 0 ends in the most likely token after the penalties. A form that the reply
must have (`text/forms.py`) comes before all of them. Every one sees logits that a shift has been
added to in place. Never attached to the context (`llama_set_sampler`): raw logits would not be
copied out then.
"""

from __future__ import annotations

import ctypes
import secrets
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from cmc_local.base.library import llama_cpp
from cmc_local.base.model import BaseModel
from cmc_local.errors import UsageError
from cmc_local.settings import Sampling
from cmc_local.text.forms import Ids, Matcher, form_of

_NONE_LEFT = "the reply's form allows none of the model's tokens here: widen it"
LogitBias = tuple[int, float]
"""A base token, and what is added to its logit."""


class NativeSampler:
    """One reply's sampler chain; its random state and its penalties' memory are its own."""

    def __init__(self, base: BaseModel, sampling: Sampling) -> None:
        """Raises UsageError for a form of the reply that cannot be kept."""
        self._base = base
        self.seed = secrets.randbelow(2**32 - 1) if sampling.seed is None else sampling.seed
        """The seed in use; giving it in `Sampling` repeats the reply."""
        _check_biases(sampling.logit_bias, base.n_vocab)
        form = form_of(sampling)
        matcher = None if form is None else base.forms.matcher(form)
        params = llama_cpp.llama_sampler_chain_default_params()
        self._chain: Any = llama_cpp.llama_sampler_chain_init(params)
        self._free = weakref.finalize(self, llama_cpp.llama_sampler_free, self._chain)
        for stage in _stages(base, sampling, self.seed):
            llama_cpp.llama_sampler_chain_add(self._chain, stage)
        self._formed = None if matcher is None else _Formed(base, matcher, sampling.logit_bias)

    def sample(self, i: int = -1) -> int:
        """The token for row `i` of the last decode; the chain remembers it.

        Raises UsageError if the form allows none of the model's tokens, or is too much work.
        """
        if not self._free.alive:
            raise UsageError("the sampler has been closed: make a new one")
        if self._formed is not None:
            return self._formed.sample(self._chain, i)
        return int(llama_cpp.llama_sampler_sample(self._chain, self._base.llama_context, i))

    def forced(self) -> Sequence[int]:
        """The tokens after the last one that the form leaves no choice about."""
        return () if self._formed is None else self._formed.forced()

    def close(self) -> None:
        """Free the chain; more than once is fine."""
        self._free()


class _Formed:
    """Sampling among the tokens that a form allows."""

    def __init__(self, base: BaseModel, matcher: Matcher, logit_bias: Sequence[LogitBias]) -> None:
        """The biases come first, so that it is seen if they leave nothing."""
        self._base = base
        self._matcher = matcher
        self._biases = np.zeros(base.n_vocab, np.float32) if logit_bias else None
        for token, bias in logit_bias:
            assert self._biases is not None
            self._biases[token] = bias
        # (V,) llama_token_data: id, logit, probability
        fields = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._candidates = np.zeros(base.n_vocab, fields)

    def forced(self) -> Sequence[int]:
        return self._matcher.forced()

    def sample(self, chain: Any, i: int) -> int:
        choice = self._matcher.choice()
        if choice.forbidden and self._biases is None:
            token = self._all_but(choice.ids, chain, i)
        elif len(choice.ids) == 1 and self._biases is None:
            token = int(choice.ids[0])
            llama_cpp.llama_sampler_accept(chain, token)
        else:
            token = self._among(self._matcher.allowed(), chain, i)
        self._matcher.take(token)
        return token

    def _all_but(self, forbidden: Ids, chain: Any, i: int) -> int:
        """A token that is not among these, by llama.cpp's own pass over the row."""
        row = self._base.logits(i)
        kept = row[forbidden]
        row[forbidden] = -np.inf
        token = int(llama_cpp.llama_sampler_sample(chain, self._base.llama_context, i))
        impossible = not np.isfinite(row[token])
        row[forbidden] = kept  # whoever reads the row later reads the whole distribution
        if impossible:
            raise UsageError(_NONE_LEFT)
        return token

    def _among(self, allowed: Ids, chain: Any, i: int) -> int:
        """One of these tokens."""
        candidates = self._candidates[: len(allowed)]
        candidates["id"] = allowed
        np.take(self._base.logits(i), allowed, out=candidates["logit"], mode="clip")
        if self._biases is not None:
            candidates["logit"] += self._biases[allowed]
        if not np.isfinite(candidates["logit"]).any():
            raise UsageError(_NONE_LEFT)
        array = llama_cpp.llama_token_data_array(
            data=candidates.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data)),
            size=len(candidates),
            selected=-1,
            sorted=False,
        )
        llama_cpp.llama_sampler_apply(chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        llama_cpp.llama_sampler_accept(chain, token)
        return token


def _stages(base: BaseModel, sampling: Sampling, seed: int) -> list[Any]:
    """The samplers in llama.cpp's order; one that would change nothing is left out."""
    stages: list[Any] = []
    if sampling.logit_bias and not sampling.has_form:
        stages.append(_biases(sampling.logit_bias, base.n_vocab))
    penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
    if penalties != (1.0, 0.0, 0.0) and sampling.penalty_last_n:
        window = base.n_ctx if sampling.penalty_last_n < 0 else sampling.penalty_last_n
        stages.append(llama_cpp.llama_sampler_init_penalties(base.n_vocab, window, *penalties))
    if sampling.temperature == 0.0:
        return [*stages, llama_cpp.llama_sampler_init_greedy()]
    if sampling.top_k:
        stages.append(llama_cpp.llama_sampler_init_top_k(sampling.top_k))
    if sampling.typical_p < 1.0:
        stages.append(llama_cpp.llama_sampler_init_typical(sampling.typical_p, 1))
    if sampling.top_p < 1.0:
        stages.append(llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0.0:
        stages.append(llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1))
    stages.append(llama_cpp.llama_sampler_init_temp(sampling.temperature))
    stages.append(llama_cpp.llama_sampler_init_dist(seed))
    return stages


def _check_biases(logit_bias: Sequence[LogitBias], n_vocab: int) -> None:
    wrong = next((token for token, _ in logit_bias if token >= n_vocab), None)
    if wrong is not None:
        raise UsageError(
            f"logit_bias: token {wrong} is not in the base model's vocabulary of {n_vocab}"
        )


def _biases(logit_bias: Sequence[LogitBias], n_vocab: int) -> Any:
    biases = (llama_cpp.llama_logit_bias * len(logit_bias))()
    for one, (token, bias) in zip(biases, logit_bias, strict=True):
        one.token, one.bias = token, bias
    return llama_cpp.llama_sampler_init_logit_bias(n_vocab, len(biases), biases)
