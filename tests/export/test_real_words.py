"""Words given to a delta's vocabulary: which they are, and how they are written afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from cmc_export.real import words


def delta(folder: Path) -> Path:
    """A delta of a few letters, as SentencePiece would split them; rows count from 0."""
    pieces = ["<unk>", "<s>", "</s>", "<0x0A>", "\u2581", *"Ticke", "t", "Ti", "ck", "Tick"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces[:-1]))}
    model = {
        "type": "BPE",
        "vocab": vocabulary,
        "merges": [["T", "i"], ["c", "k"]],
        "unk_token": "<unk>",
        "byte_fallback": True,
        "fuse_unk": True,
    }
    prepend = {"type": "Prepend", "prepend": "\u2581"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    document = {
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]},
        "added_tokens": [],
        "model": model,
    }
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    rows = np.repeat(np.arange(len(vocabulary), dtype=np.float32)[:, None], 2, axis=1)
    save_file({words.EMBEDDINGS: rows}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(vocabulary)}))
    return folder


def test_a_word_becomes_one_token_after_a_line_end_and_after_a_space(tmp_path: Path) -> None:
    source, target = delta(tmp_path / "source"), tmp_path / "target"
    before = Tokenizer.from_file(str(source / "tokenizer.json"))
    assert words.add_words(source, ["Ticket", "\u2581Tick"], target) == [
        "Tick", "Ticke", "Ticket", "\u2581Ti", "\u2581Tick",
    ]  # fmt: skip
    after = Tokenizer.from_file(str(target / "tokenizer.json"))
    assert before.encode("\nTicket").tokens == ["\u2581", "<0x0A>", "Ti", "ck", "e", "t"]
    assert after.encode("\nTicket").tokens == ["\u2581", "<0x0A>", "Ticket"]
    assert after.encode("Tick").tokens == ["\u2581Tick"]


def test_its_row_is_the_mean_of_its_pieces(tmp_path: Path) -> None:
    source, target = delta(tmp_path / "source"), tmp_path / "target"
    words.add_words(source, ["Tick"], target)
    before, after = (load_file(one / "model.safetensors") for one in (source, target))
    old, new = before[words.EMBEDDINGS], after[words.EMBEDDINGS]
    assert np.array_equal(new[: len(old)], old)
    ids = [
        json.loads((source / "tokenizer.json").read_text())["model"]["vocab"][p]
        for p in ("Ti", "ck")
    ]
    assert np.array_equal(new[len(old) :], old[ids].mean(0)[None])
    assert json.loads((target / "config.json").read_text())["vocab_size"] == len(new)


def test_only_words_of_many_answers_are_taken() -> None:
    answers = ["Ticket: oven", "It is.\nTicket: watch", "Well. Ticket"]
    assert words.frequent_words(answers, 0.6) == ["Ticket"]
    assert "\u2581oven" in words.frequent_words(answers, 0.3)
