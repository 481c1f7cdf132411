"""Serving the page: limits, passwords, headers, health."""

from __future__ import annotations

import atexit
import base64
import functools
import hashlib
import hmac
import importlib.util
import os
import secrets
import tempfile
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse

from styleapp.errors import ImageError, OptionError
from styleapp.files import atomic_path
from styleapp.pipeline import StyleTransfer
from styleapp.web.app import build, css, head, theme
from styleapp.web.service import Service

__all__ = ["Server", "add_user", "check_password", "launch", "make_app", "read_users", "upload_folder"]

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "SAMEORIGIN",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; frame-ancestors 'self'",
}


@functools.cache
def upload_folder() -> str:
    """Where this process keeps uploads and examples, until it ends: in GRADIO_TEMP_DIR, if that is set.

    Gradio's own is one for all processes of a machine, with files named by their content, and a page that is stopped
    deletes what it had: then the same photo on another page, and its examples, were gone.
    """
    parent = os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()
    Path(parent).mkdir(parents=True, exist_ok=True)
    folder = tempfile.TemporaryDirectory(prefix="styleapp-uploads-", dir=parent)
    atexit.register(folder.cleanup)
    return folder.name


def make_app(
    service: Service, *, max_upload: str = "20mb", users: dict[str, str] | None = None, mcp: bool = False
) -> FastAPI:
    """The page at /, /healthz and /metrics.

    Args:
        max_upload: largest upload, such as "20mb".
        users: name and hashed password of who may enter; None for everybody.
        mcp: serve the endpoints as tools of the Model Context Protocol too, at /gradio_api/mcp/.

    Raises:
        OptionError: if what MCP needs is not installed.
    """
    if mcp and importlib.util.find_spec("mcp") is None:
        raise OptionError("--mcp needs the extra mcp: pip install 'styleapp[mcp]'")
    os.environ["GRADIO_TEMP_DIR"] = upload_folder()  # asked for by Gradio whenever it needs it
    app = FastAPI(title="StyleApp", docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def headers(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await answer(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok", "device": str(service.transfer.device)}

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> str:
        return service.metrics()

    def allowed(name: str, password: str) -> bool:
        assert users is not None
        stored = users.get(name)
        # An unknown name takes as long as a wrong password.
        return check_password(password, stored or hash_password("")) and stored is not None

    mounted: FastAPI = gr.mount_gradio_app(
        app,
        build(service),
        path="/",
        max_file_size=max_upload,
        auth=allowed if users is not None else None,
        allowed_paths=[],
        footer_links=[],
        run_history=False,
        show_error=False,
        enable_monitoring=False,
        mcp_server=mcp,
        theme=theme(),
        css=css(),
        head=head(),
    )
    return mounted


class Server:
    """A page that is being served, in a thread of its own. Use as a context manager in tests.

    Attributes:
        url: where.
    """

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        config = uvicorn.Config(app, host=host, port=port, log_level="warning", server_header=False)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            self._thread.join(0.02)
        if not self._server.started:
            raise OptionError(f"port {port} of {host} cannot be had; take another with --port")
        bound = self._server.servers[0].sockets[0].getsockname()
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{bound[1]}"

    def _run(self) -> None:
        with suppress(SystemExit):  # a port that is taken; told where the thread was started
            self._server.run()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving."""
        self._server.should_exit = True
        self._thread.join(10)

    def wait(self) -> None:
        """Until it is stopped."""
        while self._thread.is_alive():
            self._thread.join(0.5)


def launch(
    transfer: StyleTransfer,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_upload: str = "20mb",
    users: dict[str, str] | None = None,
    work_seconds: float = 300.0,
    mcp: bool = False,
) -> Server:
    """Serve the page. ``port`` 0 takes a free one; ``work_seconds`` is what one request may take.

    Raises:
        OptionError: if the port is taken, or what MCP needs is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    service = Service(transfer, work_seconds=work_seconds)
    return Server(make_app(service, max_upload=max_upload, users=users, mcp=mcp), host, port)


# Passwords: one line a user, name:scrypt$salt$hash


def hash_password(password: str, salt: bytes | None = None) -> str:
    """scrypt with a salt of its own (RFC 7914)."""
    salt = salt or secrets.token_bytes(16)
    digest = hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1)
    return "$".join(["scrypt", *(base64.b64encode(part).decode() for part in (salt, digest))])


def check_password(password: str, stored: str) -> bool:
    """Whether it is the one that was hashed."""
    _, salt, _ = stored.split("$")
    return hmac.compare_digest(hash_password(password, base64.b64decode(salt)), stored)


def read_users(file: Path) -> dict[str, str]:
    """Names and hashed passwords.

    Raises:
        ImageError: if it cannot be read.
        OptionError: for a line that is none of ours.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"{file}: cannot be read ({error})") from None
    users = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            name, _, stored = line.partition(":")
            if not name or stored.count("$") != 2 or not stored.startswith("scrypt$"):
                raise OptionError(f"{file}, line {number}: not a user; add one with styleapp users {file} NAME")
            users[name] = stored
    return users


def add_user(file: Path, name: str, password: str) -> None:
    """Add a user to a file, or change the password of one.

    Raises:
        OptionError: for a name or password that cannot be used.
        ImageError: if the file cannot be read or written; what was in it stays.
    """
    if not name.strip() or ":" in name or not name.isprintable() or len(password) < 8:
        raise OptionError("a user has a name of printable characters without ':' and a password of at least 8 of them")
    users = read_users(file) if file.exists() else {}
    users[name] = hash_password(password)
    try:
        with atomic_path(file) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text("".join(f"{n}:{p}\n" for n, p in users.items()), encoding="utf-8")
    except OSError as error:
        raise ImageError(f"{file}: cannot be written ({error.strerror})") from None
