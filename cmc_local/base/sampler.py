"""Choosing the next token by llama.cpp's native samplers, on whatever logits the base model holds.

The chain has llama.cpp's own order: grammar, biases, penalties, top-k, typical, top-p, min-p,
temperature, then a draw; temperature 0 ends in the most likely token after the penalties. Every one
of them sees logits that a shift has been added to in place. Never attached to the context
(`llama_set_sampler`): raw logits would not be copied out then.
"""

from __future__ import annotations

import ctypes
import secrets
import weakref
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np

from cmc_local.base import library as base_library
from cmc_local.base.library import llama_cpp
from cmc_local.base.model import BaseModel
from cmc_local.errors import UsageError
from cmc_local.settings import Sampling

_LOOSE_CHARACTER = r'char ::= [^"\\] |'
_CHARACTER = r'char ::= [^"\\\x00-\x1F\x7F] |'
"""What a JSON string may hold: the converter's own rule lets line breaks in (RFC 8259, 7)."""
PATIENCE = 1.0
"""Seconds for one token under a grammar; ways to read a text may double with each of its tokens."""
LogitBias = tuple[int, float]
"""A base token, and what is added to its logit."""


class NativeSampler:
    """One reply's sampler chain; its random state and its penalties' memory are its own."""

    def __init__(self, base: BaseModel, sampling: Sampling) -> None:
        """Raises UsageError for a grammar or schema that cannot be used."""
        self._base = base
        self.seed = secrets.randbelow(2**32 - 1) if sampling.seed is None else sampling.seed
        """The seed in use; giving it in `Sampling` repeats the reply."""
        _check_biases(sampling.logit_bias, base.n_vocab)
        grammar = _grammar(base, sampling)
        params = llama_cpp.llama_sampler_chain_default_params()
        self._chain: Any = llama_cpp.llama_sampler_chain_init(params)
        self._free = weakref.finalize(self, llama_cpp.llama_sampler_free, self._chain)
        for stage in _stages(base, sampling, self.seed):
            llama_cpp.llama_sampler_chain_add(self._chain, stage)
        self._guided = None if grammar is None else _Guided(base, grammar, sampling.logit_bias)

    def sample(self, i: int = -1) -> int:
        """The token for row `i` of the last decode; the chain remembers it.

        Raises UsageError if a grammar allows none of the model's tokens, or takes for ever.
        """
        if not self._free.alive:
            raise UsageError("the sampler has been closed: make a new one")
        if self._guided is not None:
            return self._guided.sample(self._chain, i)
        return int(llama_cpp.llama_sampler_sample(self._chain, self._base.llama_context, i))

    def close(self) -> None:
        """Free the chain; more than once is fine."""
        self._free()
        if self._guided is not None:
            self._guided.close()


class _Guided:
    """Sampling under a grammar, which llama.cpp must not be told of a token that it forbids.

    `llama_sampler_sample` would abort the process there, so this fills the candidates itself and
    looks at the choice before the grammar learns of it.
    """

    def __init__(self, base: BaseModel, grammar: Any, logit_bias: Sequence[LogitBias]) -> None:
        """The biases come first, so that it is seen if they leave nothing."""
        self._base = base
        self._biased = np.array([token for token, _ in logit_bias], np.intp)
        self._biases = np.array([bias for _, bias in logit_bias], np.float32)
        self._grammar = grammar
        self._free = weakref.finalize(self, llama_cpp.llama_sampler_free, grammar)
        # (V,) llama_token_data: id, logit, probability
        fields = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._candidates = np.zeros(base.n_vocab, fields)
        self._ids = np.arange(base.n_vocab, dtype=np.int32)

    def sample(self, chain: Any, i: int) -> int:
        begun = perf_counter()
        candidates = self._candidates
        candidates["id"] = self._ids
        candidates["logit"] = self._base.logits(i)
        candidates["logit"][self._biased] += self._biases
        array = llama_cpp.llama_token_data_array(
            data=candidates.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data)),
            size=len(candidates),
            selected=-1,
            sorted=False,
        )
        llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(array))
        if not np.isfinite(candidates["logit"]).any():
            raise UsageError("the grammar allows none of the model's tokens here: widen it")
        llama_cpp.llama_sampler_apply(chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        llama_cpp.llama_sampler_accept(self._grammar, token)
        llama_cpp.llama_sampler_accept(chain, token)
        if perf_counter() - begun > PATIENCE:
            raise UsageError(
                f"the grammar took over {PATIENCE:g} s for one token: let it read a text in one way"
            )
        return token

    def close(self) -> None:
        self._free()


def _stages(base: BaseModel, sampling: Sampling, seed: int) -> list[Any]:
    """The samplers in llama.cpp's order; one that would change nothing is left out."""
    stages: list[Any] = []
    if sampling.logit_bias and sampling.grammar is None and sampling.json_schema is None:
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


def _grammar(base: BaseModel, sampling: Sampling) -> Any:
    """The grammar's sampler, or None."""
    text = sampling.grammar
    if sampling.json_schema is not None:
        text = _schema_grammar(sampling.json_schema)
    if text is None:
        return None
    if not text.strip():
        raise UsageError("the grammar is empty: give GBNF with a rule `root`, or leave it out")
    with base_library.ErrorLines() as errors, base_library.captured_stderr() as printed:
        grammar = llama_cpp.llama_sampler_init_grammar(base.llama_vocab, text.encode(), b"root")
    if not grammar:
        told = [line.partition("error parsing grammar: ")[2] for line in printed]
        reason = next((line for line in told if line), errors.reason() or "it does not parse")
        raise UsageError(f"the grammar cannot be used ({reason}): see llama.cpp's GBNF guide")
    return grammar


def _schema_grammar(schema: str) -> str:
    """A JSON schema as GBNF. The converter raises whatever it stumbles over."""
    try:
        found = str(llama_cpp.llama_grammar.json_schema_to_gbnf(schema))
        return found.replace(_LOOSE_CHARACTER, _CHARACTER)
    except ValueError as error:  # JSON's errors among them
        reason = str(error)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    raise UsageError(
        f"the JSON schema cannot be used ({reason.splitlines()[0]}): give a simpler one, or GBNF"
    )
