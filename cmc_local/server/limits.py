"""What one request may ask for, and how long anything may take. Numbers only."""

from __future__ import annotations

from dataclasses import dataclass, fields

from cmc_local.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Bounds on requests; what exceeds one is refused by name. All are above 0.

    The prompt's own bound is the base model's context.
    """

    body_bytes: int = 8 * 2**20
    choices: int = 128
    """`n`, and `n` times the number of prompts."""
    inputs: int = 256
    """Texts of one embeddings request."""
    text_bytes: int = 256 * 2**10
    """What `/tokenize` takes, or what may fit the context if that is more."""
    stops: int = 16
    stop_characters: int = 256
    logprobs: int = 20
    """Alternatives listed for each token."""
    logit_bias: int = 1024
    """Tokens with a bias."""
    form_bytes: int = 64 * 2**10
    """A schema, a regular expression or a grammar; what it costs is llguidance's to bound."""
    responses: int = 256
    """Responses that are kept, so that others can go on from them."""
    queue: int = 256
    """Replies that wait for a slot."""
    patience: float = 300.0
    """Seconds that a reply may wait for a slot."""
    read_seconds: float = 30.0
    """Seconds for a request's head, and again for its body, to come in."""
    send_seconds: float = 60.0
    """Seconds for a client to take one piece of a stream."""
    connections: int = 512
    stuck_seconds: float = 300.0
    """Seconds without a step, while replies are under way, until the model counts as stuck."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise UsageError(f"{field.name} must be above 0, not {getattr(self, field.name)}")
