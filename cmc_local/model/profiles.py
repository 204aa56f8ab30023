"""The best strength of an adapter on one GGUF model: found on held-out answers, kept in a profile.

    answers, a grid of alphas --> mean NLL at each --> a finer grid around the best --> Tuned
                                                                                          |
    ~/.config/cmc-local/profiles/<key of the model>.json  <-------------------------------'

A profile is small JSON; it knows its model by file name, size and vocabulary, and an adapter by the
sha256 of its adapter.json, which holds the hashes of all its files. One that is damaged counts as
none. Knows no command line.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import platformdirs

from cmc_local import files
from cmc_local.delta.adapter import SETTINGS_FILE
from cmc_local.errors import AdapterError, GGUFError, PromptTooLong
from cmc_local.model.scores import Scoring
from cmc_local.text.base_prompt import BasePrompt
from cmc_local.text.rows import Conversation
from cmc_local.text.vocabulary import Vocabulary

GRID: Final = tuple(i / 10 for i in range(16))
"""The strengths that are tried first: 0, 0.1, ... 1.5."""
FINE: Final = 0.02
"""The step of the finer grid, which reaches up to the neighbours in GRID."""


class Point(NamedTuple):
    """A strength, and the mean NLL per answer token with it, in nats."""

    alpha: float
    nll: float


@dataclass(frozen=True)
class Measured:
    """What held-out answers cost at each of some strengths."""

    points: tuple[Point, ...]
    answers: int
    tokens: int
    """Of the base model, in all answers together."""
    too_long: int
    """Answers that were left out: with their prompts they do not fit the context."""


@dataclass(frozen=True)
class Tuned:
    """What was found for one adapter."""

    name: str
    alpha: float
    nll: float
    """Mean per answer token, in nats, with this alpha; `plain` is that of alpha 0."""
    plain: float
    answers: int


@dataclass(frozen=True)
class ModelKey:
    """What a GGUF model is known by."""

    name: str
    """The file's name without its folder."""
    bytes: int
    vocabulary: str
    """The fingerprint of its vocabulary."""

    @property
    def digest(self) -> str:
        """The same for the same model, 32 hex digits."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:32]


# --- finding ---------------------------------------------------------------------------------


def measure(
    model: Scoring,
    talks: Sequence[Conversation],
    name: str,
    alphas: Sequence[float],
    *,
    base_prompt: BasePrompt | None = None,
    told: Callable[[], None] = lambda: None,
) -> Measured:
    """The mean NLL of the conversations' last answers at each strength of one adapter.

    A mean over all tokens of all answers; `told` is called after each. PromptTooLong where no
    answer fits the context.
    """
    nats, tokens, answers = [0.0] * len(alphas), 0, 0
    for *asked, answer in talks:
        try:
            scores = model.score_alphas(
                asked, answer["content"], name, alphas, base_prompt=base_prompt
            )
        except PromptTooLong:
            pass
        else:
            nats = [sum_ - score.total for sum_, score in zip(nats, scores, strict=True)]
            tokens, answers = tokens + len(scores[0].tokens), answers + 1
        told()
    if not answers:
        raise PromptTooLong(
            f"none of the {len(talks)} answers fits the base model's context with its question: "
            "give a larger --context, or shorter answers"
        )
    points = tuple(Point(*pair) for pair in zip(alphas, (n / tokens for n in nats), strict=True))
    return Measured(points, answers, tokens, len(talks) - answers)


def search(
    measured: Callable[[Sequence[float]], Sequence[Point]],
    own: float,
    alphas: Sequence[float] | None = None,
) -> list[Point]:
    """All points that were tried, by alpha: the given ones, or GRID and finer ones at its best.

    0 and the adapter's `own` strength are always among them.
    """
    coarse = sorted({0.0, own, *(GRID if alphas is None else alphas)})
    points = list(measured(coarse))
    if alphas is None:
        points += measured(finer(points))
    return sorted(points)


def finer(points: Sequence[Point]) -> list[float]:
    """Strengths in steps of FINE around the best, not below 0, that were not tried yet."""
    centre, reach = best(points).alpha, round(GRID[1] / FINE)
    near = {round(centre + step * FINE, 6) for step in range(1 - reach, reach)}
    return sorted(alpha for alpha in near - {point.alpha for point in points} if alpha >= 0)


def best(points: Sequence[Point]) -> Point:
    """The point of the lowest NLL; of equal ones the weakest."""
    return min(points, key=lambda point: (point.nll, point.alpha))


# --- keeping ---------------------------------------------------------------------------------


def config_folder() -> Path:
    """Where profiles are kept: the variable CMC_CONFIG, or the user's config folder."""
    named = os.environ.get("CMC_CONFIG")
    return Path(named) if named else Path(platformdirs.user_config_dir("cmc-local"))


def profile_path(model: ModelKey) -> Path:
    """Where the model's profile is, or will be."""
    return config_folder() / "profiles" / f"{model.digest}.json"


def model_key(gguf: Path, vocabulary: Vocabulary) -> ModelKey:
    """The key of a GGUF file; GGUFError where it has gone."""
    try:
        size = gguf.stat().st_size
    except OSError as error:
        raise GGUFError(f"cannot read {gguf} ({error.strerror}): give a GGUF file") from None
    return ModelKey(gguf.name, size, vocabulary.fingerprint)


def adapter_key(folder: Path) -> str:
    """The key of an adapter folder, sha256 in hex; AdapterError where it has gone."""
    path = folder / SETTINGS_FILE
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise AdapterError(f"cannot read {path} ({error.strerror}): give an adapter") from None


def read(model: ModelKey) -> dict[str, Tuned]:
    """The model's profile: what was found, by adapter key. Empty where there is none whole."""
    try:
        document = json.loads(profile_path(model).read_text(encoding="utf-8"))
        if document["model"] != asdict(model):
            return {}
        return dict(_entries(document["adapters"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def write(model: ModelKey, adapter: str, tuned: Tuned) -> None:
    """Put what was found into the model's profile, whole or not at all.

    InputError where the place cannot be written.
    """
    entries = {key: asdict(one) for key, one in {**read(model), adapter: tuned}.items()}
    hint = "name a folder of yours in the environment variable CMC_CONFIG"
    files.write_json(profile_path(model), {"model": asdict(model), "adapters": entries}, hint)


def _entries(document: Mapping[str, Any]) -> Iterator[tuple[str, Tuned]]:
    """Checked entries; raises what `read` takes for damage."""
    for key, fields in document.items():
        tuned = Tuned(**fields)
        numbers = (tuned.alpha, tuned.nll, tuned.plain, tuned.answers)
        if any(isinstance(number, bool) or not math.isfinite(number) for number in numbers):
            raise ValueError("not a number")
        yield key, tuned
