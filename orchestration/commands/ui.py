"""Serves the page that shows the studies of a workspace while they run and afterwards, with MLflow's page beside it.

It only reads. Whoever opens it must be on this machine, since it asks nobody for a password.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from erat.errors import UserError
from orchestration.report.document import write_report
from orchestration.report.following import LOOK_SECONDS, Follower, Said, changes, other_pages
from orchestration.report.render.html import asset, html, page
from orchestration.report.table import Column, Table
from orchestration.storage.workspace import Workspace
from orchestration.study.ledger import Ledger
from orchestration.study.status import spec_of
from orchestration.tracking.opening import runs_page, serve
from orchestration.tracking.store import check_address, is_http, stop_server, tracking_uri, without_password

Say = Callable[[str], None]
COLUMNS = ("study", "kind", "preset, data", "trials", "best val", "begun", "runs")
_PORTS = 50  # that are tried for MLflow, one after another
_STILL_SECONDS = 15.0  # after so long without news a comment is sent, by which the server notices who has gone
_NOTHING_FROM_ELSEWHERE = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def serve_pages(workspace: Workspace, host: str, port: int, mlflow_port: int | None, say: Say) -> None:
    """Serve the pages until Ctrl-C or SIGTERM, and then end MLflow's server too.

    Args:
        workspace: the workspace; one that cannot be written is enough.
        host: address to listen on, 127.0.0.1 or localhost.
        port: port of the project's page, in [1, 65535].
        mlflow_port: port of MLflow's page; None: the first free one after `port`.
        say: prints a line for the user.

    Raises:
        UserError: the host is not this machine's loopback address, a port is in use, or the ledger cannot be read.
    """
    check_address(host, port)
    follower = Follower(workspace)
    tracking = Tracking(workspace, host, _free_port(host, port) if mlflow_port is None else mlflow_port, say)
    if mlflow_port is not None:
        check_address(host, mlflow_port)
    app = pages(workspace, follower, tracking, lambda: server.should_exit)
    server = uvicorn.Server(
        uvicorn.Config(app, host=host, port=port, log_level="error", access_log=False, timeout_graceful_shutdown=5)
    )
    say(f"the studies are at http://{host}:{port} (Ctrl-C ends it)")
    with suppress(KeyboardInterrupt):
        server.run()


class Tracking:
    """MLflow's page on the store of a workspace, which a thread starts, because that takes seconds.

    Args:
        workspace: the workspace.
        host: address to listen on.
        port: port to listen on.
        say: prints a line for the user.

    Attributes:
        url: the address of the page; None until it answers.
        trouble: why there is no page; None if there is one, or will be.
    """

    def __init__(self, workspace: Workspace, host: str, port: int, say: Say) -> None:
        self._workspace, self._host, self._port, self._say = workspace, host, port, say
        self._uri = tracking_uri(workspace)
        self._over, self._thread = threading.Event(), threading.Thread(target=self._start, daemon=True)
        self._server: subprocess.Popen[bytes] | None = None
        self.url: str | None = None
        self.trouble: str | None = None

    def start(self) -> None:
        """Begin to start the page; where MLFLOW_TRACKING_URI names a server, that is the page."""
        if is_http(self._uri):
            self.url = without_password(self._uri).rstrip("/")
        else:
            self._thread.start()

    def stop(self) -> None:
        """End the server, also one that has not answered yet."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._server is not None:
            stop_server(self._server)

    def page_of(self, name: str, keys: list[str]) -> str:
        """Return the address of the runs of a study.

        Raises:
            UserError: MLflow's page is not there (yet).
        """
        if self.url is None:
            raise UserError(self.trouble or "MLflow is starting, which takes some seconds; load this page again")
        return runs_page(self._uri if is_http(self._uri) else self.url, self.url, name, keys)

    def _start(self) -> None:
        try:
            self._server = serve(self._workspace, self._host, self._port, lambda: not self._over.is_set())
        except Exception as error:  # whatever keeps MLflow away must not take the studies along
            self.trouble = str(error) if isinstance(error, UserError) else f"MLflow: {type(error).__name__}: {error}"
            if not self._over.is_set():
                self._say(f"without MLflow: {self.trouble}")
        else:
            self.url = f"http://{self._host}:{self._port}"
            self._say(f"MLflow is at {self.url}")


def pages(workspace: Workspace, follower: Follower, tracking: Tracking, over: Callable[[], bool]) -> Starlette:
    """Return the application that answers all requests.

    Args:
        workspace: the workspace.
        follower: what is known of its studies.
        tracking: MLflow's page.
        over: returns whether the server is about to end, so that nothing is followed any more.
    """
    drawing = threading.Lock()  # one page at a time is written, which may take long and much memory

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        tracking.start()
        try:
            yield
        finally:
            await run_in_threadpool(tracking.stop)

    async def front(request: Request) -> Response:
        seen = await run_in_threadpool(follower.look)
        others = await run_in_threadpool(other_pages, workspace)
        text = page(
            "ui.html",
            style=asset("page.css", "ui.css"),
            script=asset("ui.js"),
            root=str(workspace.root),
            studies=list(seen["studies"].values()),
            others=others,
            listed=html(Table.of([Column(name, "left") for name in COLUMNS], []), name="list"),  # the script adds rows
        )
        return HTMLResponse(text, headers={"Content-Security-Policy": _NOTHING_FROM_ELSEWHERE})

    async def study(request: Request) -> Response:
        def draw() -> str:
            # Not into the workspace, which is only read here.
            with drawing, tempfile.TemporaryDirectory(prefix="erat-page-") as folder:
                return write_report(workspace, request.path_params["name"], "html", f"{folder}/page.html").read_text()

        return HTMLResponse(await run_in_threadpool(draw))

    async def runs(request: Request) -> Response:
        def find() -> str:
            name = request.path_params["name"]
            return tracking.page_of(name, spec_of(Ledger(workspace.ledger), name).space.columns)

        return RedirectResponse(await run_in_threadpool(find))

    async def events(request: Request) -> Response:
        return StreamingResponse(
            _news(follower, tracking, over), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    async def refuse(request: Request, error: Exception) -> Response:
        return PlainTextResponse(str(error), 404)

    return Starlette(
        routes=[
            Route("/", front),
            Route("/events", events),
            Route("/studies/{name}", study),
            Route("/mlflow/{name}", runs),
            Mount("/reports", _Reports(directory=workspace.root / "reports", html=True, check_dir=False)),
        ],
        # A page elsewhere may have its name point to this machine; the browser then sends that name.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
        exception_handlers={UserError: refuse},
        lifespan=lifespan,
    )


class _Reports(StaticFiles):
    """The folder of reports, which a workspace without any has not yet: what is asked for there is not found."""

    async def check_config(self) -> None:
        """Accept a folder that does not exist."""


async def _news(follower: Follower, tracking: Tracking, over: Callable[[], bool]) -> AsyncIterator[str]:
    """Yield what has changed as server-sent events: first all that is known, then each change."""
    sent: Said = {}
    told, still = ("", ""), 0.0
    while not over():
        try:
            seen = await run_in_threadpool(follower.look)
        except UserError as error:
            yield _event({"trouble": str(error)})
            return
        news = changes(seen, sent)
        if (now := (tracking.url or "", tracking.trouble or "")) != told or not sent:
            news |= {"mlflow": {"url": now[0], "trouble": now[1]}}
        news |= {} if sent else {"all": True}
        sent, told = seen, now
        still = 0.0 if news else still + LOOK_SECONDS
        if news:
            yield _event(news)
        elif still >= _STILL_SECONDS:
            still = 0.0
            yield ": nothing new\n\n"
        await asyncio.sleep(LOOK_SECONDS)


def _event(content: Said) -> str:
    return f"data: {json.dumps(content, default=str)}\n\n"


def _free_port(host: str, port: int) -> int:
    """Return the first port after `port` on which nothing listens."""
    for other in range(port + 1, min(port + _PORTS, 65535) + 1):
        with suppress(UserError):
            check_address(host, other)
            return other
    raise UserError(f"no port after {port} is free for MLflow; give one with --mlflow-port")
