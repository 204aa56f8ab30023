"""Where the time of steps and replies went."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass
class StepTimes:
    """Where the time of steps went; seconds of wall clock."""

    decode_seconds: float = 0.0
    """Decoding replies with the base model."""
    delta_seconds: float = 0.0
    """Aligning and running the deltas; where overlapped, beside the base model."""
    align_seconds: float = 0.0
    """Of these: finding the delta's tokens of what was said."""
    session_seconds: float = 0.0
    """Of these: the deltas' networks; what is left are rows kept and mid-token look-ups."""
    wait_seconds: float = 0.0
    """Waiting for the deltas after the base model was done."""
    map_seconds: float = 0.0
    """Mapping the shifts and adding them."""
    sample_seconds: float = 0.0
    total_seconds: float = 0.0


@dataclass
class Timings(StepTimes):
    """What a reply cost; a step that it shares with others counts in full."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    """Prompt tokens that were in the base model's cache already."""
    generated_tokens: int = 0
    guessed_tokens: int = 0
    """Of these, the ones that came from right drafts."""
    prompt_seconds: float = 0.0
    """Decoding the prompt with the base model."""

    def after(self, earlier: Timings) -> Timings:
        """Both together, where this goes on with the reply of the earlier one."""
        names = [one.name for one in fields(self) if one.name.endswith("_seconds")]
        spent = {name: getattr(earlier, name) + getattr(self, name) for name in names}
        guessed = earlier.guessed_tokens + self.guessed_tokens
        return replace(earlier, **spent, guessed_tokens=guessed)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second, the prompt's time aside."""
        seconds = self.total_seconds - self.prompt_seconds
        return self.generated_tokens / seconds if seconds > 0 else 0.0
