"""An adapter made ready for one base model: its delta, its map, a steering for each sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cmc_local.delta import adapter as adapter_folder
from cmc_local.delta.source import ShiftSource
from cmc_local.settings import Control
from cmc_local.steer.control import MappedShift
from cmc_local.steer.mid_token import MidToken
from cmc_local.steer.steering import ActiveAdapter, Steering
from cmc_local.text import token_map
from cmc_local.text.alignment import DeltaPrompt, DeltaTokenizer
from cmc_local.text.prompts import Message, PromptForm, Turns
from cmc_local.text.thinking import Marks
from cmc_local.text.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """What a request needs of an adapter."""

    name: str
    alpha: float
    """Its own strength, where nobody names another."""
    form: PromptForm
    turns: Turns
    tokenizer: DeltaTokenizer
    source: ShiftSource
    steerings: tuple[Steering, ...]
    """One for each of the base model's sequences."""
    mapped: MappedShift
    thinking: Marks | None = None
    """How thoughts are marked in the answers that it learned."""

    def prompt(self, messages: Sequence[Message]) -> DeltaPrompt:
        """The delta's prompt: at most half of its context."""
        return self.tokenizer.prompt(
            self.form, messages, turns=self.turns, max_tokens=self.source.context // 2
        )

    def active(self, alpha: float, prompt: DeltaPrompt, given: bytes = b"") -> ActiveAdapter:
        """The adapter as it acts on one reply; `given` is what that begins with."""
        return ActiveAdapter(self.name, self.steerings, self.mapped, alpha, prompt, given)

    def verbatim(self, text: str) -> DeltaPrompt:
        """A text as the delta's whole prompt; its end, where it takes over half of the context."""
        return self.tokenizer.verbatim(text, max_tokens=self.source.context // 2)


@dataclass(frozen=True, eq=False)
class AdapterLoader:
    """Makes adapter folders ready for one base vocabulary."""

    base: Vocabulary
    control: Control
    device: str = "auto"
    threads: int = 1
    sequences: int = 1

    def __call__(self, folder: str | Path) -> LoadedAdapter:
        """Load an adapter folder; AdapterError where it cannot be used."""
        from cmc_local.delta.onnx_delta import OnnxDelta

        adapter = adapter_folder.load(folder)
        source = OnnxDelta(adapter, device=self.device, threads=self.threads, slots=self.sequences)
        tokenizer = DeltaTokenizer(adapter.tokenizer_json)
        settings = adapter.settings
        loaded = ready(
            source,
            tokenizer,
            self.base,
            self.control,
            name=settings.name,
            alpha=settings.alpha,
            form=settings.prompt,
            turns=settings.turns,
        )
        return replace(loaded, thinking=Marks(*settings.thinking)) if settings.thinking else loaded


def ready(
    source: ShiftSource,
    tokenizer: DeltaTokenizer,
    base: Vocabulary,
    control: Control,
    *,
    name: str,
    form: PromptForm,
    alpha: float = 1.0,
    turns: Turns = "all",
    cache_dir: Path | None = None,
) -> LoadedAdapter:
    """Any shift source made ready for a base vocabulary, its slots one sequence each."""
    found = token_map.load_or_build(
        base,
        source.vocabulary,
        fallback=control.fallback,
        encode=tokenizer.encode,
        tokenizer_sha256=tokenizer.sha256,
        cache_dir=cache_dir,
    )
    mapped = MappedShift(found, control)
    joins = control.mid_token == "join"
    mid_token = MidToken(base, source.vocabulary) if joins else None
    slots = range(source.slots)
    steerings = tuple(Steering(source, tokenizer, mid_token, slot=slot) for slot in slots)
    for steering in steerings:
        steering.peers = steerings
    return LoadedAdapter(name, alpha, form, turns, tokenizer, source, steerings, mapped)
