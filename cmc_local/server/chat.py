"""`POST /v1/chat/completions`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from cmc_local.server.answering import answer
from cmc_local.server.bodies import ChatBody, parse
from cmc_local.server.replying import Replying
from cmc_local.server.requests import chat_asks
from cmc_local.server.service import Service
from cmc_local.server.shapes import Chat, choices
from cmc_local.server.tools import offered


async def chat(request: Request) -> Response:
    """The reply to a conversation, or `n` of them."""
    service: Service = request.app.state.service
    body = parse(ChatBody, await request.body())
    entry = service.find(body.model)
    setting = service.setting(entry)
    tools = offered(body, setting.limits)
    asks = chat_asks(body, setting, tools)
    replying = Replying(service, entry, asks, n=len(asks), param="messages")
    vocabulary = replying.model.base.vocabulary
    shape = Chat(
        vocabulary,
        logprobs=bool(body.logprobs),
        plain=bool(body.cmc_plain),
        calls=() if tools is None else tools.names,
    )
    frame = choices(shape, body, entry)
    return await answer(request, service, frame, replying, stream=bool(body.stream))
