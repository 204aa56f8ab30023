"""`POST /v1/embeddings`: texts as vectors of the base model; adapters have no part in them."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cmc_local.errors import CmcError, GGUFError
from cmc_local.server import names
from cmc_local.server.bodies import EmbeddingBody, parse
from cmc_local.server.errors import Refusal, invalid, refusal
from cmc_local.server.requests import check_prompt
from cmc_local.server.served import ServedModel
from cmc_local.server.service import Service


async def embeddings(request: Request) -> Response:
    """A vector for each text."""
    service: Service = request.app.state.service
    body = parse(EmbeddingBody, await request.body())
    entry = service.find(body.model)
    setting = service.setting(entry)
    names.parse(body.model, entry.name, entry.alphas)
    if len(body.input) > service.limits.inputs:
        most = service.limits.inputs
        told = f"input has {len(body.input)} texts, more than {most}: send fewer at once"
        raise invalid(told, "input")
    for number, one in enumerate(body.input):
        check_prompt(one, f"input[{number}]", setting)
    with entry.held() as model:
        async with service.heavy:
            tokens, vectors = await asyncio.to_thread(_embedded, model, body.input)
    size = vectors.shape[1]
    if body.dimensions not in (None, size):
        raise invalid(
            f"this model's vectors have {size} dimensions: leave `dimensions` out", "dimensions"
        )
    data = [
        {"object": "embedding", "index": i, "embedding": _written(vector, body.encoding_format)}
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    name = body.model or entry.served_name
    return JSONResponse({"object": "list", "data": data, "model": name, "usage": usage})


def _embedded(model: ServedModel, texts: list[str | list[int]]) -> tuple[int, NDArray[np.float32]]:
    """How many tokens the texts have, and their vectors (n, d) float32."""
    tokens = [model.base.tokenize(one) if isinstance(one, str) else one for one in texts]
    try:
        return sum(map(len, tokens)), model.embed(tokens)
    except GGUFError as error:  # the model is whole, but none that embeds
        headers = {"x-should-retry": "false"}
        raise Refusal(501, str(error), code="not_supported", headers=headers) from error
    except CmcError as error:
        raise refusal(error, param="input") from error


def _written(vector: NDArray[np.float32], form: str | None) -> Any:
    """The vector's numbers, or its float32 bytes, little-endian, in base64."""
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
