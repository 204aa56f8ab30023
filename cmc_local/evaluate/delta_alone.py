"""A delta on its own, without a base model: what it knows of the answers by itself."""

from __future__ import annotations

from collections.abc import Sequence

from cmc_local.delta.adapter import Adapter
from cmc_local.delta.onnx_delta import OnnxDelta
from cmc_local.text.alignment import Aligner
from cmc_local.text.delta_tokenizer import DeltaTokenizer

MAX_TOKENS = 40


def answers(adapter: Adapter, questions: Sequence[str]) -> list[str]:
    """The delta's own greedy reply to each question, in its prompt form."""
    tokenizer = DeltaTokenizer(adapter.tokenizer_json)
    delta = OnnxDelta(adapter, device="cpu")
    return [_answer(adapter, tokenizer, delta, question) for question in questions]


def _answer(adapter: Adapter, tokenizer: DeltaTokenizer, delta: OnnxDelta, question: str) -> str:
    prompt = tokenizer.prompt(
        adapter.settings.prompt,
        [{"role": "user", "content": question}],
        turns=adapter.settings.turns,
        max_tokens=delta.context // 2,
    )
    tokens: Sequence[int] = Aligner(tokenizer, prompt).tokens
    delta.truncate(0, 0)
    reply: list[int] = []
    for _ in range(MAX_TOKENS):
        token = int(delta.feed(0, tokens)[-1].argmax())
        if token == tokenizer.eos_id:
            break
        reply.append(token)
        tokens = (token,)
    return b"".join(tokenizer.vocabulary.tokens[t] for t in reply).decode(errors="replace").strip()
