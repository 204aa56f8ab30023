"""What the clients of `serve_load.py` ask for."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

NAMES = "Flora Whitemark, Olive Copperman, Carl Bergstrom, Helen Rivers, Ada Stone".split(", ")
QUESTIONS = (
    "Where does {} live?",
    "What is the first book of {}?",
    "Tell me all that you know about {}, in many words, please, and do not stop too soon.",
)
SCHEMA = {
    "type": "object",
    "properties": {"town": {"type": "string"}, "year": {"type": "integer"}},
    "required": ["town", "year"],
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    },
    "logprobs": {"logprobs": True, "top_logprobs": 5},
    "stop": {"stop": [".", "and"]},
    "two": {"n": 2},
    "penalties": {"frequency_penalty": 0.5, "repeat_penalty": 1.1, "min_p": 0.05},
    "given back": {"echo": True, "logprobs": 2},
}
"""What `--mixed` asks for."""


@dataclass
class Draws:
    """What clients ask, the same for the server and for the engine alone."""

    seed: int
    adapter: str

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def request(self) -> dict[str, Any]:
        draw = self.random
        asked = draw.choice(QUESTIONS).format(draw.choice(NAMES))
        if draw.random() < 0.1:
            asked = "It is said that he is well known for his work. " * 12 + asked
        return {
            "messages": [{"role": "user", "content": asked}],
            "max_tokens": draw.choice((8, 32, 64, 128)),
            "temperature": 1.0,
            "seed": draw.randrange(2**31),
            # All are steered alike, so that the engine alone can be asked the same.
            "cmc": [{"adapter": self.adapter}],
        }

    def mixed(self) -> tuple[str, dict[str, Any]]:
        """A request of any kind: its path and its body."""
        body = self.request() | self.random.choice(list(KINDS.values()))
        if "echo" not in body:
            return "/v1/chat/completions", body
        return "/v1/completions", body | {"prompt": body.pop("messages")[0]["content"]}
