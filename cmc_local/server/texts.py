"""`/tokenize`, `/detokenize` in llama-server's and vLLM's shapes, and vLLM's `/tokenizer_info`."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cmc_local.server.bodies import DetokenizeBody, TokenizeBody, parse
from cmc_local.server.requests import check_text, check_tokens
from cmc_local.server.service import Service
from cmc_local.text.vocabulary import Vocabulary


async def tokenize(request: Request) -> Response:
    """The base model's tokens of a text; with `with_pieces` each with what it spells."""
    service: Service = request.app.state.service
    body = parse(TokenizeBody, await request.body())
    entry = service.find(body.model)
    bos = None if body.add_special else False
    check_text(body.content, "content", max(service.limits.text_bytes, entry.text_bytes))
    with entry.held() as model:
        base = model.base
        async with service.heavy:
            tokens = await asyncio.to_thread(
                base.tokenize, body.content, special=body.parse_special, bos=bos
            )
    if not body.with_pieces:
        return JSONResponse({"tokens": tokens})
    pieces = [{"id": token, "piece": _piece(token, base.vocabulary)} for token in tokens]
    return JSONResponse({"tokens": pieces})


async def tokenizer_info(request: Request) -> Response:
    """The names of the tokens that begin and end texts, as lm-eval's remote tokenizer asks."""
    service: Service = request.app.state.service
    base = service.find(request.query_params.get("model")).serving.base
    names = base.vocabulary.names
    found = {"bos_token": base.vocabulary.bos_id, "eos_token": base.vocabulary.eos_id}
    told = {name: None if token is None else names[token] for name, token in found.items()}
    return JSONResponse({**told, "pad_token": None, "chat_template": base.chat_template})


async def detokenize(request: Request) -> Response:
    """What tokens spell; bytes that are no text become U+FFFD."""
    service: Service = request.app.state.service
    body = parse(DetokenizeBody, await request.body())
    model = service.find(body.model).serving
    check_tokens(body.tokens, "tokens", len(model.base.vocabulary))
    return JSONResponse({"content": model.detokenize(body.tokens).decode("utf-8", "replace")})


def _piece(token: int, vocabulary: Vocabulary) -> Any:
    """Its text, or its bytes where they are none."""
    text = vocabulary.tokens[token]
    try:
        return text.decode()
    except UnicodeDecodeError:
        return list(text)
