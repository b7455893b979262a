"""How a request learns, while it waits, that its client has hung up."""

import asyncio
from collections.abc import Callable

from starlette.types import Receive, Scope

# Takes what to call, on the event loop, once the client has hung up; gives what stops the watch.
OnHangUp = Callable[[Callable[[], None]], Callable[[], None]]
# A server that knows of its connections leaves an OnHangUp among the scope's extensions.
EXTENSION = "service.on_hang_up"


def on_hang_up_of(scope: Scope, receive: Receive) -> OnHangUp:
    """The server's own if it has one; otherwise a task that listens, as ASGI has it.

    To be used once the body is complete: a listener would swallow it.
    """
    extension: OnHangUp | None = scope.get("extensions", {}).get(EXTENSION)
    return extension or _listening(receive)


def never(_: Callable[[], None]) -> Callable[[], None]:
    """For a transport that cancels the task of a caller who is gone."""
    return lambda: None


def _listening(receive: Receive) -> OnHangUp:
    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    def watch(call: Callable[[], None]) -> Callable[[], None]:
        def ended(_: asyncio.Future[None]) -> None:
            call()

        listener = asyncio.ensure_future(disconnected())
        listener.add_done_callback(ended)

        def stop() -> None:
            listener.remove_done_callback(ended)
            listener.cancel()

        return stop

    return watch
