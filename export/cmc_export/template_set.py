"""The templates of a recipe: what each of them is (`Source`), and what a delta learns beside.

A template is a Hugging Face folder, a GGUF file, or a table of answers that one of these gave
earlier. Nothing here trains or reads data.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from cmc_export import answers, recording, templates
from cmc_export.answers import Answers, Made, Writer
from cmc_export.asked_examples import LastAnswers
from cmc_export.beside import Asked, Beside
from cmc_export.examples import Row, Side
from cmc_export.frozen import frozen, parse_with_adapter
from cmc_export.gguf_template import GgufTemplate
from cmc_export.loop import on_cpu, run_folder, use_bf16
from cmc_export.processes import launched, own_gpu
from cmc_export.recipe import TrainRecipe
from cmc_local.base import gguf_header
from cmc_local.base.library import offloads_to_gpu
from cmc_local.base.threads import usable_cores
from cmc_local.base.tokenizer_json import tokenizer_of
from cmc_local.errors import InputError, TokenizerError
from cmc_local.text import token_map
from cmc_local.text.delta_tokenizer import DeltaTokenizer
from cmc_local.text.token_map import Match, TokenMap

CHECKED_TEXTS = 200
"""Texts of the data on which a GGUF's tokenizer is compared with llama.cpp."""


@dataclass(frozen=True)
class Source:
    """A template before its weights are read."""

    path: Path

    @property
    def is_gguf(self) -> bool:
        """A file is a GGUF, a folder Hugging Face's or a table."""
        return self.path.is_file()

    @property
    def is_recorded(self) -> bool:
        """Whether these are answers on disk; the template itself is not needed then."""
        return answers.is_whole(self.path) or (self.path / answers.UNFINISHED).is_file()

    @cached_property
    def table(self) -> Answers:
        """The answers on disk, checked."""
        return Answers(self.path)

    @property
    def name(self) -> str:
        """Its name in cards and summaries."""
        if self.is_recorded:
            return self.table.made.template
        return self.path.stem if self.is_gguf else self.path.resolve().name

    @cached_property
    def tokenizer_json(self) -> bytes:
        """Its tokenizer.json: the folder's, or one made of the GGUF."""
        if self.is_gguf:
            return tokenizer_of(self.path).to_str().encode()
        if self.is_recorded:
            return (self.table.folder / answers.TOKENIZER).read_bytes()
        if not self.path.is_dir():
            raise InputError(
                f"{self.path} is no folder and no file: give a GGUF file or a Hugging Face model "
                "folder"
            )
        return templates.tokenizer_file(self.path).read_bytes()

    @cached_property
    def side(self) -> Side:
        """Its tokenizer and context."""
        words, kept = self.tokenizer_json, self.path / answers.ASKED
        asked = None
        if self.is_recorded and kept.is_file():
            asked = LastAnswers(None, self.context, kept.read_bytes())
        try:
            return Side(DeltaTokenizer(words), self.context, asked)
        except TokenizerError as error:
            raise TokenizerError(f"{self.path}: {error}") from None

    def asked_side(self, recipe: TrainRecipe) -> Side:
        """The side as the recipe has it asked; of a table as it was asked."""
        if self.is_recorded or recipe.template_prompt == "adapter":
            return self.side
        return replace(self.side, asked=LastAnswers(self.path, self.context))

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        if self.is_recorded:
            return self.table.made.template_parameters
        if self.is_gguf:
            return gguf_header.read(self.path).parameters
        return templates.parameter_count(self.path)

    @property
    def context(self) -> int:
        """Its longest text, tokens."""
        if self.is_recorded:
            return self.table.made.template_context
        if not self.is_gguf:
            return templates.template_context(self.path)
        found = gguf_header.read(self.path).metadata
        return int(found.get(f"{found.get('general.architecture')}.context_length", 2**31))

    @property
    def bytes(self) -> int:
        """Of its weights on disk, for a GGUF."""
        return self.path.stat().st_size if self.is_gguf else 0


def sources_of(recipe: TrainRecipe) -> tuple[Source, ...]:
    """The recipe's templates; one that is gone is replaced by what the unfinished run recorded."""
    found = []
    for n, path in enumerate(recipe.template):
        recorded = own_table(recipe, n)
        gone = not path.exists() and recipe.resume and answers.is_whole(recorded)
        found.append(Source(recorded if gone else path))
    for path in recipe.answers:
        if not Source(path).is_recorded:
            raise InputError(f"{path} holds no answers: make them with `cmc-local record`")
        found.append(Source(path))
    return tuple(found)


def own_table(recipe: TrainRecipe, number: int) -> Path:
    """Where a run keeps the answers of one of its templates until it ends."""
    return run_folder(recipe.output) / f"answers-{number}"


def map_onto(source: Source, tokenizer: DeltaTokenizer) -> TokenMap:
    """The template's tokens -> the delta's; itself where both have one vocabulary."""
    own, delta = source.side.tokenizer.vocabulary, tokenizer.vocabulary
    if own.fingerprint == delta.fingerprint:
        ids = np.arange(len(delta), dtype=np.int32)
        return TokenMap(ids, np.full(len(delta), Match.EXACT, np.uint8), len(delta))
    return token_map.build(own, delta, encode=tokenizer.encode)


def made_of(source: Source, recipe: TrainRecipe, tokenizer: DeltaTokenizer, words: bytes) -> Made:
    """What a table of this template's answers is made of; `words` is the delta's tokenizer.json."""
    vocabulary, found = source.side.tokenizer.vocabulary, map_onto(source, tokenizer)
    chosen = [parse_with_adapter(text) for text in recipe.with_adapter]
    recorded = source.table.made if source.is_recorded else None
    return Made(
        template=source.name,
        template_sha256=recorded.template_sha256 if recorded else answers.sha256_of(source.path),
        template_vocabulary=vocabulary.fingerprint,
        template_context=source.context,
        template_parameters=source.parameters,
        template_tokens=len(vocabulary),
        map_sha256=hashlib.sha256(found.ids.astype("<i4").tobytes()).hexdigest(),
        tokenizer_sha256=hashlib.sha256(words).hexdigest(),
        delta_tokens=len(tokenizer.vocabulary),
        with_adapter=tuple(f"{answers.sha256_of(folder)} {alpha}" for folder, alpha in chosen),
        precision=recorded.precision if recorded else recipe.answers_precision,
        prompt=recorded.prompt if recorded else recipe.template_prompt,
    )


def keys_of(rows: Sequence[Row], which: int) -> list[answers.Key]:
    """Of the rows that have a position in the loss beside a template."""
    return [row.key(which) for row in rows if row.loss_tokens(which)]


def checked_origin(table: Answers, made: Made) -> Answers:
    """The table, if it was made of the same; else InputError."""
    difference = table.made.difference(made)
    if difference:
        raise InputError(
            f"{table.folder} was recorded with another state of {difference}: record the answers "
            "again, or train with what they were recorded with"
        )
    return table


def checked(table: Answers, made: Made, rows: Sequence[Row], which: int) -> Answers:
    """The table, if it was made of the same and holds all rows; else InputError."""
    missing = checked_origin(table, made).missing(keys_of(rows, which))
    if missing:
        raise InputError(
            f"{table.folder} lacks {missing:,} of the run's {len(rows):,} rows: record them with "
            "the same --data, --prompt, --turns and --max-length as they are trained with"
        )
    return table


def open_beside(
    source: Source,
    recipe: TrainRecipe,
    tokenizer: DeltaTokenizer,
    words: bytes,
    *,
    which: int,
    rows: Sequence[Row],
    again: bool,
    side: Side,
) -> Beside:
    """What the delta learns beside: answers on disk, recorded first if need be, or the template.

    `rows` are all that the run trains on or looks at, `again` says that it sees some twice.
    """
    if source.is_recorded:
        return checked(source.table, made_of(source, recipe, tokenizer, words), rows, which)
    made = made_of(source, recipe, tokenizer, words)
    needed = recording.size(made, rows, which)
    fits = needed <= recipe.answers_gb * 1e9
    if not again or launched() > 1 or not fits:
        if not fits and recipe.answers_gb:
            print(
                f"{source.name}: its answers would take {needed / 1e9:.1f} GB, more than "
                f"--answers-gb {recipe.answers_gb:g}: it is asked anew in each epoch",
                file=sys.stderr,
            )
        return open_template(source, recipe, tokenizer, which=which, rows=rows, shares=True)
    return recorded(source, recipe, tokenizer, made, own_table(recipe, which), which, rows, side)


def recorded(
    source: Source,
    recipe: TrainRecipe,
    tokenizer: DeltaTokenizer,
    made: Made,
    folder: Path,
    which: int,
    rows: Sequence[Row],
    side: Side,
) -> Answers:
    """The finished table in `folder`; the template is asked for what is not there yet."""
    if not recipe.resume:
        shutil.rmtree(folder, ignore_errors=True)
    elif answers.is_whole(folder):
        table = checked_origin(Answers(folder), made)
        if not table.missing(keys_of(rows, which)):
            return table
        answers.reopen(folder)
    recording.check_room(folder, recording.size(made, rows, which))
    asked_in, before = None, folder / answers.ASKED
    if side.asked is not None:
        side.asked.add(before.read_bytes() if before.is_file() else b"")
        asked_in = side.asked.to_bytes()
    writer = Writer(folder, made, source.tokenizer_json, asked_in)
    asked = open_template(source, recipe, tokenizer, which=which, rows=rows, shares=False)
    try:
        return recording.record(asked, rows, which, writer)
    finally:
        asked.close()


def open_template(
    source: Source,
    recipe: TrainRecipe,
    tokenizer: DeltaTokenizer,
    *,
    which: int,
    rows: Sequence[Row],
    shares: bool,
) -> Asked:
    """A template with its weights, and the deltas of `with_adapter` on it.

    `rows` tell how long its texts are, and a GGUF's tokenizer is checked on them; `shares` says
    that the delta learns meanwhile.
    """
    device = torch.device("cpu") if on_cpu(recipe) else own_gpu()
    size = len(source.side.tokenizer.vocabulary)
    chosen = [parse_with_adapter(text) for text in recipe.with_adapter]
    model: templates.Template
    if source.is_gguf:
        views = [row.views[which] for row in rows]
        longest = max(
            len(row.ids if view is None else view.ids)
            for row, view in zip(rows, views, strict=True)
        )
        model = GgufTemplate(
            source.path,
            size,
            longest=longest,
            threads=template_threads(recipe, shares=shares),
            gpu_layers=recipe.template_gpu_layers,
        )
        texts = [_text(tokenizer, row) for row in rows[:CHECKED_TEXTS]]
        model.check_tokenizer(source.side.tokenizer, texts)
    else:
        model = templates.FolderTemplate(
            source.path,
            size,
            device=device,
            dtype=template_dtype(recipe),
            device_map=recipe.template_device_map,
        )
    return Asked(
        model,
        map_onto(source, tokenizer),
        [frozen(folder, tokenizer.vocabulary, device, alpha) for folder, alpha in chosen],
        device=device,
        ahead=source.is_gguf and (not shares or runs_ahead(recipe)),
    )


def _text(tokenizer: DeltaTokenizer, row: Row) -> str:
    return b"".join(tokenizer.vocabulary.tokens[i] for i in row.ids).decode("utf-8", "replace")


def runs_ahead(recipe: TrainRecipe) -> bool:
    """Whether a GGUF template works on the next batch while the delta learns from this one.

    It does unless both would have to share one processor core.
    """
    return usable_cores() > 1 or not on_cpu(recipe) or offloads_to_gpu()


def template_threads(recipe: TrainRecipe, *, shares: bool = True) -> int:
    """Threads of a GGUF template: half of the cores where the delta learns on the others."""
    halved = shares and on_cpu(recipe) and runs_ahead(recipe)
    return recipe.template_threads or max(1, usable_cores() // (2 if halved else 1))


def template_dtype(recipe: TrainRecipe) -> torch.dtype:
    """bf16 where the hardware has it, unless the recipe says otherwise."""
    bf16 = use_bf16(recipe, recipe.template_precision)
    return torch.bfloat16 if bf16 else torch.float32
