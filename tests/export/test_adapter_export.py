"""Checkpoint -> adapter: what the folder says, what the caller says, and what is refused."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_adapters
from cmc_export import adapter_export, delta_model, graph, verification
from cmc_export.adapter_export import Choices, export
from cmc_export.carrying import Carry
from cmc_export.examples import Encoder, Row
from cmc_export.template_set import Source
from cmc_local.delta import adapter
from cmc_local.delta.adapter import TemplateName
from cmc_local.delta.onnx_delta import OnnxDelta
from cmc_local.errors import AdapterError, DataError, InputError, TokenizerError, UsageError
from cmc_local.text import token_map
from cmc_local.text.delta_tokenizer import DeltaTokenizer
from cmc_local.text.prompts import named_form

ONE_GRAPH = Choices(
    precisions=("fp32",), thinking=("<t>", "</t>")
)  # an export takes a second or two for each precision


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny delta with a cmc.json."""
    folder = tiny_adapters.checkpoint(tmp_path / "delta", layers=1, context=96)
    delta_model.CheckpointInfo(
        name="answers",
        prompt=named_form("inst"),
        turns="last",
        normalization="add",
        alpha=0.75,
        template=TemplateName("template", "ab" * 32),
        training={"steps": 300, "data": "questions | answers"},
    ).save(folder)
    return folder


def test_an_adapter_says_what_the_checkpoint_said(checkpoint: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    done = export(checkpoint, tmp_path / "adapter", ONE_GRAPH, report=lines.append)
    found = adapter.load(tmp_path / "adapter").settings
    assert (found.name, found.prompt, found.turns) == ("answers", named_form("inst"), "last")
    assert (found.normalization, found.alpha) == ("add", 0.75)
    assert found.template == TemplateName("template", "ab" * 32)
    assert found.training["steps"] == 300
    assert found.thinking == ("<t>", "</t>")
    assert found.shape.context == 96
    assert found.files.keys() == {"delta.onnx", "tokenizer.json", "README.md"}
    assert found.verification["fp32"]["error"] == done.figures[0].error < 1e-5
    assert done.figures[0].agreement == 1.0
    assert done.figures[0].positions > 300
    assert [line.split()[0] for line in lines] == ["reading", "writing", "comparing"]


def test_the_card_holds_data_template_figures_hashes_and_licence(
    checkpoint: Path, tmp_path: Path
) -> None:
    choices = replace(ONE_GRAPH, license="apache-2.0")
    made = export(checkpoint, tmp_path / "adapter", choices).adapter
    card = made.read("README.md").decode()
    assert card.startswith('---\nlicense: "apache-2.0"\n')
    assert "| data | questions \\| answers |" in card  # one cell, whatever it holds
    assert "| template model | template |" in card
    assert made.settings.files["delta.onnx"].sha256 in card
    assert "| fp32 |" in card
    assert "[INST] {query} [/INST] " in card


def test_the_caller_overrules_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    choices = replace(
        ONE_GRAPH,
        prompt=named_form("alpaca"),
        alpha=0.5,
        turns="all",
        normalization="normalization",
        name="mine",
        context=64,
    )
    found = export(checkpoint, tmp_path / "adapter", choices).adapter.settings
    assert (found.prompt.name, found.alpha, found.turns) == ("alpaca", 0.5, "all")
    assert (found.normalization, found.name) == ("normalization", "mine")
    assert found.shape.context == 64
    assert OnnxDelta(adapter.load(tmp_path / "adapter"), device="cpu").context == 64


def test_a_plain_folder_needs_a_prompt_form(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "cmc.json").unlink()
    with pytest.raises(UsageError, match=r"no cmc\.json .* give --prompt"):
        export(checkpoint, tmp_path / "adapter", ONE_GRAPH)
    assert not (tmp_path / "adapter").exists()
    choices = replace(ONE_GRAPH, prompt=named_form("cmc"))
    found = export(checkpoint, tmp_path / "adapter", choices).adapter.settings
    assert (found.name, found.normalization, found.alpha) == ("delta", "basenormalization", 1.0)
    assert (found.prompt, found.training) == (named_form("cmc"), {})


def test_a_template_is_compared_beside_and_named(
    checkpoint: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    info = delta_model.read_info(checkpoint)
    assert info is not None
    replace(info, template=TemplateName()).save(checkpoint)
    choices = replace(ONE_GRAPH, template=tiny_folder)
    done = export(checkpoint, tmp_path / "adapter", choices)
    template = done.adapter.settings.template
    assert template.name == tiny_folder.name
    expected = DeltaTokenizer((tiny_folder / "tokenizer.json").read_bytes()).vocabulary.fingerprint
    assert template.vocabulary == expected
    assert done.figures[0].agreement == 1.0


def test_examples_may_come_from_a_file(checkpoint: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"question": "Where?", "answer": "In Harborville."}) + "\n")
    done = export(checkpoint, tmp_path / "adapter", ONE_GRAPH, data=data)
    _, answered = DeltaTokenizer((checkpoint / "tokenizer.json").read_bytes()).example(
        named_form("inst"),
        [
            {"role": "user", "content": "Where?"},
            {"role": "assistant", "content": "In Harborville."},
        ],
    )
    assert done.figures[0].positions == sum(answered)
    assert "1 examples of data.jsonl" in done.adapter.read("README.md").decode()
    data.write_text("{broken\n")
    with pytest.raises(DataError, match=r"data\.jsonl:1"):
        export(checkpoint, tmp_path / "other", ONE_GRAPH, data=data)


def test_a_graph_that_differs_is_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = graph.rotary_tables

    def wrong(model: object, context: int) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = true(model, context)
        return cos, -sin

    monkeypatch.setattr(graph, "rotary_tables", wrong)
    with pytest.raises(InputError, match=r"fp32 graph differs from PyTorch .* nothing was written"):
        export(checkpoint, tmp_path / "adapter", ONE_GRAPH)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["delta"]


def test_a_graph_that_falls_short_is_refused_with_the_ways_out() -> None:
    good = verification.Figures("fp32", 1, 200, 1e-6, kl=0.0, agreement=1.0, agreement_or_tie=1.0)
    far = replace(good, precision="int8", kl=0.0051)
    with pytest.raises(InputError, match=r"0\.0051 nats .*--precision fp32, or give --templ"):
        verification.judge([good, far])
    other = replace(good, precision="int8", agreement=0.97, agreement_or_tie=0.985, beside="tiny")
    with pytest.raises(InputError, match=r"beside tiny in 98\.5% of them") as caught:
        verification.judge([good, other])
    assert "--template" not in str(caught.value)  # one was given
    verification.judge([good, replace(other, kl=0.005, agreement_or_tie=0.99)])


def test_distributions_are_compared_by_hand() -> None:
    tally = verification._Tally()
    half, most = np.log([0.5, 0.5]), np.log([0.75, 0.25])
    tally.distributions(half, most)  # 0.5 ln(0.5/0.75) + 0.5 ln(0.5/0.25) = ln(4/3) / 2
    tally.distributions(most, np.log([0.25, 0.75]))  # 0.75 ln 3 - 0.25 ln 3 = ln(3) / 2
    figures = tally.figures("int8", 7, "tiny")
    assert figures.kl == pytest.approx((np.log(4 / 3) + np.log(3)) / 4)
    # The first is a tie for PyTorch; the second's token is ln 3 less likely than its own.
    assert (figures.agreement, figures.agreement_or_tie) == (0.5, 0.5)
    tally.distributions(np.log([0.51, 0.49]), np.log([0.49, 0.51]))
    figures = tally.figures("int8", 7, "tiny")
    assert (figures.agreement, figures.agreement_or_tie) == (1 / 3, 2 / 3)


def test_a_template_of_another_vocabulary_is_steered_through_the_map(
    checkpoint: Path, tmp_path: Path, other_gguf: Path
) -> None:
    words = DeltaTokenizer((checkpoint / "tokenizer.json").read_bytes())
    source = Source(other_gguf)
    theirs = source.side.tokenizer
    encoder = Encoder(words, named_form("inst"), 96, [source.side])
    row = encoder.row(verification.own_conversations()[0])
    case = verification.case(row)
    with contextlib.ExitStack() as opened:
        ground = adapter_export._ground(source, words, [case], opened)
        base = ground.log_probabilities(case)
    assert base.shape == (len(case.places), len(theirs.vocabulary))
    assert np.exp(base).sum(1) == pytest.approx(1.0, abs=1e-4)
    # The same as the training graph makes of it.
    shift = np.random.default_rng(0).normal(size=len(words.vocabulary)).astype(np.float32)
    carry = Carry(token_map.build(theirs.vocabulary, words.vocabulary, encode=words.encode))
    carried = carry(torch.from_numpy(shift)[None], torch.from_numpy(base[:1]))[0].numpy()
    assert ground.steered(base[0], shift) - base[0] == pytest.approx(carried, abs=1e-4)


def test_figures_beside_a_template_of_another_vocabulary_stand_in_the_folder(
    checkpoint: Path, tmp_path: Path, other_gguf: Path
) -> None:
    choices = replace(ONE_GRAPH, precisions=("int8", "fp16"), template=other_gguf)
    done = export(checkpoint, tmp_path / "adapter", choices)
    assert done.adapter.precisions == ("int8", "fp16")  # fp32 may be left out
    for figures in done.figures:
        assert figures.beside == other_gguf.stem
        assert 0 < figures.kl < verification.LARGEST_KL
        told = adapter.load(tmp_path / "adapter").settings.verification[figures.precision]
        assert told["kl"] == figures.kl
    assert f"{other_gguf.stem}'s tokens as each graph" in done.adapter.read("README.md").decode()
    assert OnnxDelta(done.adapter, device="cpu").precision == "int8"
    with pytest.raises(AdapterError, match=r"no fp32 graph .* it has int8, fp16: choose"):
        OnnxDelta(done.adapter, device="cpu", precision="fp32")


def test_the_tokenizer_must_fit(checkpoint: Path, tmp_path: Path) -> None:
    words = checkpoint / "tokenizer.json"
    kept = words.read_bytes()
    target = tmp_path / "adapter"
    words.unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json is missing: give --tokenizer"):
        export(checkpoint, target, ONE_GRAPH)
    (checkpoint / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a tokenizer\.model only: give --tokenizer"):
        export(checkpoint, target, ONE_GRAPH)
    words.write_text("{}")
    with pytest.raises(TokenizerError):
        export(checkpoint, target, ONE_GRAPH)
    document = json.loads(kept)
    extra = {**document["added_tokens"][0], "id": 5000, "content": "<extra>"}
    document["added_tokens"].append(extra)
    words.write_text(json.dumps(document))
    with pytest.raises(InputError, match="the tokenizer has 5001 tokens, the delta only"):
        export(checkpoint, target, ONE_GRAPH)
    assert not target.exists()


def test_a_place_that_is_taken_is_refused_before_any_work(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    lines: list[str] = []
    with pytest.raises(AdapterError, match="is not an adapter"):
        export(checkpoint, tmp_path / "taken", ONE_GRAPH, report=lines.append)
    assert lines == []


def test_choices_out_of_range_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="alpha must be a finite number"):
        Choices(alpha=float("nan"))
    with pytest.raises(UsageError, match="int4"):
        Choices(precisions=("int4",))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="choose one of add, normalization, basenormalization"):
        adapter_export.parse_normalization("none")
    with pytest.raises(UsageError, match="--context 97: the delta was made for 2 to 96"):
        export(checkpoint, tmp_path / "adapter", replace(ONE_GRAPH, context=97))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_in_the_shape_the_papers_authors_publish(
    shared_data: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """288/6/6/768, 32,000 tokens, tied, safetensors. Random weights have no greedy token to speak
    of, so the fp32 graph alone is asked here."""
    words = shared_data / "tokenizers" / "llama2" / "tokenizer.json"
    if not words.is_file():
        pytest.skip("no Llama-2 tokenizer among the shared data")
    model = delta_model.build(delta_model.preset("15m", vocabulary=32_000), seed=0)
    model.to(dtype).save_pretrained(tmp_path / "published")
    choices = replace(ONE_GRAPH, prompt=named_form("cmc"), tokenizer=words)
    done = export(tmp_path / "published", tmp_path / "adapter", choices)
    assert done.figures[0].error < 1e-4
    tokens = [1, 529, 29989, 1792, 29989, 29958]
    found = OnnxDelta(done.adapter, device="cpu").feed(0, tokens, rows=6)
    with torch.no_grad():
        expected = model.float()(torch.tensor([tokens])).logits[0].numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_only_the_answers_tokens_are_compared(checkpoint: Path, tmp_path: Path) -> None:
    # Token 0 of the prompt and token 1 of the answer: one position counts, the one before it.
    found = export(checkpoint, tmp_path / "adapter", ONE_GRAPH).adapter
    model = delta_model.load(checkpoint)
    case = verification.case(Row((1, 5, 6), (False, False, True)))
    assert case.places == (1,)
    (figures,) = verification.verify(model, found, [case])
    assert (figures.positions, figures.agreement) == (1, 1.0)
    with pytest.raises(InputError, match="no answer to verify"):
        nothing = verification.case(Row((1, 5, 6), (False, False, False)))
        verification.verify(model, found, [nothing])


def test_a_long_answer_gives_some_of_its_positions() -> None:
    case = verification.case(Row(tuple(range(200)), (False, *[True] * 199)))
    assert case.places == tuple(range(0, 199, 4))  # 199 places, at most 64
