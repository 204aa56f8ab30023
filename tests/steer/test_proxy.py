"""Proxy-tuning: what a pair says, how it rolls back, and what it does to a base model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import tiny_models
from cmc_local.base.model import BaseModel
from cmc_local.base.span import Span
from cmc_local.delta.source import Feed
from cmc_local.errors import GGUFError, TokenizerError, UsageError
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Control, Limits, Sampling
from cmc_local.steer import proxy
from cmc_local.steer.proxy import ProxyPair
from cmc_local.text.prompts import named_form
from fakes import AB, NEWLINE, A, B, FakeBase, Rule, vocabulary

GREEDY = Sampling(temperature=0, max_tokens=16)
QUESTION = "Where was Helen born?"


class Model(FakeBase):
    """A fake base model with what a pair asks for besides."""

    sequences = 3

    def __init__(self, rule: Rule, *, batch: int = 4, **settings: Any) -> None:
        super().__init__(rule, **settings)
        self.batch = batch
        self.path = Path("model.gguf")
        self.failing = False

    def decode_spans(self, spans: Sequence[Span]) -> None:
        assert sum(len(span.tokens) for span in spans) <= self.batch
        super().decode_spans(spans)
        if self.failing:
            raise GGUFError("no more")


def tenfold(tokens: tuple[int, ...]) -> tuple[float, ...]:
    """10 for each token seen, under the last one."""
    return tuple(10.0 * len(tokens) * (i == tokens[-1]) for i in range(5))


def onefold(tokens: tuple[int, ...]) -> tuple[float, ...]:
    """The sum of the tokens seen, under "a"."""
    return (0.0, float(sum(tokens)), 0.0, 0.0, 0.0)


def fake_pair(**settings: Any) -> tuple[ProxyPair, Model, Model]:
    expert, antiexpert = Model(tenfold, **settings), Model(onefold, **settings)
    return ProxyPair(expert, antiexpert), expert, antiexpert  # type: ignore[arg-type]


def test_a_row_is_the_expert_less_the_antiexpert() -> None:
    pair, _, _ = fake_pair()
    found = pair.feed(0, [B, AB], rows=2)
    # After B (2): 10 under B, less 2 under A. After B, AB (2 + 3): 20 under AB, less 5 under A.
    np.testing.assert_array_equal(found, [[0, -2, 10, 0, 0], [0, -5, 0, 20, 0]])
    assert found.dtype == np.float32
    assert pair.length(0) == 2
    # After A as well: 30 under A, less 2 + 3 + 1.
    np.testing.assert_array_equal(pair.feed(0, [A]), [[0, 24, 0, 0, 0]])


def test_rows_beyond_the_tokens_and_none() -> None:
    pair, _, _ = fake_pair()
    assert pair.feed(0, [A, B], rows=9).shape == (2, 5)
    assert pair.feed(0, [A], rows=0).shape == (0, 5)
    assert pair.feed(0, [], rows=1).shape == (0, 5)
    assert pair.length(0) == 3


def test_feeds_are_decoded_together_in_batches() -> None:
    pair, expert, _ = fake_pair(batch=4)
    found = pair.feed_many([Feed(2, [A, A, B]), Feed(0, [B, B, AB, A, A], 3), Feed(1, [], 1)])
    assert expert.batches == [(3, 1), (4,)]
    np.testing.assert_array_equal(found[0], [[0, -4, 30, 0, 0]])  # 1 + 1 + 2
    np.testing.assert_array_equal(
        found[1], [[0, -7, 0, 30, 0], [0, 32, 0, 0, 0], [0, 41, 0, 0, 0]]
    )  # 2 + 2 + 3 = 7; 40 - 8; 50 - 9
    assert found[2].shape == (0, 5)


FEEDS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.lists(st.integers(0, 4), max_size=6),
        st.integers(0, 4),
        st.floats(0, 1),
    ),
    max_size=8,
)


@pytest.mark.parametrize("truncates", [True, False])
@given(steps=FEEDS, batch=st.integers(1, 5))
def test_any_order_of_feeds_and_cuts_is_a_pair_that_begins_anew(
    truncates: bool, steps: list[tuple[int, list[int], int, float]], batch: int
) -> None:
    """Also where a model cannot roll back: it decodes again."""
    pair, _, _ = fake_pair(batch=batch, truncates=truncates)
    streams: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for slot, tokens, rows, kept in steps:
        stream = streams[slot]
        keep = round(kept * len(stream))
        pair.truncate(slot, keep)
        del stream[keep:]
        stream += tokens
        found = pair.feed(slot, tokens, rows)
        ends = range(len(stream) - min(rows, len(tokens)) + 1, len(stream) + 1)
        for row, end in zip(found, ends, strict=True):
            seen = tuple(stream[:end])
            np.testing.assert_array_equal(row, np.subtract(tenfold(seen), onefold(seen)))
        assert pair.length(slot) == len(stream)


def test_a_model_that_cannot_roll_back_decodes_again_once() -> None:
    pair, expert, _ = fake_pair(batch=8, truncates=False)
    pair.feed(0, [A, B, AB])
    pair.truncate(0, 1)
    assert expert.decoded == [(A, B, AB)]
    assert pair.feed(0, [NEWLINE])[0, NEWLINE] == 20
    assert expert.decoded == [(A, B, AB), (A, NEWLINE)]
    assert not pair.copy(0, 1, 2)


def test_a_slot_may_be_copied() -> None:
    pair, expert, antiexpert = fake_pair()
    pair.feed(0, [A, B, AB])
    pair.feed(1, [B])
    assert pair.copy(0, 1, 2)
    assert expert.copied == antiexpert.copied == [(0, 1, 2)]
    np.testing.assert_array_equal(pair.feed(1, [A]), [[0, 30 - 4, 0, 0, 0]])  # A, B, A
    assert pair.length(0) == 3


@pytest.mark.parametrize(
    ("feeds", "reason"),
    [
        ([Feed(3, [A])], "there is no slot 3: the pair has 3, from 0"),
        ([Feed(0, [A], -1)], "rows must be at least 0, not -1"),
        ([Feed(0, [A] * 63)], "63 tokens do not fit the pair's context of 64, where slot 0"),
        ([Feed(1, [A]), Feed(0, [5])], "token 5 is not in the pair's vocabulary of 5"),
        ([Feed(0, [-1])], "token -1 is not in"),
        ([Feed(0, [A]), Feed(0, [B])], "a slot can be fed once in one call"),
    ],
)
def test_what_cannot_be_fed_changes_nothing(feeds: list[Feed], reason: str) -> None:
    pair, expert, _ = fake_pair()
    pair.feed(0, [A, B])
    with pytest.raises(UsageError, match=reason):
        pair.feed_many(feeds)
    assert (pair.length(0), pair.length(1), len(expert.decoded)) == (2, 0, 1)


def test_more_than_a_slot_holds_cannot_be_kept() -> None:
    pair, _, _ = fake_pair()
    pair.feed(0, [A, B])
    with pytest.raises(UsageError, match="slot 0 holds 2 tokens, cannot keep 3"):
        pair.truncate(0, 3)


def test_after_an_error_a_slot_holds_what_it_held() -> None:
    pair, expert, antiexpert = fake_pair()
    pair.feed(0, [A, B])
    for model in (expert, antiexpert):
        model.failing = True
        with pytest.raises(GGUFError, match="no more"):
            pair.feed(0, [AB])
        model.failing = False
        assert pair.length(0) == 2
    np.testing.assert_array_equal(pair.feed(0, [AB]), [[0, -6, 0, 30, 0]])


def test_a_pair_has_one_vocabulary() -> None:
    plain, longer = vocabulary(), vocabulary(b"a", b"b", b"ab", b"\n", b"c")
    other = vocabulary(b"a", b"x", b"ab", b"\n")
    for words, how in ((longer, "5 and 6 tokens"), (other, "token 2 is b'b' in one and b'x' in")):
        models = [Model(tenfold, words=one) for one in (plain, words)]
        with pytest.raises(GGUFError, match=f"have different vocabularies \\({how}"):
            ProxyPair(*models)  # type: ignore[arg-type]


# --- real models -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expert_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the same vocabulary as `tiny_gguf`, with other weights."""
    folder = tmp_path_factory.mktemp("pairs") / "expert"
    return tiny_models.gguf_of(tiny_models.llama_folder(folder, seed=7))


def open_pair(expert: Path, antiexpert: Path, **settings: Any) -> ProxyPair:
    return ProxyPair.load(expert, antiexpert, gpu_layers=0, threads=1, **settings)


@pytest.fixture
def pair(expert_gguf: Path, tiny_gguf: Path) -> Iterator[ProxyPair]:
    made = open_pair(expert_gguf, tiny_gguf, slots=2, batch=8)
    yield made
    made.close()


def test_real_rows_are_the_difference_of_two_models(
    pair: ProxyPair, expert_gguf: Path, tiny_gguf: Path
) -> None:
    tokens = [1, 300, 301, 17, 244, 90, 12, 13, 14, 15]
    rows = []
    for path in (expert_gguf, tiny_gguf):
        with BaseModel(path, gpu_layers=0, threads=1) as model:
            model.decode(tokens, start=0, last_only=False)
            rows.append(np.stack([model.logits(i) for i in range(len(tokens))]))
    expected = rows[0] - rows[1]
    near = 1e-2 * np.abs(expected).max()  # a cache in half precision
    np.testing.assert_allclose(pair.feed(0, tokens, 10), expected, rtol=0, atol=near)
    pair.truncate(0, 4)
    again, other = pair.feed_many([Feed(0, tokens[4:], 2), Feed(1, tokens[:9], 1)])
    np.testing.assert_allclose(again, expected[-2:], rtol=0, atol=near)
    np.testing.assert_allclose(other, expected[8:9], rtol=0, atol=near)
    assert pair.copy(0, 1, 6)
    np.testing.assert_allclose(pair.feed(1, tokens[6:8]), expected[7:8], rtol=0, atol=near)
    assert pair.context == 128


def steered(gguf: Path, **settings: Any) -> SteeredModel:
    return SteeredModel.load(
        gguf, gpu_layers=0, threads=1, limits=Limits(context=128), speculate=0, **settings
    )


PLAIN = Control(fallback="none", mid_token="off")


@pytest.mark.parametrize("same", [True, False])
def test_less_the_base_itself_it_is_the_expert(
    same: bool, expert_gguf: Path, tiny_gguf: Path
) -> None:
    """base + (expert - base) = expert; expert - expert = 0.

    But for the few tokens without a counterpart (unknown, BOS), whose probability stays the base's.
    """
    pair = open_pair(expert_gguf, expert_gguf if same else tiny_gguf)
    text = "Helen Blackworth was born in Harborville."  # as a delta would tokenise it
    with steered(expert_gguf) as expert, steered(tiny_gguf) as base:
        alone, own = scores(base, text), scores(expert, text)
        adapter = proxy.loaded(pair, base.base.vocabulary, PLAIN, form=named_form("plain"))
        assert base.attach(adapter) == "proxy-expert-F32"
        np.testing.assert_allclose(scores(base, text), alone if same else own, rtol=0, atol=0.03)
        assert np.abs(alone - own).max() > 1
        base.set_alpha("proxy-expert-F32", 0.0)
        np.testing.assert_array_equal(scores(base, text), alone)
    pair.close()


def scores(model: SteeredModel, text: str) -> NDArray[np.float64]:
    """The log-probability of each token of an answer."""
    return np.array(model.score(QUESTION, text, base_prompt="adapter").logprobs)


def test_a_pair_steers_across_vocabularies(
    expert_gguf: Path, tiny_gguf: Path, other_gguf: Path
) -> None:
    """The other base has a byte-level vocabulary; several replies at once are those alone."""
    pair = open_pair(expert_gguf, tiny_gguf, slots=2)
    asked = [QUESTION, "What did she write?"]
    limits = Limits(context=128, parallel=2)
    with SteeredModel.load(other_gguf, gpu_layers=0, threads=1, limits=limits, speculate=0) as base:
        plain = base.generate(QUESTION, GREEDY).tokens
        form = named_form("cmc")
        base.attach(proxy.loaded(pair, base.base.vocabulary, Control(), form=form), 0.8)
        together = dict(base.generate_many(asked, GREEDY))
        for number, question in enumerate(asked):
            assert base.generate(question, GREEDY).text == together[number].text
        assert together[0].tokens != plain
    pair.close()


def test_a_pair_of_two_vocabularies_is_refused(tiny_gguf: Path, other_gguf: Path) -> None:
    with pytest.raises(GGUFError, match=r"tiny-F32\.gguf and .*other-F32\.gguf have different"):
        open_pair(tiny_gguf, other_gguf)
    with pytest.raises(GGUFError, match=r"none\.gguf does not exist"):
        open_pair(tiny_gguf, tiny_gguf.with_name("none.gguf"))


def test_the_context_is_within_what_the_models_were_trained_with(tiny_gguf: Path) -> None:
    for asked, expected in ((64, 64), (4096, 128), (0, 128)):
        made = open_pair(tiny_gguf, tiny_gguf, context=asked)
        assert made.context == expected
        made.close()


@pytest.mark.parametrize("which", ["tiny_gguf", "other_gguf"])
def test_the_tokenizer_is_the_experts(which: str, request: pytest.FixtureRequest) -> None:
    with BaseModel(request.getfixturevalue(which), gpu_layers=0, context=64) as model:
        made = proxy.tokenizer(model)
        assert (made.eos_id, made.bos_id) == (model.vocabulary.eos_id, *model.tokenize(""), None)[
            :2
        ]
        assert made.encode("The sea.") == model.tokenize("The sea.", bos=False)


def test_a_bos_that_the_model_puts_nowhere_begins_no_prompt(tiny_gguf: Path) -> None:
    with BaseModel(tiny_gguf, gpu_layers=0, context=64) as model:
        assert proxy.tokenizer(model).bos_id == 1
        without = SimpleNamespace(
            path=tiny_gguf, tokenize=lambda text, bos=False: model.tokenize(text, bos=bos)
        )
        assert proxy.tokenizer(without).bos_id is None  # type: ignore[arg-type]


def test_a_tokenizer_that_differs_from_llama_cpps_is_refused(tiny_gguf: Path) -> None:
    model = SimpleNamespace(path=tiny_gguf, tokenize=lambda *_, **__: [5, 6])
    with pytest.raises(TokenizerError, match="tokenizes in a way that is not known here"):
        proxy.tokenizer(model)  # type: ignore[arg-type]
