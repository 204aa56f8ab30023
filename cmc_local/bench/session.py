"""One measurement from settings to result: texts, models, arms, rounds.

    settings -> passages -> models -> arms -> samples -> `Result`

The main text after the first prompt length is measured in every way; other lengths, texts that
repeat their prompts and several sequences at once in those ways that say something there. Arms
that are compared take turns; other prompts come after them, so that none is decoded each round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

from cmc_local.base import library as base_library
from cmc_local.base.vocabulary import encode, read_vocabulary
from cmc_local.bench import texts
from cmc_local.bench.apart import ApartArm
from cmc_local.bench.arms import KINDS, USUAL, Arm, Kind, Place, Sample
from cmc_local.bench.machine import base_file, machine
from cmc_local.bench.memory import peak
from cmc_local.bench.models import Loading, Models
from cmc_local.bench.ours import DRAFTS, OurArm, Part
from cmc_local.bench.paired import measure, spread
from cmc_local.bench.passages import Passage, Source, given
from cmc_local.bench.ratios import Main
from cmc_local.bench.report import PromptTime, Result
from cmc_local.errors import DataError, UsageError
from cmc_local.settings import Overlap
from cmc_local.text.vocabulary import Vocabulary

Tell = Callable[[str], None]

_OVERLAP: Final[Mapping[str, Overlap]] = {"serial": "off", "overlapped": "on"}
_STEERED: Final = ("steered", "serial", "overlapped", "naive", "steered+guesses")
_SLACK: Final = 16
"""Tokens of context beyond a reply: guesses reach over its end."""
_PROMPT_ROUNDS: Final = 2


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is to be measured, and with what."""

    gguf: Path
    adapter: Path | None = None
    alpha: float | None = None
    arms: tuple[str, ...] = USUAL
    tokens: int = 32
    """Timed tokens of each run and sequence."""
    contexts: tuple[int, ...] = (300,)
    parallel: int = 1
    pairs: int = 5
    text: Path | None = None
    threads: int | None = None
    delta_threads: int | None = None
    delta_device: str = "auto"
    gpu_layers: int = -1

    def __post_init__(self) -> None:
        unknown = [name for name in self.arms if name not in KINDS]
        if unknown or not self.arms:
            raise UsageError(f"no arm {', '.join(unknown)!r}: there are {', '.join(KINDS)}")
        if self.adapter is None and (lacking := [k for k in self.kinds if k in _STEERED]):
            raise UsageError(
                f"the arms {', '.join(lacking)} need an adapter: give --adapter, or --arms"
                " plain,stock,speculated"
            )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The ways of writing that were asked for."""
        found = [kind for name in KINDS if name in self.arms for kind in KINDS[name]]
        if self.adapter is None and "steered+guesses" in found:
            found.remove("steered+guesses")
        return tuple(found)


def run(settings: Settings, tell: Tell = lambda _line: None) -> Result:
    """Measure; `tell` is given lines about how far it is."""
    settings, notices = _without_crashes(settings)
    passages = Passages.of(settings)
    tell("loading")
    loading = Loading(
        gguf=settings.gguf,
        adapter=settings.adapter,
        alpha=settings.alpha,
        context=passages.context,
        parallel=settings.parallel,
        threads=settings.threads,
        delta_threads=settings.delta_threads,
        delta_device=settings.delta_device,
        gpu_layers=settings.gpu_layers,
    )
    with Models(loading) as models:
        tell("the prompt, nothing of it cached")
        prompts = _prompts(settings, passages.main, models)
        alone = peak()  # nothing but the runner has been loaded yet
        samples: dict[Place, list[Sample]] = {}
        turn = partial(_tell_turn, tell, settings.pairs)
        for arms in _blocks(settings, passages, models):
            samples.update(measure(arms, settings.pairs, turn))
        for place, found in samples.items():
            _check(passages, place, found)
        return Result(
            settings=_described(settings, passages, models),
            machine=machine(),
            base={**base_file(settings.gguf), "vocabulary": models.base.n_vocab},
            adapter=models.describe_adapter(),
            main=Main(passages.main.name, passages.main.context),
            samples=samples,
            prompts=prompts,
            memory=_memory(models, alone),
            notices=notices,
        )


def _without_crashes(settings: Settings) -> tuple[Settings, tuple[str, ...]]:
    """Without stock `Llama` where it would end the process; `BaseModel` knows a way around."""
    rivals = [name for name in settings.arms if name in ("stock", "naive")]
    if not rivals or not base_library.has_risky_amx():
        return settings, ()
    kept = tuple(name for name in settings.arms if name not in rivals)
    told = f"{' and '.join(rivals)}: left out, {base_library.AMX_NOTICE}"
    if not kept:
        raise UsageError(told)
    return replace(settings, arms=kept), (told,)


@dataclass(frozen=True)
class Passages:
    """Everything that is written."""

    main: Passage
    lengths: tuple[Passage, ...]
    """The main reply after prompts of other lengths."""
    repeating: tuple[Passage, ...]
    """Replies that repeat their prompts."""
    many: tuple[Passage, ...]
    """For several sequences at once."""

    @classmethod
    def of(cls, settings: Settings) -> Passages:
        """Cut from the bundled texts, or from the one that was given."""
        words = _Words(settings.gguf)
        count = settings.tokens + 1
        source = Source(words, *_text(settings.text))
        by_context = source.passages(settings.contexts, count)
        main, *lengths = by_context.values()
        many: Sequence[Passage] = ()
        if settings.parallel > 1:  # not the main passage again: nobody is to copy from another
            many = source.spread(main.context, count, settings.parallel + 1)[1:]
        repeating: tuple[Passage, ...] = ()
        if "speculated" in settings.arms:
            repeating = tuple(
                given(words, one.name, one.prompt, one.reply, count)
                for one in map(texts.sample, texts.REPEATING)
            )
        return cls(main, tuple(lengths), repeating, tuple(many))

    @property
    def context(self) -> int:
        """Tokens of context that the longest passage takes, as a multiple of 256."""
        every = (self.main, *self.lengths, *self.repeating, *self.many)
        longest = max(len(one.prompt) + len(one.reply) for one in every) + _SLACK
        return -(-longest // 256) * 256


class _Words:
    """A GGUF's vocabulary and tokenisation, before its weights are loaded."""

    def __init__(self, gguf: Path) -> None:
        self._gguf = gguf

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return read_vocabulary(self._gguf)

    def tokenize(self, text: str, *, special: bool = False, bos: bool | None = None) -> list[int]:
        """With BOS wherever the model has one: to its speed it is a token like any other."""
        begin = self.vocabulary.bos_id
        tokens = encode(self._gguf, text)
        return tokens if begin is None else [begin, *tokens]


def _text(path: Path | None) -> tuple[str, str]:
    """The main text's name and itself."""
    if path is None:
        return "prose", texts.sample("prose").text
    try:
        return path.name, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"cannot read {path}: {reason}: give a text file in UTF-8") from None


def _blocks(settings: Settings, passages: Passages, models: Models) -> Iterator[list[Arm]]:
    """The arms that take turns; each block has a prompt of its own, which is decoded once."""
    kinds = settings.kinds
    both = [kind for kind in kinds if kind in ("plain", "steered")]
    guessing = [kind for kind in kinds if kind.endswith("+guesses")]
    main = [_arm(kind, passages.main, models) for kind in kinds]
    if passages.many:
        main += [_many(kind, passages.many, models) for kind in both]
    yield main
    for passage in passages.lengths:
        yield [_arm(kind, passage, models) for kind in both]
    for passage in passages.repeating:
        yield [_arm(kind, passage, models) for kind in (*both, *guessing)]


def _arm(kind: Kind, passage: Passage, models: Models) -> Arm:
    """One sequence written in one way."""
    if kind in ("alone", "stock", "naive"):
        return _apart(Place(kind, passage.name, passage.context), passage, models)
    return _our_arm(kind, passage, models)


def _our_arm(kind: Kind, passage: Passage, models: Models) -> OurArm:
    place = Place(kind, passage.name, passage.context)
    active = models.active(passage) if kind in _STEERED else ()
    engine = models.engine(_OVERLAP.get(kind, "auto"))
    return OurArm(place, engine, [Part(models.slot, passage, active)], models.sampler())


def _apart(place: Place, passage: Passage, models: Models) -> Arm:
    """A way of writing that has a process of its own."""
    if place.kind == "alone":
        return ApartArm(place, models.apart(alone, models.loading, passage))
    from cmc_local.bench.stock import Naive, rivals

    naive = None
    if models.adapter is not None and models.loading.adapter is not None:
        naive = Naive(models.loading.adapter, models.alpha, models.delta_prompt(passage))
    base, layers = models.base, models.loading.gpu_layers
    stock = (base.path, base.n_ctx, base.batch, base.threads, layers)
    return ApartArm(place, models.apart(rivals, stock, passage, naive))


def alone(loading: Loading, passage: Passage) -> Callable[[Place], Arm]:
    """Our plain loop, for a process of its own."""
    models = Models(replace(loading, adapter=None, parallel=1))
    part = Part(models.slot, passage)
    return lambda place: OurArm(place, models.engine(), [part], models.sampler())


def _many(kind: Kind, passages: Sequence[Passage], models: Models) -> Arm:
    """Several sequences written at once."""
    steered = kind == "steered"
    parts = [
        Part(slot, passage, models.active(passage, many=True) if steered else ())
        for slot, passage in zip(models.many_slots, passages, strict=True)
    ]
    place = Place(kind, passages[0].name, passages[0].context, len(parts))
    return OurArm(place, models.engine(many=True), parts, models.sampler(many=True))


def _check(passages: Passages, place: Place, samples: Sequence[Sample]) -> None:
    """Every arm must have written its passages, every time."""
    single = (passages.main, *passages.lengths, *passages.repeating)
    wanted = (
        tuple(one.reply for one in passages.many)
        if place.sequences > 1
        else next((p.reply,) for p in single if (p.name, p.context) == (place.text, place.context))
    )
    if any(sample.emitted != wanted for sample in samples):
        raise RuntimeError(f"{place}: another text was written than the one that was forced")


def _prompts(settings: Settings, main: Passage, models: Models) -> dict[str, PromptTime]:
    """How long the main prompt takes, nothing of it cached; the arms in turn."""
    arms = {
        kind: _our_arm(kind, main, models)
        for kind in settings.kinds
        if kind in ("plain", "steered")
    }
    with models.memory.adding("caches"):  # the first run touches them, and warms up
        for arm in arms.values():
            arm.first_token()
    times: dict[str, list[float]] = {kind: [] for kind in arms}
    for _ in range(_PROMPT_ROUNDS):
        for kind, arm in arms.items():
            times[kind].append(arm.first_token())
    return {kind: PromptTime(main.context, spread(found)) for kind, found in times.items()}


def _memory(models: Models, alone: int | None) -> dict[str, int]:
    """Bytes: what each part added, the most before the rivals were loaded, the most ever."""
    peaks = {"peak_alone": alone, "peak": peak()}
    return {**models.memory.added, **{name: n for name, n in peaks.items() if n is not None}}


def _described(settings: Settings, passages: Passages, models: Models) -> dict[str, Any]:
    steered = "steered" in settings.kinds
    prompts = (passages.main, *passages.lengths) if models.adapter else ()
    return {
        "tokens": settings.tokens,
        "contexts": list(settings.contexts),
        "delta_prompt_tokens": [len(models.delta_prompt(one)) for one in prompts],
        "parallel": settings.parallel,
        "pairs": settings.pairs,
        "arms": list(settings.arms),
        "text": settings.text.name if settings.text else "prose",
        "threads": models.base.threads,
        "delta_threads": models.delta_threads,
        "gpu_layers": settings.gpu_layers,
        "n_ctx": models.base.n_ctx,
        "overlapped": models.engine().overlaps if steered else None,
        "drafts": DRAFTS if "speculated" in settings.arms else None,
    }


def _tell_turn(tell: Tell, pairs: int, place: Place, number: int) -> None:
    tell(f"{'warm-up' if number < 0 else f'round {number + 1} of {pairs}'}: {place}")
