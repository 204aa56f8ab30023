"""The base model: tokens in, logits out, by llama.cpp; the GGUF is never changed.

    with BaseModel("model.gguf") as base:
        tokens = base.tokenize("Once upon a time")
        base.decode(tokens, start=0)
        base.logits().argmax()          # the next token, greedily

Logits are a view into llama.cpp's own buffer: what is written there is what the native samplers
(`base/sampler.py`) see. Knows nothing of adapters or prompts. One instance belongs to one thread at
a time.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cmc_local.base import library as base_library
from cmc_local.base import rpc as base_rpc
from cmc_local.base.batch import LlamaBatch
from cmc_local.base.embedding import BATCH, NO_POOLING, Embedding
from cmc_local.base.library import llama_cpp
from cmc_local.base.lora import LoraLike, Loras
from cmc_local.base.span import Span
from cmc_local.base.threads import usable_cores
from cmc_local.base.vocabulary import tokenize, vocabulary_of
from cmc_local.errors import GGUFError, PromptTooLong, UsageError
from cmc_local.lifetime import Closing
from cmc_local.text.forms import Forms
from cmc_local.text.vocabulary import Vocabulary

_KV_TYPES = {"f32": 0, "f16": 1}  # ggml_type
_FLASH_OFF = 0  # llama_flash_attn_type
_ROWS_WITHOUT_FLASH = 128
"""On the CPU one sequence is up to a tenth faster without flash attention (from a few hundred
tokens on). The scores that it then writes down take memory by the context times the rows of a
prompt decoded at once, so not with a context longer than USUAL_CONTEXT. Of several sequences in
one cache flash attention passes over what a row cannot see."""
_CONTEXT_FULL = 1  # llama_decode's result
USUAL_CONTEXT = 8192
"""Tokens taken unasked where a model was trained with more: the cache is allocated at once, and
128k tokens of it are gigabytes."""


class BaseModel(Closing):
    """A GGUF model with one context of `sequences` sequences, each of up to `n_ctx` tokens."""

    def __init__(
        self,
        path: str | Path,
        *,
        context: int = 0,
        batch: int = 512,
        gpu_layers: int = -1,
        threads: int | None = None,
        sequences: int = 1,
        kv_type: Literal["f16", "f32"] = "f16",
        cells: int = 0,
        loras: Sequence[LoraLike] = (),
        rpc: Sequence[str] = (),
    ) -> None:
        """Load `path`; `context` 0 takes what the model was trained with, at most USUAL_CONTEXT.

        `context` is each sequence's; what several of them have in common takes room once.
        `gpu_layers` -1 puts every layer on a GPU if this build of llama.cpp has one; `threads`
        None takes the physical cores; `kv_type` "f32" is for comparisons, exact and slower.
        `cells` bounds the tokens that all sequences hold together; 0 gives each a whole context.
        `loras` are LoRA files (GGUF) with their scales, which llama.cpp adds while it decodes.
        `rpc` are servers, `host:port`, that take layers as a GPU does (`base/rpc.py`: plain text,
        no authentication, and the process ends with a server that goes away).
        Raises GGUFError for a file that cannot be used.
        """
        if rpc and gpu_layers == 0:
            raise UsageError("0 layers on the GPU leave nothing for the RPC servers: drop one")
        self.path = Path(path)
        self.batch = batch
        self.sequences = sequences
        self._gpu_layers, self._rpc, self._kv_type = gpu_layers, base_rpc.addresses(rpc), kv_type
        devices = base_rpc.devices(self._rpc) if rpc else ()
        self._model = base_library.load(self.path, gpu_layers=gpu_layers, devices=devices)
        self._contexts: list[Any] = []
        self._free = weakref.finalize(self, _free, self._model, self._contexts)
        _refuse_other_kinds(self._model, self.path)
        self._loras = Loras(self._model, loras, self.path)
        trained = int(llama_cpp.llama_model_n_ctx_train(self._model))
        context = context or _usual_context(trained, sequences)
        self._threads = threads or usable_cores()
        params = self._params(context, batch, sequences)
        params.n_ctx = cells or params.n_ctx
        self._context = self._new_context(params)
        self._vocab: Any = llama_cpp.llama_model_get_vocab(self._model)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = LlamaBatch(batch)
        self.n_vocab = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
        # llama.cpp rounds the context up to a multiple of 256.
        self.n_ctx = min(context, int(llama_cpp.llama_n_ctx(self._context)))

    def _new_context(self, params: Any) -> Any:
        with base_library.ErrorLines() as errors:
            context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            raise GGUFError(
                f"{self.path} gets no context ({errors.reason() or 'out of memory?'}):"
                " choose a smaller context"
            )
        self._contexts.append(context)
        self._loras.act_on(context)
        return context

    def _params(self, context: int, batch: int, sequences: int) -> Any:
        params = _context_params(context, batch, self._threads, sequences)
        params.type_k = params.type_v = _KV_TYPES[self._kv_type]
        offloads = self._gpu_layers != 0 and (self._rpc or base_library.offloads_to_gpu())
        if self._kv_type == "f32":
            params.flash_attn_type = _FLASH_OFF  # it rounds to half precision, whatever is cached
        elif not offloads and sequences == 1 and context <= USUAL_CONTEXT:
            params.flash_attn_type, params.n_ubatch = _FLASH_OFF, min(batch, _ROWS_WITHOUT_FLASH)
        return params

    def _embedding_context(self, tokens: int) -> Any:
        params = self._params(tokens, BATCH, 1)
        params.embeddings, params.pooling_type = True, NO_POOLING
        return self._new_context(params)

    @cached_property
    def can_roll_back(self) -> bool:
        """Whether a sequence can be cut anywhere; a recurrent model keeps its last state alone."""
        self._must_be_open()
        kinds = (llama_cpp.llama_model_is_recurrent, llama_cpp.llama_model_is_hybrid)
        return not any(kind(self._model) for kind in kinds)

    @property
    def threads(self) -> int:
        """Threads that decode."""
        return self._threads

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The GGUF's tokens; made at first use, 1 s for 128,256 of them."""
        self._must_be_open()
        return vocabulary_of(self._vocab, self.path)

    @cached_property
    def forms(self) -> Forms:
        """What keeps a reply to a JSON schema or a grammar of this model's tokens."""
        return Forms(self.vocabulary, self._encode_within)

    def _encode_within(self, text: str) -> list[int]:
        """The tokens of a text that stands within a longer one: no space is put before it.

        Tried behind several characters, since a tokenizer may join any of them with the text.
        """
        texts, data = self.vocabulary.tokens, text.encode("utf-8", "replace")
        for anchor in ("", "\n", "a", "."):
            before = self.tokenize(anchor, bos=False) if anchor else []
            found = self.tokenize(anchor + text, bos=False)
            own = found[len(before) :]
            if found[: len(before)] == before and b"".join(texts[one] for one in own) == data:
                return own
        return self.tokenize(text, bos=False)

    @property
    def chat_template(self) -> str | None:
        """The GGUF's Jinja template. Untrusted: `text/chat_template.py` renders it in a sandbox."""
        self._must_be_open()
        template = llama_cpp.llama_model_chat_template(self._model, None)
        return None if template is None else str(template.decode("utf-8", "replace"))

    @property
    def llama_context(self) -> Any:
        """The `llama_context *`, for native samplers."""
        self._must_be_open()
        return self._context

    def tokenize(self, text: str, *, special: bool = False, bos: bool | None = None) -> list[int]:
        """The tokens of `text`; `special` reads the spellings of control tokens as such.

        `bos` None puts BOS first if the model wants it (once, even if `text` spells it out);
        True and False overrule the model. EOS is never added.
        """
        self._must_be_open()
        tokens = tokenize(self._vocab, text, special=special)
        begin = int(llama_cpp.llama_vocab_bos(self._vocab))
        wanted = llama_cpp.llama_vocab_get_add_bos(self._vocab) if bos is None else bos
        if wanted and begin >= 0 and tokens[:1] != [begin]:
            return [begin, *tokens]
        return tokens

    def decode(
        self, tokens: Sequence[int], *, start: int, sequence: int = 0, last_only: bool = True
    ) -> None:
        """Run `tokens` at positions `start`, `start + 1`, ... of `sequence`, in batches.

        Afterwards `logits(-1)` belongs to the last token; with `last_only=False`, for at most
        `batch` tokens, `logits(i)` to token i. Raises PromptTooLong if the context has no room.
        """
        if not last_only and len(tokens) > self.batch:
            raise UsageError(
                f"logits of all of {len(tokens)} tokens were asked for:"
                f" give at most {self.batch} at once"
            )
        if start + len(tokens) > self.n_ctx:
            raise PromptTooLong(_too_long(start + len(tokens), self.n_ctx))
        for at in range(0, max(len(tokens), 1), self.batch):
            chunk = tokens[at : at + self.batch]
            ends = at + len(chunk) == len(tokens)
            outputs = None if ends and last_only else range(0 if last_only else len(chunk))
            self.decode_spans([Span(sequence, start + at, chunk, outputs)])

    def decode_spans(self, spans: Sequence[Span]) -> None:
        """Run the spans of several sequences together, at most `batch` tokens of them.

        Afterwards `logits(i)` belongs to row i of the batch, where that row asked for them.
        Raises PromptTooLong if a sequence's context, or the cache they share, has no room.
        """
        self._must_be_open()
        if not spans or not all(len(span.tokens) for span in spans):
            raise UsageError("nothing to decode: give at least one token")
        if (count := sum(len(span.tokens) for span in spans)) > self.batch:
            raise UsageError(f"{count} tokens in one batch: give at most {self.batch} at once")
        end = max(span.end for span in spans)
        if end > self.n_ctx:
            raise PromptTooLong(_too_long(end, self.n_ctx))
        self._batch.fill(spans)
        with_error = llama_cpp.llama_decode(self._context, self._batch.struct)
        if with_error == _CONTEXT_FULL:
            raise PromptTooLong(_too_long(end, self.n_ctx))
        if with_error:
            raise GGUFError(
                f"{self.path}: llama.cpp could not decode the tokens up to position {end}"
                f" (its code {with_error}): begin the sequence anew"
            )

    def logits(self, i: int = -1) -> NDArray[np.float32]:
        """(V,) float32 view into llama.cpp's buffer: row `i` of the last decode, -1 the last.

        llama.cpp may move the buffer in the next decode: fetch it anew each time.
        """
        self._must_be_open()
        pointer = llama_cpp.llama_get_logits_ith(self._context, i)
        if not pointer:
            raise UsageError(f"row {i} of the last decode has no logits: decode it first")
        view: NDArray[np.float32] = np.ctypeslib.as_array(pointer, (self.n_vocab,))
        return view

    def outputs(self, count: int) -> NDArray[np.float32]:
        """(count, V) float32 view: the rows of the last decode that asked for logits, in order.

        `count` is the number of those rows; see `logits`.
        """
        self._must_be_open()
        pointer = llama_cpp.llama_get_logits(self._context)
        if not pointer:
            raise UsageError("no row of the last decode has logits: decode some first")
        view: NDArray[np.float32] = np.ctypeslib.as_array(pointer, (count, self.n_vocab))
        return view

    def truncate(self, sequence: int, length: int) -> bool:
        """Keep the first `length` positions of `sequence`.

        False where the model's memory cannot (recurrent and hybrid models): then clear the
        sequence and decode it again.
        """
        self._must_be_open()
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, sequence, length, -1))

    def copy(self, source: int, target: int, length: int) -> None:
        """Let `target` begin with the first `length` positions of `source`, and hold no others.

        The two share the memory of what they have in common. Only where `can_roll_back`.
        """
        self.clear(target)
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def clear(self, sequence: int) -> None:
        """Forget everything of `sequence`."""
        self._must_be_open()
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def length(self, sequence: int = 0) -> int:
        """How many positions of `sequence` are in memory."""
        self._must_be_open()
        return int(llama_cpp.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def embed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """(d,) float32 of length 1: the text of these tokens as a vector (`base/embedding.py`).

        The base model's own, with its LoRA files; adapters do not act on it. No sequence is
        disturbed. Raises PromptTooLong for more tokens than the context holds.
        """
        self._must_be_open()
        return self._embedding(tokens, self._embedding_context)

    @cached_property
    def _embedding(self) -> Embedding:
        return Embedding(self._model, self.path, limit=self.n_ctx, contexts=self._contexts)

    def close(self) -> None:
        """Free the model and its context; more than once is fine."""
        self._free()

    def _must_be_open(self) -> None:
        if not self._free.alive:
            raise UsageError(f"{self.path} has been closed: load it again")


def _usual_context(trained: int, sequences: int) -> int:
    """Several sequences divide the usual cache, down to a quarter of it for each."""
    return min(trained, max(USUAL_CONTEXT // sequences, USUAL_CONTEXT // 4))


def _context_params(context: int, batch: int, threads: int, sequences: int) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = context * sequences
    params.n_batch = params.n_ubatch = batch
    params.n_outputs_max = params.n_outputs_max_per_seq = 0
    params.n_threads = params.n_threads_batch = threads
    params.n_seq_max = sequences
    params.kv_unified = True  # otherwise a partial copy between sequences aborts the process
    params.no_perf = True
    return params


def _refuse_other_kinds(model: Any, path: Path) -> None:
    """A base model writes text from left to right."""
    for unfit, kind in (
        (llama_cpp.llama_model_has_encoder(model), "an encoder"),
        (llama_cpp.llama_model_is_diffusion(model), "a diffusion model"),
        (not llama_cpp.llama_model_has_decoder(model), "no text generator"),
    ):
        if unfit:
            raise GGUFError(f"{path} is {kind}: choose a model that generates text step by step")


def _too_long(tokens: int, context: int) -> str:
    return (
        f"{tokens} tokens do not fit the base model's context of {context}:"
        " shorten the prompt or load the model with a larger context"
    )


def _free(model: Any, contexts: list[Any]) -> None:
    for context in contexts:
        llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
