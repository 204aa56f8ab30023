"""Adapters on llama-cpp-python's own `Llama`: as a `LogitsProcessor`, or as a `Llama` of its own.

    llm = Llama("model.gguf")                                  # as it was
    steering = LlamaSteering(llm, ["my-adapter"])              # loads the deltas, once
    llm.create_completion(text, logits_processor=steering.processors("Who wrote Dune?"))

    llm = SteeredLlama("model.gguf", adapters=["my-adapter"])  # the same in one piece
    llm.create_chat_completion([{"role": "user", "content": "Who wrote Dune?"}])

`Llama` runs processors inside a C callback, where an exception is printed and the token is drawn
all the same. So a steered `Llama` is of a subclass that sees to them (`_SteerableLlama`):

    generate    begins the deltas' reply while the prompt is decoded; refuses draft models
    eval        tells the deltas the new token, in their own thread, and decodes meanwhile
    sample      raises what went wrong in a processor; no token comes from unshifted logits
    create_completion  keeps the processors where there is a `logit_bias` (`Llama` drops both)

The shift is added to llama.cpp's copy of the logits, never to the logits themselves: a prompt that
is repeated, and not decoded again, is shifted once. Log-probabilities (`logits_all=True`) are those
after the shift. Knows no sampling of its own: chat formats, grammars and samplers are `Llama`'s.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import llama_chat_format

from cmc_local.base.threads import leaves_a_core, usual_delta_threads
from cmc_local.base.vocabulary import vocabulary_of
from cmc_local.errors import UsageError
from cmc_local.integrations.llama_processor import DeltaWorker, Ids, Scores, SteeringProcessor
from cmc_local.lifetime import Closing
from cmc_local.model.steered import AdapterLike
from cmc_local.settings import Control, Overlap
from cmc_local.steer.loaded_adapter import AdapterLoader, LoadedAdapter
from cmc_local.steer.strengths import Alphas, check_alpha, free_name, strengths
from cmc_local.text.prompts import Message, base_text

__all__ = ["LlamaSteering", "SteeredLlama", "SteeringProcessor"]

Asked = str | Sequence[Mapping[str, Any]]
"""What the deltas are asked: a question, or messages in OpenAI's shape."""


class LlamaSteering(Closing):
    """Adapters loaded for one open `Llama`, for one reply at a time, like the `Llama` itself.

    A context manager, or `close` it; the `Llama` stays open.
    """

    def __init__(
        self,
        llm: Any,
        adapters: Iterable[AdapterLike],
        *,
        control: Control | None = None,
        device: str = "auto",
        threads: int | None = None,
        overlap: Overlap = "auto",
    ) -> None:
        """Load adapters, each a folder or (folder, alpha), and make `llm` a `_SteerableLlama`.

        `threads` are the deltas'; `overlap` runs them while llama.cpp decodes, `auto` if `llm`
        leaves them a core. Raises AdapterError for a folder that cannot be used, UsageError for an
        `llm` with a draft model.
        """
        _refuse_draft_model(llm)
        vocabulary = vocabulary_of(
            llama_cpp.llama_model_get_vocab(llm.model), Path(str(llm.model_path))
        )
        loader = AdapterLoader(
            vocabulary,
            control or Control(),
            device=device,
            threads=threads or usual_delta_threads(llm.n_threads),
        )
        self.adapters: dict[str, LoadedAdapter] = {}
        self.alphas: dict[str, float] = {}
        """Each adapter's strength where a reply says nothing."""
        for one in adapters:
            folder, alpha = one if isinstance(one, tuple) else (one, None)
            self._add(loader(folder), alpha)
        overlaps = overlap == "on" or (overlap == "auto" and leaves_a_core(llm.n_threads))
        self._worker = DeltaWorker(vocabulary.tokens, overlaps=overlaps)
        if not isinstance(llm, _SteerableLlama):
            llm.__class__ = type(type(llm).__name__, (_SteerableLlama, type(llm)), {})

    def _add(self, adapter: LoadedAdapter, alpha: float | None) -> None:
        name = free_name(adapter.name, self.adapters)
        self.adapters[name] = adapter
        self.alphas[name] = adapter.alpha if alpha is None else check_alpha(alpha)

    def processors(self, asked: Asked, *, alphas: Alphas | None = None) -> Any:
        """A `LogitsProcessorList` that steers replies to a question or a conversation.

        `alphas` are strengths by adapter, or one for all; the list is empty where all are 0. Your
        own processors may follow in the list. Raises UsageError for messages out of order.
        """
        self._worker.check_open()
        chosen = strengths(self.alphas, alphas)
        messages = _messages(asked)
        active = tuple(
            adapter.active(chosen[name], adapter.prompt(messages))
            for name, adapter in self.adapters.items()
            if chosen[name] != 0.0
        )
        return _Processors([SteeringProcessor(self._worker, active)] if active else [])

    def close(self) -> None:
        """Free the deltas; more than once is fine."""
        self._worker.close()
        self.adapters.clear()
        self.alphas.clear()


class _Processors(llama_cpp.LogitsProcessorList):  # type: ignore[misc]
    """A list whose `extend` gives the list, as `Llama` expects where there is a `logit_bias`."""

    def extend(self, more: Iterable[Any]) -> _Processors:
        super().extend(more)
        return self


class _CatchingProcessor:
    """The processors of one generation as one, whose errors are kept for the caller."""

    def __init__(self, llm: Any, processors: Iterable[Any]) -> None:
        self._llm = llm
        self.processors = tuple(processors)
        self.error: BaseException | None = None
        self.runs = 0

    def __call__(self, ids: Ids, scores: Scores) -> Scores:
        self.runs += 1
        try:
            for processor in self.processors:
                scores = processor(ids, scores)
                if isinstance(processor, SteeringProcessor) and self._llm._logits_all:
                    self._llm.scores[len(ids) - 1] = scores  # what log-probabilities are taken of
        except BaseException as error:  # Ctrl-C too: the callback would swallow it
            self.error = error
        return scores


class _SteerableLlama(llama_cpp.Llama):  # type: ignore[misc]
    """A `Llama` that runs the deltas beside it, and raises what goes wrong in a processor.

    `LlamaSteering` gives the `Llama` that it is handed such a class. `Llama` has no hook for this:
    it calls its own `eval` and `sample` and swallows a processor's errors. Functions set
    on the object instead would hold the object in a circle (a model of gigabytes then waits for the
    garbage collector), and with a weak reference `Llama(...).create_completion(...)` would free the
    model before the call. The new class is a subclass of the old one: `isinstance` and overridden
    methods stay as they were.
    """

    _acting: tuple[SteeringProcessor, ...] = ()

    def create_completion(self, *args: Any, **kwargs: Any) -> Any:
        """As `Llama.create_completion`; `logit_bias` goes together with processors."""
        given = _arguments(super().create_completion, args, kwargs)
        if (processors := given.get("logits_processor")) is not None:
            given["logits_processor"] = _Processors(processors) if processors else None
        return super().create_completion(**given)

    def generate(self, *args: Any, **kwargs: Any) -> Generator[int, Sequence[int] | None, None]:
        """As `Llama.generate`; the deltas begin with the prompt."""
        given = _arguments(super().generate, args, kwargs)
        if not given.get("logits_processor"):
            yield from super().generate(**given)
            return
        given["tokens"] = list(given["tokens"])
        watch, given["logits_processor"] = self._catching(given["logits_processor"])
        acting = tuple(one for one in watch.processors if isinstance(one, SteeringProcessor))
        if acting:
            _refuse_draft_model(self)
        self._acting = acting
        try:
            for one in acting:
                one.begin(given["tokens"])
            yield from super().generate(**given)
        finally:
            if self._acting is acting:
                self._acting = ()

    def eval(self, tokens: Sequence[int]) -> None:
        """As `Llama.eval`, the deltas at work on the same tokens meanwhile."""
        for one in self._acting:
            if one.overlaps:
                one.follow(np.append(self._input_ids, np.asarray(tokens, np.intc)), beside=True)
        super().eval(tokens)

    def sample(self, *args: Any, **kwargs: Any) -> int:
        """As `Llama.sample`; raises what went wrong in a processor."""
        given = _arguments(super().sample, args, kwargs)
        if not given.get("logits_processor"):
            return int(super().sample(**given))
        watch, given["logits_processor"] = self._catching(given["logits_processor"])
        before = watch.runs
        token = int(super().sample(**given))
        if watch.error is not None:
            raise watch.error
        if watch.runs == before:
            raise UsageError(
                "Llama.sample went on with the sampler of the last generation, which knows nothing"
                " of these processors: use generate or create_completion"
            )
        return token

    def _catching(self, processors: Any) -> tuple[_CatchingProcessor, Any]:
        """One processor for all of them, and the list of it that stands for them."""
        first = processors[0]
        if isinstance(first, _CatchingProcessor):
            return first, processors
        watch = _CatchingProcessor(self, processors)
        return watch, llama_cpp.LogitsProcessorList([watch])


class SteeredLlama(_SteerableLlama):
    """A `Llama` whose completions are steered; everything else is as in `Llama`.

    A GGUF without chat template is asked in the first adapter's form, as `SteeredModel` does,
    unless `chat_format` or `chat_handler` is given. Special tokens written in a message count as
    such, as in all of `Llama`'s chat formats.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        adapters: Iterable[AdapterLike],
        control: Control | None = None,
        delta_device: str = "auto",
        delta_threads: int | None = None,
        overlap: Overlap = "auto",
        **llama: Any,
    ) -> None:
        """Open a GGUF and its adapters (see `LlamaSteering`); `llama` is what `Llama` takes."""
        super().__init__(model_path=str(model_path), **llama)
        try:
            self.steering = LlamaSteering(
                self,
                adapters,
                control=control,
                device=delta_device,
                threads=delta_threads,
                overlap=overlap,
            )
        except BaseException:
            self.close()
            raise
        asked_for = llama.get("chat_format") or llama.get("chat_handler")
        first = next(iter(self.steering.adapters.values()), None)
        if first and not asked_for and "tokenizer.chat_template" not in self.metadata:
            self.chat_handler = _form_handler(first)

    def create_completion(
        self,
        *args: Any,
        question: Asked | None = None,
        alphas: Alphas | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `Llama.create_completion`, steered.

        `question` is what the deltas are asked, a text or messages: by default the prompt, so give
        it where the prompt holds more than the question. `alphas` are strengths by adapter, or one
        for all.
        """
        given = _arguments(super(_SteerableLlama, self).create_completion, args, kwargs)
        if not _decided(given.get("logits_processor")):
            asked = given["prompt"] if question is None else question
            if question is None and not isinstance(asked, str):
                raise UsageError(
                    "a prompt of token ids cannot be put to the adapters: give its text as question"
                )
            self._steer(given, asked, alphas)
        return super().create_completion(**given)

    def create_chat_completion(
        self, *args: Any, alphas: Alphas | None = None, **kwargs: Any
    ) -> Any:
        """As `Llama.create_chat_completion`, steered; `alphas` as in `create_completion`."""
        given = _arguments(super().create_chat_completion, args, kwargs)
        if not _decided(given.get("logits_processor")):
            self._steer(given, given["messages"], alphas)
        return super().create_chat_completion(**given)

    def _steer(self, given: dict[str, Any], asked: Asked, alphas: Alphas | None) -> None:
        """Put the steering before the processors of a call."""
        processors = self.steering.processors(asked, alphas=alphas)
        given["logits_processor"] = processors.extend(given.get("logits_processor") or ())

    def close(self) -> None:
        """Free the model and the deltas."""
        if steering := self.__dict__.get("steering"):  # absent where loading failed
            steering.close()
        super().close()


def _decided(processors: Any) -> bool:
    """Whether the caller chose what steers this call; our own list, if empty, means: nothing."""
    ours = any(isinstance(one, SteeringProcessor) for one in processors or ())
    return ours or isinstance(processors, _Processors)


def _form_handler(adapter: LoadedAdapter) -> Any:
    """A chat handler that asks in an adapter's form."""

    def formatted(*, messages: Sequence[Mapping[str, Any]], **_rest: Any) -> Any:
        text = base_text(adapter.form, _messages(messages), turns=adapter.turns)
        return llama_chat_format.ChatFormatterResponse(prompt=text)

    return llama_chat_format.chat_formatter_to_chat_completion_handler(formatted)


def _messages(asked: Asked) -> list[Message]:
    """A conversation in texts alone: text parts are joined, other parts left as they are."""
    if isinstance(asked, str):
        return [Message(role="user", content=asked)]
    return [Message(role=one.get("role", ""), content=_text(one.get("content"))) for one in asked]


def _text(content: Any) -> Any:
    parts = content if isinstance(content, list) else []
    texts = [part["text"] for part in parts if isinstance(part, dict) and "text" in part]
    return "".join(map(str, texts)) if len(texts) == len(parts) > 0 else content


def _arguments(method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    if not args:
        return kwargs
    return dict(signature(method).bind(*args, **kwargs).arguments)


def _refuse_draft_model(llm: Any) -> None:
    """With drafts the processors see tokens that nobody has checked yet."""
    if llm.draft_model is not None:
        raise UsageError(
            "a Llama with a draft model cannot be steered: open it without draft_model"
            " (SteeredModel guesses ahead with speculate=4)"
        )
