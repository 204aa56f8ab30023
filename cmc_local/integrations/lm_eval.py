"""A steered model in lm-evaluation-harness: `--model cmc-local`.

    python -m cmc_local.integrations.lm_eval run --tasks arc_easy \\
        --model cmc-local --model_args gguf=base.gguf,adapter=my-adapter:0.8

A request's context is the question: the base model reads it as it is, the delta in the adapter's
form. A text without context follows BOS alone in the base, an empty question in the delta.
lm-eval 0.4 finds models in its own table only, so this module enters itself there when imported,
and `main` is lm-eval's command line with the model in the table. Imports lm_eval.
"""

from __future__ import annotations

import logging
import math
import sys
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm  # type: ignore[import-untyped]

from cmc_local.engine.scoring import Passage
from cmc_local.errors import CmcError, UsageError
from cmc_local.hub.places import gguf_path, parse_adapter
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Limits, Sampling
from cmc_local.steer.loaded_adapter import LoadedAdapter
from cmc_local.text.alignment import DeltaPrompt
from cmc_local.text.base_prompt import BasePrompt

__all__ = ["SteeredLM", "main"]

NAME = "cmc-local"
MAX_TOKENS = 256
"""Of a reply where a task names no limit; lm-eval's own number."""
_log = logging.getLogger(__name__)


class _SteeredTexts(SteeredModel):
    """A steered model that also scores texts without a question."""

    def score_text(self, text: str) -> list[tuple[float, bool]]:
        """Log-probability of each token of a text, and whether it was the most likely one.

        What the base's context does not hold is scored in windows, each after the one before.
        """
        tokens = [self._start(), *self.base.tokenize(text, bos=False)]
        found: list[tuple[float, bool]] = []
        for first, rest, count in windows(tokens, self.base.n_ctx):
            with self.alone():
                score = self._passage(first, rest).score()
            pairs = zip(score.logprobs.tolist(), score.greedy.tolist(), strict=True)
            found += list(pairs)[-count:]
        return found

    def _start(self) -> int:
        """What the base reads before a text: BOS, or else the end of the text before."""
        words = self.base.vocabulary
        start = words.eos_id if words.bos_id is None else words.bos_id
        if start is None:
            raise UsageError("this model has neither BOS nor EOS: give each text a context")
        return start

    def _passage(self, first: int, rest: Sequence[int]) -> Passage:
        slot = self._slots[0]
        active = [
            one.active(self.alphas[name], _empty_question(one))
            for name, one in self.adapters.items()
            if self.alphas[name] != 0.0
        ]
        return Passage(self._engine, slot, [first], rest, active, self._batch)


def _empty_question(adapter: LoadedAdapter) -> DeltaPrompt:
    """The delta's prompt for a text without a question: its form around an empty one."""
    words = adapter.tokenizer
    start = words.eos_id if words.bos_id is None else words.bos_id
    return DeltaPrompt((start,), adapter.form.question(""))


def windows(tokens: Sequence[int], size: int) -> Iterator[tuple[int, Sequence[int], int]]:
    """Cut what follows `tokens[0]` into windows: (token before, tokens, how many last ones count).

    Each token counts once. The model reads `size` tokens in each window, in the last one too,
    which therefore begins with tokens that have counted before; 0 is BOS here:

    >>> list(windows([0, 1, 2, 3, 4, 5], 3))
    [(0, [1, 2, 3], 3), (2, [3, 4, 5], 2)]
    """
    done = 1
    while done < len(tokens):
        end = min(done + size, len(tokens))
        begin = max(end - size - 1, 0)
        yield tokens[begin], tokens[begin + 1 : end], end - done
        done = end


@register_model(NAME)
class SteeredLM(LM):  # type: ignore[misc]
    """A GGUF model and the adapters that steer it, as lm-eval sees a model."""

    def __init__(
        self,
        gguf: str = "",
        adapter: str = "",
        *,
        base_prompt: BasePrompt = "raw",
        context: int = 0,
        threads: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **unknown: object,
    ) -> None:
        """`gguf` and `adapter` as in `--gguf` and `--adapter`, several adapters with a `+` between.

        `batch_size` replies are written at once, one where it is `auto`. `device` matters if it is
        `cpu`: lm-eval says `cuda:0` where nobody named one. `max_batch_size` has no meaning here.
        Raises UsageError for arguments that are missing, unknown or of another kind.
        """
        super().__init__()
        _check(gguf, base_prompt, {"context": context, "threads": threads}, unknown)
        parallel = str(batch_size)
        choices = [parse_adapter(text) for text in str(adapter).split("+") if text]
        self._base_prompt = base_prompt
        model = _SteeredTexts.load(
            gguf_path(str(gguf)),
            [(one.path, one.alpha) for one in choices],
            limits=Limits(context=context, parallel=int(parallel) if parallel.isdigit() else 1),
            delta_device="cpu" if device == "cpu" else "auto",
            gpu_layers=0 if device == "cpu" else -1,
            threads=threads,
        )
        assert isinstance(model, _SteeredTexts)
        self.model = model

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding says it) of each (context, continuation)."""
        found = []
        for request in tqdm(requests, disable=disable_tqdm, desc="Log-likelihoods"):
            found.append(self._likelihood(*request.args))
            self.cache_hook.add_partial("loglikelihood", request.args, found[-1])
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of each whole text."""
        found = []
        for request in tqdm(requests, disable=disable_tqdm, desc="Texts"):
            found.append(math.fsum(one for one, _ in self.model.score_text(*request.args)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The reply to each (context, settings), up to one of the texts in `until`."""
        found = [""] * len(requests)
        alike: dict[Sampling, list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault(sampling_of(request.args[1]), []).append(i)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Replies") as bar:
            for sampling, numbers in alike.items():
                room = min(sampling.max_tokens, self.model.base.n_ctx // 2)
                contexts = [self._shortened(requests[i].args[0], room) for i in numbers]
                replies = self.model.generate_many(
                    contexts, sampling, base_prompt=self._base_prompt
                )
                for number, reply in replies:
                    i = numbers[number]
                    found[i] = reply.text
                    self.cache_hook.add_partial("generate_until", requests[i].args, reply.text)
                    bar.update()
        return found

    def _likelihood(self, context: str, continuation: str) -> tuple[float, bool]:
        # As lm-eval does for every model: the space before a word is the word's.
        before = context.rstrip()
        text = context[len(before) :] + continuation
        if not before:
            pairs = self.model.score_text(text)
            return math.fsum(one for one, _ in pairs), all(greedy for _, greedy in pairs)
        room = len(self.model.base.tokenize(text, bos=False))
        before = self._shortened(before, room)
        score = self.model.score(before, text, base_prompt=self._base_prompt)
        return score.total, bool(score.greedy.all())

    def _shortened(self, context: str, room: int) -> str:
        """The end of a context that leaves so many tokens of the base's own to what follows.

        Where nothing fits, the context as it is: whoever uses it says what is too long.
        """
        base, form = self.model.base, self.model.base_prompt_form(self._base_prompt)
        limit = base.n_ctx - room

        def fits(cut: int) -> bool:
            prompt = form.text(base, [{"role": "user", "content": context[cut:]}])
            return len(base.tokenize(prompt.text, special=prompt.special, bos=prompt.bos)) <= limit

        if len(context.encode()) <= limit // 2 or fits(0):  # short ones need not be tokenised
            return context
        cuts = range(len(context.rstrip()))
        cut = bisect_left(cuts, True, lo=1, key=fits)
        if cut == len(cuts):
            return context
        _log.warning(
            "a context of %d characters was cut to its last %d", len(context), len(context) - cut
        )
        return context[cut:]


def _check(
    gguf: str, base_prompt: str, counts: Mapping[str, object], unknown: Mapping[str, object]
) -> None:
    """Whether --model_args can be used; lm-eval hands over whatever is written there."""
    if unknown:
        raise UsageError(
            f"--model_args has no {', '.join(unknown)}: there are gguf, adapter, base_prompt, "
            "context and threads"
        )
    if not gguf:
        raise UsageError("there is no base model: give gguf=FILE in --model_args")
    if base_prompt not in get_args(BasePrompt):
        known = ", ".join(get_args(BasePrompt))
        raise UsageError(f"base_prompt must be one of {known}, not {base_prompt!r}")
    for name, value in counts.items():
        least = 1 if name == "threads" else 0
        if value is not None and not (isinstance(value, int) and value >= least):
            raise UsageError(f"{name} must be a whole number of at least {least}, not {value!r}")


def sampling_of(settings: Mapping[str, Any]) -> Sampling:
    """lm-eval's settings of one request; greedy unless `do_sample`, nothing cut that is not named.

    >>> sampling_of({"until": "\\n", "max_gen_toks": 8}).stop
    ('\\n',)
    """
    until = settings.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(text for text in until if text)
    names = ("max_gen_toks", "max_new_tokens", "max_tokens")
    most = next((settings[name] for name in names if settings.get(name)), MAX_TOKENS)
    temperature = float(settings.get("temperature") or 0.0)
    return Sampling(
        temperature=temperature if settings.get("do_sample", temperature > 0.0) else 0.0,
        top_k=int(settings.get("top_k") or 0),
        top_p=float(settings.get("top_p") or 1.0),
        min_p=float(settings.get("min_p") or 0.0),
        seed=settings.get("seed"),
        stop=stop,
        max_tokens=int(most),
    )


def main() -> None:
    """lm-eval's command line, which knows this model; its own errors are one line."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except CmcError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
