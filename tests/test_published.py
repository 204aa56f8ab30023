"""The published procedure beside the runner: the same with one vocabulary, other things with two.

Where there are two, each of its rules is shown by a case of a few tokens, whose arithmetic stands
beside it. The fakes' delta has the tokens `</s>`, "a", "b", "ab" and a newline.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import fakes
from cmc_local.base.model import BaseModel
from cmc_local.delta import adapter
from cmc_local.evaluate.world import examination, read_questions
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Control, Limits, Sampling
from cmc_local.steer.loaded_adapter import ready
from cmc_local.text.delta_tokenizer import DeltaTokenizer
from cmc_local.text.prompts import PromptForm
from cmc_local.text.token_map import build
from cmc_local.text.vocabulary import Role, Vocabulary
from fakes import AB, END, NEWLINE, A, B, FakeBase, FakeShift, Rule, always
from reference.published import PublishedRunner, runner

PAPER = Control(unmapped="zero", fallback="none", mid_token="off")
QUESTIONS = 12
MOST = 40


# --- one vocabulary ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["template", "larger"])
def test_with_one_vocabulary_both_say_the_same_tokens(bundled_models: Path, name: str) -> None:
    asked = examination(read_questions(bundled_models / "world/questions.jsonl"), QUESTIONS).test
    folder, path = bundled_models / "instruct", bundled_models / f"{name}.gguf"
    form = adapter.load(folder).settings.prompt
    with (
        BaseModel(path, context=256, threads=1, gpu_layers=0) as base,
        SteeredModel.load(
            path, [folder], control=PAPER, limits=Limits(context=256), threads=1, gpu_layers=0,
            delta_device="cpu", speculate=0,
        ) as ours,
    ):  # fmt: skip
        theirs = runner(base, adapter.load(folder))
        for one in asked:
            prompt = form.question(one.question)
            said = theirs.answer(base.tokenize(prompt), prompt, most=MOST)
            reply = ours.generate(one.question, Sampling(temperature=0.0, max_tokens=MOST))
            assert tuple(said.tokens) == reply.tokens
            assert said.text == reply.text
            assert said.encoded_anew == 0
            assert said.tokens


# --- two vocabularies ----------------------------------------------------------------------------


@dataclass
class Both:
    """What each of the two said, and what its delta was fed."""

    theirs: list[int]
    ours: list[int]
    their_delta: FakeShift
    our_delta: FakeShift


def both(
    words: Vocabulary, base_rule: Rule, delta_rule: Rule, *, turn: str = "{query}\n", most: int = 1
) -> Both:
    """The question "b" to a base of these words, whose prompt is "b" alone."""
    form = PromptForm("tiny", turn)
    their_base, our_base = (FakeBase(base_rule, words=words) for _ in range(2))
    their_delta, our_delta = FakeShift(delta_rule), FakeShift(delta_rule)
    tokenizer = Tokenizer.from_str(fakes.tokenizer_json().decode())
    published = PublishedRunner(their_base, their_delta, tokenizer)
    prompt = their_base.tokenize("b")
    theirs = published.answer(prompt, form.question("b"), most=most)
    loaded = ready(
        our_delta, DeltaTokenizer(fakes.tokenizer_json()), words, Control(mid_token="off"),
        name="tiny", form=form,
    )  # fmt: skip
    with SteeredModel(our_base, our_base.sampler) as model:
        model.attach(loaded)
        greedy = Sampling(temperature=0.0, max_tokens=most)
        ours = model.generate("b", greedy, base_prompt="raw")
    return Both(theirs.tokens, list(ours.tokens), their_delta, our_delta)


def spelled(*entries: tuple[str, bytes, Role]) -> Vocabulary:
    """A vocabulary from spellings, texts and roles; its EOS is the token of that role."""
    end = next((i for i, (_, _, role) in enumerate(entries) if role == Role.EOS), None)
    return Vocabulary.assemble([(text, role, name) for name, text, role in entries], eos_id=end)


def test_the_map_compares_spellings_and_copies_the_numbers_of_control_tokens() -> None:
    base = spelled(
        ("<|turn|>", b"", Role.CONTROL),
        ("<|end|>", b"", Role.EOS),
        ("\u0120the", b" the", Role.NORMAL),  # GPT-2's spelling of a space
        ("\u0120house", b" house", Role.NORMAL),
        ("hat", b"hat", Role.NORMAL),
        ("<9>", b"<9>", Role.NORMAL),
    )
    delta = spelled(
        ("</s>", b"", Role.EOS),
        ("a", b"a", Role.NORMAL),
        ("\u2581the", b" the", Role.NORMAL),
        ("\u0120", "\u0120".encode(), Role.NORMAL),  # the letter itself
        ("hats", b"hats", Role.NORMAL),
    )
    tokenizer = Tokenizer.from_str(fakes.tokenizer_json().decode())
    theirs = PublishedRunner(FakeBase(always(0.0), words=base), FakeShift(always(0.0), words=delta),
                             tokenizer)  # fmt: skip
    # By number: <|turn|> 0, <|end|> 1, which is "a"; <9> would be 5, which the delta does not have.
    assert theirs.map.tolist() == [0, 1, 3, 3, 4, -1]
    assert theirs.exact == [False] * 6
    # By role and text: nothing, EOS, the same text; no token begins " house"; one letter away.
    assert build(base, delta, fallback="none").ids.tolist() == [-1, 0, 2, -1, 4, -1]


def test_an_end_of_another_number_does_not_end_the_reply() -> None:
    words = spelled(
        ("<pad>", b"", Role.CONTROL),
        ("<eos>", b"", Role.EOS),
        ("a", b"a", Role.NORMAL),
        ("b", b"b", Role.NORMAL),
    )
    found = both(words, always(0, 0, 1, 0), always(9, 0, 0, 0, 0), most=2)
    # The delta wants </s>, its number 0. Theirs: <pad> takes it, 9 against 1; ours: <eos> does.
    assert found.theirs == [0, 0]
    assert found.ours == []
    tokenizer = Tokenizer.from_str(fakes.tokenizer_json().decode())
    base = FakeBase(always(0, 0, 1, 0), words=words)
    right = PublishedRunner(base, FakeShift(always(9, 0, 0, 0, 0)), tokenizer, right_end=True)
    assert right.map.tolist() == [0, END, A, B]


def test_zero_is_not_neutral_for_a_token_without_counterpart() -> None:
    words = fakes.vocabulary(b"a", b"b", b"ab", b"\n", b"z")
    z = 5
    found = both(words, always(0, 1, 0, 0, 0, 2), always(5, 5, 5, 5, 5))
    # A constant in the delta means nothing. Theirs: a 1 + 5 against z 2 + 0; ours: z 2 + 5.
    assert found.theirs == [A]
    assert found.ours == [z]


def test_after_an_inexact_token_the_response_is_encoded_alone_and_the_cache_dropped() -> None:
    words = fakes.vocabulary(b"a", b"b", b"ab", b"\n", b"aba")
    aba = 5
    found = both(words, lambda t: (0, 0, 1, 0, 0, 2), always(0, 0, 0, 0, 0), most=2)
    assert found.theirs == found.ours == [aba, aba]
    # "aba" takes the shift of "ab", near it, and the delta's tokens for it are ab, a.
    assert found.their_delta.fed == [(B, NEWLINE), (B, NEWLINE, AB, A)]
    # Ours leaves the newline open until something follows, and feeds what is new.
    assert [len(tokens) for tokens in found.our_delta.fed] == [2, 2]
    assert found.our_delta.streams[0] == [B, NEWLINE, AB, A]


def test_exact_tokens_are_not_put_together_as_the_delta_learned_them() -> None:
    def delta_rule(tokens: tuple[int, ...]) -> tuple[float, ...]:
        return (9, 0, 0, 0, 0) if tokens[-1] == AB else (0, 0, 0, 0, 0)  # "ab" ends its answers

    def base_rule(tokens: tuple[int, ...]) -> tuple[float, ...]:
        return (0, 1, 0, 0, 0) if tokens[-1] == B else (0, 0, 1, 0, 0)  # a, b, a, b, ...

    found = both(fakes.vocabulary(), base_rule, delta_rule, most=4)
    assert found.their_delta.streams[0] == [B, NEWLINE, A, B, A]
    assert found.theirs == [A, B, A, B]
    assert found.our_delta.streams[0] == [B, NEWLINE, AB]
    assert found.ours == [A, B]


def test_prompt_and_response_are_encoded_apart() -> None:
    found = both(fakes.vocabulary(), always(0, 0, 1, 0, 0), always(0, 0, 0, 0, 0),
                 turn="{query}a", most=2)  # fmt: skip
    assert found.theirs == found.ours == [B, B]
    assert found.their_delta.streams[0] == [B, A, B]
    assert found.our_delta.streams[0] == [B, AB]


def test_strength_and_normalisation_act_on_the_shift_alone() -> None:
    words = fakes.vocabulary(b"a", b"z")
    tokenizer = Tokenizer.from_str(fakes.tokenizer_json().decode())
    delta = FakeShift(always(0, 0), words=fakes.vocabulary(b"a"))
    plain, normalized = (
        PublishedRunner(
            FakeBase(always(0, 0, 0), words=words), delta, tokenizer, normalize_delta=on
        )
        for on in (False, True)
    )
    row = np.log(np.array([3.0, 1.0], np.float32))
    assert plain.shift(row).tolist() == pytest.approx([np.log(3.0), 0.0, 0.0])
    assert normalized.shift(row).tolist() == pytest.approx([np.log(0.75), np.log(0.25), 0.0])


def test_across_the_bundled_vocabularies_it_goes_its_own_way(bundled_models: Path) -> None:
    asked = examination(read_questions(bundled_models / "world/questions.jsonl"), QUESTIONS).test
    one = adapter.load(bundled_models / "instruct")
    with BaseModel(bundled_models / "other.gguf", context=256, threads=1, gpu_layers=0) as base:
        theirs = runner(base, one)
        prompts = [one.settings.prompt.question(q.question) for q in asked]
        said = [theirs.answer(base.tokenize(prompt), prompt, most=MOST) for prompt in prompts]
        end = base.vocabulary.eos_id
        spaced = [i for i, text in enumerate(base.vocabulary.tokens) if text.startswith(b" ")]
    assert end is not None and theirs.map[end] == end
    assert np.isin(theirs.map[spaced], -1).mean() > 0.9  # spelled with another sign for the space
    assert all(reply.encoded_anew > 0 for reply in said)
    # Each time the delta reads prompt and response from the beginning.
    assert all(reply.fed > 3 * len(reply.tokens) for reply in said)
