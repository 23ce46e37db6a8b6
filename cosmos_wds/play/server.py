"""The body of `cosmos-wds play`: a page on this machine, and a WebSocket for each tab showing it.

There are two addresses and no third: `/` is the page, `/ws` its WebSocket. No address leads to a
file. The server listens on 127.0.0.1 alone; since every web page that the user visits can send
requests there too, it answers only those that name this machine as their host (DNS rebinding) and
WebSockets that this very page opened (cross-site hijacking).

aiohttp serves it, because it has WebSockets and is here anyway: fsspec reads http:// with it.
"""

import asyncio
import errno
import logging
import os
import socket
import sys
import webbrowser
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.http_exceptions import HttpProcessingError
from rich.markup import escape

from cosmos_wds.console import say
from cosmos_wds.diffusion.guardrail import remind
from cosmos_wds.errors import ConfigError, UserError
from cosmos_wds.play.drive import MOST_STEPS, Drive
from cosmos_wds.play.messages import LONGEST, Begin, Step, answer, read_request
from cosmos_wds.play.page import play_page
from cosmos_wds.play.playground import Playground, find_starts, open_playground
from cosmos_wds.play.worker import Stopped, Worker
from cosmos_wds.rollout.described import adjusted, describe
from cosmos_wds.rollout.worlds import load_world
from cosmos_wds.train.run import find_weights

HERE = "127.0.0.1"
NAMES_OF_HERE = (HERE, "localhost", "::1")
MOST_TABS = 8
PATIENCE = 1.0
"""Seconds that the end of the program waits for tabs, and for the operation being computed."""
HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, kw_only=True)
class PlayRequest:
    """What the user asks of `play`; None stands for the recipe's choice."""

    checkpoint: str
    shards: str | None = None
    images: tuple[Path, ...] = ()
    port: int
    """0 takes any that is free."""
    steps: int | None = None
    """Sampler steps per frame."""
    guardrail: str | None = None
    has_browser: bool = True
    """Open the page in the user's browser."""


def play(request: PlayRequest) -> None:
    """Serve a model until Ctrl-C. Raises UserError for what cannot be served."""
    if request.steps is not None and request.steps < 1:
        raise ConfigError(f"--steps {request.steps}: at least 1")
    recipe, contract = describe(request.checkpoint)
    recipe = adjusted(recipe, guardrail=request.guardrail, steps=request.steps)
    beside = find_weights(request.checkpoint).folder
    starts = find_starts(
        recipe, contract, shards=request.shards, images=request.images, beside=beside
    )
    with listening(request.port) as listener:
        run = load_world(request.checkpoint, recipe)
        say(escape(str(run.audit)))
        remind(run.recipe)
        ground = open_playground(run, starts, checkpoint=request.checkpoint, contract=contract)
        address = f"http://{HERE}:{listener.getsockname()[1]}/"
        say(f"drive it at [bold]{address}[/bold]; Ctrl-C ends it")
        if request.has_browser and _has_screen():
            webbrowser.open(address)
        web.run_app(
            application(ground, Worker()),
            sock=listener,
            print=None,
            access_log=None,
            shutdown_timeout=PATIENCE,
        )


def listening(port: int) -> socket.socket:
    """A socket that listens on this machine alone. Raises ConfigError when the port is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would let two programs share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HERE, port))
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        reason = "is taken" if error.errno == errno.EADDRINUSE else "may not be used"
        raise ConfigError(
            f"--port {port}: {reason}; name another one, or 0 for any that is free"
        ) from None
    return listener


def _has_screen() -> bool:
    """Whether a browser can be seen; without one, a text browser would take the terminal."""
    screens = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform != "linux" or any(os.environ.get(name) for name in screens)


def application(ground: Playground, worker: Worker) -> web.Application:
    """The server's two addresses."""
    tabs: set[web.WebSocketResponse] = set()
    page, thumbnails = play_page(), ground.thumbnails()
    hello = answer({**ground.about(), "most_steps": MOST_STEPS}, thumbnails)

    async def show(_: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/html")

    async def drive(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Origin") != f"http://{request.host}":
            raise web.HTTPForbidden(text="only the page of this server may open this")
        tab = web.WebSocketResponse(max_msg_size=LONGEST, timeout=PATIENCE)
        await tab.prepare(request)
        if len(tabs) >= MOST_TABS:
            text = f"{MOST_TABS} tabs drive this model already: close one, and load this page again"
            await tab.send_bytes(answer({"is": "error", "text": text}))
            await tab.close(code=WSCloseCode.TRY_AGAIN_LATER)
            return tab
        tabs.add(tab)
        try:
            await tab.send_bytes(hello)
            await serve(tab, ground, worker)
        except (ConnectionResetError, Stopped):
            pass  # the tab, or the server, ended while a frame was computed
        finally:
            tabs.discard(tab)
        return tab

    async def end(_: web.Application) -> None:
        await asyncio.to_thread(worker.close, PATIENCE)
        for tab in list(tabs):
            await tab.close(code=WSCloseCode.GOING_AWAY)

    logging.getLogger("aiohttp.server").addFilter(_is_ours)
    app = web.Application(middlewares=[_guarded], client_max_size=LONGEST)
    app.router.add_get("/", show)
    app.router.add_get("/ws", drive)
    app.on_shutdown.append(end)
    return app


async def serve(tab: web.WebSocketResponse, ground: Playground, worker: Worker) -> None:
    """Answer a tab's requests, one after the other, until it is closed.

    While one is computed the next is not read: what a tab sends in the meantime waits on its side.
    """
    world = Drive(ground)
    async for message in tab:
        if message.type != WSMsgType.TEXT:
            await tab.close(code=WSCloseCode.UNSUPPORTED_DATA)
            return
        try:
            answered = await _answered(world, message.data, ground, worker)
        except UserError as error:
            answered = answer({"is": "error", "text": str(error)})
        await tab.send_bytes(answered)


async def _answered(world: Drive, text: str, ground: Playground, worker: Worker) -> bytes:
    request = read_request(text, ground.rules)
    if isinstance(request, Begin):
        frame = await worker.run(world.begin, request.start, request.seed)
        return answer({"is": "begun", "step": 0}, [frame])
    if isinstance(request, Step):
        frame = await worker.run(world.step, request.action)
        return answer({"is": "frame", "step": world.steps}, [frame])
    video, log = await worker.run(lambda: (world.video(), world.log()))
    return answer({"is": "saved", "step": world.steps}, [video, log])


@web.middleware
async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Only requests to this machine by its own name; refusals in one plain line."""
    try:
        if not _is_here(request.host):
            raise web.HTTPForbidden(text=f"this server is called {HERE}")
        response = await handler(request)
    except web.HTTPException as refusal:
        text = refusal.text or refusal.reason
        response = web.Response(status=refusal.status, text=f"{text}\n")
    if not response.prepared:
        response.headers.update(HEADERS)
    return response


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a logged error is this program's: requests that are no HTTP are their senders'."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)


def _is_here(host: str) -> bool:
    """Whether a Host header names this machine; through `ssh -L` the port may be another one."""
    try:
        return urlsplit(f"//{host}").hostname in NAMES_OF_HERE
    except ValueError:
        return False
