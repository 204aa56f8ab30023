"""Checkpoint -> adapter: graphs in several precisions, verified before anything is put in place.

What a checkpoint of ours says of itself (cmc.json) can be overridden; what a plain Hugging Face
llama folder does not say (the prompt form above all) must be given.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from transformers import LlamaForCausalLM

from cmc_export import delta_model, graph, quantize, verification
from cmc_export.card import card
from cmc_export.delta_model import CheckpointInfo
from cmc_export.examples import Encoder
from cmc_export.gguf_template import GgufTemplate
from cmc_export.template_set import Source
from cmc_export.templates import FolderTemplate
from cmc_local.delta import adapter
from cmc_local.delta.adapter import Adapter, AdapterSettings, Normalization, Precision, TemplateName
from cmc_local.errors import InputError, UsageError
from cmc_local.settings import Control
from cmc_local.steer.control import MappedShift
from cmc_local.text import token_map
from cmc_local.text.delta_tokenizer import DeltaTokenizer
from cmc_local.text.prompts import PromptForm, Turns
from cmc_local.text.rows import read_conversations

STORAGE: Mapping[Precision, graph.Storage] = {
    "fp32": graph.FLOAT32,
    "int8": quantize.INT8,
    "fp16": graph.FLOAT16,
}
DEFAULT_PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
MOST_EXAMPLES = 200
LONGEST_CONTEXT = 4096
"""Taken where a folder claims more: the cache is allocated for the whole context."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the caller says; None leaves it to the checkpoint, then to the default."""

    prompt: PromptForm | None = None
    tokenizer: Path | None = None
    normalization: Normalization | None = None
    alpha: float | None = None
    thinking: tuple[str, ...] = ()
    """What begins and what ends thoughts in its answers; empty for answers without."""
    turns: Turns | None = None
    name: str | None = None
    license: str = ""
    context: int | None = None
    template: Path | None = None
    """A GGUF or a Hugging Face folder of any vocabulary, to compare what is done to it."""
    precisions: tuple[Precision, ...] = DEFAULT_PRECISIONS
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.alpha is not None and not math.isfinite(self.alpha):
            raise UsageError(f"alpha must be a finite number, not {self.alpha}")
        if any(not mark.strip() for mark in self.thinking):
            raise UsageError("a mark of thoughts is empty: give two texts, as in <think> </think>")
        unknown = [p for p in self.precisions if p not in STORAGE]
        if unknown or not self.precisions:
            raise UsageError(f"precision {unknown}: choose some of {', '.join(STORAGE)}")


@dataclass(frozen=True)
class Exported:
    """An adapter that was written, and how its graphs compare with PyTorch."""

    adapter: Adapter
    figures: tuple[verification.Figures, ...]


def export(
    checkpoint: Path,
    output: Path,
    choices: Choices,
    *,
    data: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Write an adapter, or raise and write nothing.

    `data` holds examples to verify on, in the shapes of training data, else the project's own
    questions serve; `report` is told each step.
    """
    adapter.check_target(output, overwrite=choices.overwrite)
    report(f"reading {checkpoint}")
    model = delta_model.load(checkpoint)
    words = _tokenizer_bytes(checkpoint, choices.tokenizer)
    settings = _settings(checkpoint, model, choices)
    tokenizer = _checked_tokenizer(words, settings)
    source = None if choices.template is None else Source(choices.template)
    cases, asked = _cases(tokenizer, settings, data, source)
    files: dict[str, bytes | Path] = {}
    for precision in dict.fromkeys(choices.precisions):
        report(f"writing the {precision} graph")
        name = adapter.GRAPHS[precision]
        files[name] = graph.to_onnx(model, settings.shape.context, STORAGE[precision])
    files[adapter.TOKENIZER_FILE] = words
    with tempfile.TemporaryDirectory(prefix="cmc-export-") as place:
        trial = adapter.write(Path(place) / "trial", settings, files)
        report(f"comparing with PyTorch{'' if source is None else f', beside {source.name}'}")
        with contextlib.ExitStack() as opened:
            ground = None if source is None else _ground(source, tokenizer, cases, opened)
            figures = verification.verify(model, trial, cases, ground)
    settings = _with_figures(replace(settings, files=trial.settings.files), figures)
    files[adapter.CARD_FILE] = card(settings, figures, asked=asked).encode()
    written = adapter.write(output, settings, files, overwrite=choices.overwrite)
    return Exported(written, tuple(figures))


def _cases(
    tokenizer: DeltaTokenizer, settings: AdapterSettings, path: Path | None, source: Source | None
) -> tuple[list[verification.Case], str]:
    """What to verify on, and what the card calls it."""
    if path is None:
        found = verification.own_conversations()
        asked = f"{len(found)} questions and answers in its prompt form"
    else:
        found = read_conversations([path])[:MOST_EXAMPLES]
        asked = f"{len(found)} examples of {path.name}"
    sides = [] if source is None else [source.side]
    encoder = Encoder(tokenizer, settings.prompt, settings.shape.context, sides)
    return [verification.case(encoder.row(messages)) for messages in found], asked


def _with_figures(
    settings: AdapterSettings, figures: Sequence[verification.Figures]
) -> AdapterSettings:
    verified: dict[str, dict[str, object]] = {}
    for entry in figures:
        verified[entry.precision] = asdict(entry)
        del verified[entry.precision]["precision"]
    return replace(settings, verification=verified)


def _settings(checkpoint: Path, model: LlamaForCausalLM, choices: Choices) -> AdapterSettings:
    """The checkpoint's word, overridden by the caller's; `files` still empty."""
    info = delta_model.read_info(checkpoint) or _from_choices(checkpoint, choices)
    shape = delta_model.shape_of(model.config)
    context = choices.context or min(shape.context, LONGEST_CONTEXT)
    if not 2 <= context <= shape.context:
        raise UsageError(f"--context {context}: the delta was made for 2 to {shape.context}")
    template = info.template
    if choices.template is not None and not template.name:
        template = _template_name(choices.template)
    alpha = info.alpha if choices.alpha is None else choices.alpha
    return AdapterSettings(
        name=choices.name or info.name,
        shape=replace(shape, context=context),
        prompt=choices.prompt or info.prompt,
        turns=choices.turns or info.turns,
        alpha=alpha,
        thinking=choices.thinking,
        normalization=choices.normalization or info.normalization,
        template=template,
        training=info.training,
        license=choices.license,
    )


def _from_choices(checkpoint: Path, choices: Choices) -> CheckpointInfo:
    if choices.prompt is None:
        raise UsageError(
            f"{checkpoint} has no {delta_model.CHECKPOINT_FILE} that says how it was asked in "
            "training: give --prompt (cmc for the paper's deltas, or a text that holds {query})"
        )
    return CheckpointInfo(name=checkpoint.resolve().name, prompt=choices.prompt)


def _tokenizer_bytes(checkpoint: Path, given: Path | None) -> bytes:
    path = given or checkpoint / adapter.TOKENIZER_FILE
    if path.is_dir():
        path = path / adapter.TOKENIZER_FILE
    if path.is_file() and path.suffix == ".json":
        return path.read_bytes()
    if given is not None:
        raise InputError(f"{path} is no tokenizer.json: give one in the tokenizers format")
    if (checkpoint / "tokenizer.model").is_file():
        raise InputError(
            f"{checkpoint} has a tokenizer.model only: give --tokenizer with the tokenizer.json of "
            "the same tokenizer (for the paper's deltas: Llama-2's)"
        )
    raise InputError(f"{path} is missing: give --tokenizer with the delta's tokenizer.json")


def _checked_tokenizer(words: bytes, settings: AdapterSettings) -> DeltaTokenizer:
    tokenizer = DeltaTokenizer(words)
    size = len(tokenizer.vocabulary)
    if size > settings.shape.vocabulary:
        raise InputError(
            f"the tokenizer has {size} tokens, the delta only {settings.shape.vocabulary}: give "
            "the tokenizer that it was trained with (--tokenizer)"
        )
    return tokenizer


def _ground(
    source: Source,
    tokenizer: DeltaTokenizer,
    cases: Sequence[verification.Case],
    opened: contextlib.ExitStack,
) -> verification.Ground:
    """The template to verify beside: a Hugging Face folder, float32 on the CPU, or a GGUF."""
    own, delta = source.side.tokenizer.vocabulary, tokenizer.vocabulary
    mapped = None
    if own.fingerprint != delta.fingerprint:
        mapped = MappedShift(token_map.build(own, delta, encode=tokenizer.encode), Control())
    if not source.is_gguf:
        folder = FolderTemplate(
            source.path, len(own), device=torch.device("cpu"), dtype=torch.float32
        )
        return verification.Ground(folder, mapped)
    longest = max((len(one.template_tokens) for one in cases), default=1)
    gguf = GgufTemplate(source.path, len(own), longest=longest)
    opened.callback(gguf.close)
    return verification.Ground(gguf, mapped)


def _template_name(place: Path) -> TemplateName:
    source = Source(place)
    return TemplateName(source.name, source.side.tokenizer.vocabulary.fingerprint)


def parse_normalization(text: str) -> Normalization:
    """One of the three names; UsageError otherwise."""
    for name in get_args(Normalization):
        if name == text:
            found: Normalization = name
            return found
    raise UsageError(f"normalization {text!r}: choose one of {', '.join(get_args(Normalization))}")
