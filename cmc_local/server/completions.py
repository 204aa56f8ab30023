"""`POST /v1/completions`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from cmc_local.server.answering import answer
from cmc_local.server.bodies import CompletionBody, parse
from cmc_local.server.replying import Replying
from cmc_local.server.requests import completion_asks
from cmc_local.server.service import Service
from cmc_local.server.shapes import Text, choices


async def completions(request: Request) -> Response:
    """What texts go on with; the choices of the first prompt come first."""
    service: Service = request.app.state.service
    body = parse(CompletionBody, await request.body())
    entry = service.find(body.model)
    asks = completion_asks(body, service.setting(entry))
    n = body.n or 1
    replying = Replying(service, entry, asks, n=n, param="prompt")

    def prompt(choice: int) -> str:
        given = body.prompt[choice // n]
        if isinstance(given, str):
            return given
        return replying.model.detokenize(given).decode("utf-8", "replace")

    shape = Text(
        replying.model.base.vocabulary,
        prompt,
        alternatives=body.logprobs,
        echo=bool(body.echo),
    )
    frame = choices(shape, body, entry)
    return await answer(request, service, frame, replying, stream=bool(body.stream))
