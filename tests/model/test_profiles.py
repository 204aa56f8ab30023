"""Tuning a strength on held-out answers, and the profile that keeps it.

The base says 0 1 0.5 0 0 everywhere, the delta 0 0 1 0 0: the logits of "b" are 0.5 + alpha.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cmc_local.errors import CmcError, InputError, PromptTooLong
from cmc_local.model import profiles
from cmc_local.model.profiles import GRID, ModelKey, Point, Tuned
from cmc_local.model.steered import SteeredModel
from cmc_local.text.rows import Conversation, conversation
from fakes import FakeBase, FakeShift, adapter, always, vocabulary

TUNED = Tuned("instruct", 0.72, 0.25, 0.67, 60)
MODEL = ModelKey("model.gguf", 7, "abc")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config folder of the test's own, which does not exist yet."""
    monkeypatch.setenv("CMC_CONFIG", str(tmp_path / "config"))
    return tmp_path / "config"


def talks(*answers: str) -> list[Conversation]:
    return [conversation({"question": "b", "answer": answer}) for answer in answers]


def steered(n_ctx: int = 64) -> SteeredModel:
    base = FakeBase(always(0, 1, 0.5, 0, 0), n_ctx=n_ctx)
    model = SteeredModel(base, base.sampler)
    model.attach(adapter(FakeShift(always(0, 0, 1, 0, 0))))
    return model


def parabola(alphas: Sequence[float], at: float) -> list[Point]:
    return [Point(alpha, (alpha - at) ** 2) for alpha in alphas]


# --- finding ---------------------------------------------------------------------------------


def test_the_mean_is_over_tokens_not_answers() -> None:
    # Plain: "b" costs log(3 + e + e^0.5) - 0.5, "a" 0.5 less. Three "b" and one "a".
    found = profiles.measure(steered(), talks("bbb", "a"), "tiny", [0.0])
    total = math.log(3 + math.e + math.exp(0.5))
    assert found.points[0].nll == pytest.approx((3 * (total - 0.5) + total - 1) / 4, rel=1e-6)
    assert (found.answers, found.tokens, found.too_long) == (2, 4, 0)


def test_the_best_strength_is_where_the_model_is_as_sure_as_the_answers() -> None:
    # Half of the answers are "b": e^(0.5 + alpha) = 3 + e at 1.2437, on the finer grid 1.24.
    model = steered()

    def measured(alphas: Sequence[float]) -> Sequence[Point]:
        return profiles.measure(model, talks("a", "b"), "tiny", alphas).points

    points = profiles.search(measured, own=1.0)
    assert profiles.best(points).alpha == 1.24
    assert len(points) == 16 + 8  # 0 to 1.5; 1.12 to 1.28 without 1.2
    assert points == sorted(points)


def test_an_answer_that_does_not_fit_is_left_out_and_counted() -> None:
    told: list[int] = []
    found = profiles.measure(
        steered(n_ctx=8), talks("a" * 20, "a"), "tiny", [1.0], told=lambda: told.append(1)
    )
    assert (found.answers, found.tokens, found.too_long, len(told)) == (1, 1, 1, 2)
    with pytest.raises(PromptTooLong, match="none of the 1 answers fits"):
        profiles.measure(steered(n_ctx=8), talks("a" * 20), "tiny", [1.0])


@pytest.mark.parametrize(
    ("at", "own", "best"), [(0.534, 1.0, 0.54), (0.0, 1.0, 0.0), (-1.0, 1.0, 0.0), (9.0, 1.0, 1.58)]
)
def test_the_finer_grid_surrounds_the_best_and_stays_above_zero(
    at: float, own: float, best: float
) -> None:
    points = profiles.search(lambda alphas: parabola(alphas, at), own)
    assert profiles.best(points).alpha == best
    assert min(points).alpha == 0


def test_given_strengths_are_taken_as_they_are_with_plain_and_own() -> None:
    points = profiles.search(lambda alphas: parabola(alphas, 0.5), 0.8, [0.4, 2.0, 0.4])
    assert [point.alpha for point in points] == [0.0, 0.4, 0.8, 2.0]


def test_of_equally_good_ones_the_weakest() -> None:
    assert profiles.best([Point(alpha, 1.0) for alpha in reversed(GRID)]).alpha == 0


# --- keeping ---------------------------------------------------------------------------------


def test_what_is_written_is_read_and_other_adapters_stay(folder: Path) -> None:
    assert profiles.read(MODEL) == {}
    other = replace(TUNED, name="forget", alpha=1.5)
    profiles.write(MODEL, "key", TUNED)
    profiles.write(MODEL, "other", other)
    profiles.write(MODEL, "key", replace(TUNED, alpha=0.7))
    assert profiles.read(MODEL) == {"key": replace(TUNED, alpha=0.7), "other": other}
    assert [path.name for path in (folder / "profiles").iterdir()] == [f"{MODEL.digest}.json"]


@pytest.mark.parametrize(
    "other",
    [replace(MODEL, name="m.gguf"), replace(MODEL, bytes=8), replace(MODEL, vocabulary="abd")],
)
def test_another_model_has_another_profile(other: ModelKey) -> None:
    profiles.write(MODEL, "key", TUNED)
    assert profiles.read(other) == {}


@pytest.mark.parametrize("alpha", [math.nan, math.inf, "0.7", None, True, [1]])
def test_a_strength_that_is_none_makes_no_profile(alpha: object) -> None:
    profiles.write(MODEL, "key", replace(TUNED, alpha=alpha))  # type: ignore[arg-type]
    assert profiles.read(MODEL) == {}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[1]",
        lambda text: "\xff",
        lambda text: "[" * 100_000,
        lambda text: text.replace('"nll"', '"ln"'),
        lambda text: text.replace("model.gguf", "other.gguf"),
        lambda text: json.dumps({**json.loads(text), "adapters": [1]}),
        lambda text: json.dumps({**json.loads(text), "adapters": {"key": 1}}),
    ],
)
def test_a_damaged_profile_counts_as_none_and_is_written_anew(damage: object) -> None:
    profiles.write(MODEL, "key", TUNED)
    path = profiles.profile_path(MODEL)
    assert callable(damage)
    path.write_text(damage(path.read_text("utf-8")), "latin-1")
    assert profiles.read(MODEL) == {}
    profiles.write(MODEL, "key", TUNED)
    assert profiles.read(MODEL) == {"key": TUNED}


def test_a_place_that_cannot_be_written_is_named(folder: Path) -> None:
    folder.write_text("a file")
    with pytest.raises(InputError, match=r"cannot write .*CMC_CONFIG"):
        profiles.write(MODEL, "key", TUNED)
    assert profiles.read(MODEL) == {}


def test_keys_follow_the_files(tmp_path: Path) -> None:
    gguf, settings = tmp_path / "model.gguf", tmp_path / "adapter.json"
    for path in (gguf, settings):
        path.write_bytes(b"1234567")
    words = vocabulary()
    assert profiles.model_key(gguf, words) == ModelKey("model.gguf", 7, words.fingerprint)
    before = profiles.adapter_key(tmp_path)
    settings.write_bytes(b"1234568")
    assert profiles.adapter_key(tmp_path) != before
    for path in (gguf, settings):
        path.unlink()
    with pytest.raises(CmcError, match=r"cannot read .*model\.gguf"):
        profiles.model_key(gguf, words)
    with pytest.raises(CmcError, match=r"cannot read .*adapter\.json"):
        profiles.adapter_key(tmp_path)


def test_without_the_variable_it_is_the_users_config_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CMC_CONFIG")
    monkeypatch.setattr(profiles.platformdirs, "user_config_dir", lambda name: f"/home/{name}")
    assert profiles.config_folder() == Path("/home/cmc-local")
