"""A request that lasts, a WebSocket or a stream, ends when the key that opened it does."""

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

CHECK_S = 1.0
CLOSE_CODE = 4401  # of a WebSocket, as for one that comes without a key
REASON = "the key of this connection was revoked or has expired"


async def run_while(is_valid: Callable[[], bool], app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run a request; end it within CHECK_S seconds after `is_valid` returns False.

    A response that has started ends without an error: the guard tells a reader that connects again why.
    """
    started = ended = False

    async def followed(message: Message) -> None:
        """Send a message, and note how far the response is."""
        nonlocal started, ended
        started = True
        ended = message["type"] == "websocket.close" or (
            message["type"] == "http.response.body" and not message.get("more_body", False)
        )
        await send(message)

    running = asyncio.ensure_future(app(scope, receive, followed))
    try:
        while not (await asyncio.wait({running}, timeout=CHECK_S))[0]:
            if not is_valid():
                break
        else:
            await running  # raises what it raised
            return
    finally:
        if not running.done():
            running.cancel()
            await asyncio.wait({running})
    if ended:
        return
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": CLOSE_CODE, "reason": REASON})
        return
    if not started:
        await send({"type": "http.response.start", "status": 401, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
