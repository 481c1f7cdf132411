"""The endpoints as tools of the Model Context Protocol; runs where the extra is installed."""

from __future__ import annotations

import asyncio
import base64
import importlib.util

import pytest

from styleapp.errors import OptionError
from styleapp.web.server import Server, make_app


@pytest.mark.skipif(importlib.util.find_spec("mcp") is not None, reason="the extra mcp is installed")
def test_without_the_extra_it_is_told(service):
    with pytest.raises(OptionError, match=r"pip install 'styleapp\[mcp\]'"):
        make_app(service, mcp=True)


def test_tools(service, photo):
    mcp = pytest.importorskip("mcp")
    transport = pytest.importorskip("mcp.client.streamable_http")

    async def use(url: str) -> None:
        async with (
            transport.streamablehttp_client(f"{url}/gradio_api/mcp/") as (read, write, _),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            assert set(tools) == {"stylize", "mix", "regions", "compare", "look", "batch", "styles"}
            assert "strength of the style" in str(tools["stylize"].inputSchema["properties"]["alpha"])
            styles = await session.call_tool("styles", {})
            assert "great-wave" in str(styles.content)
            data = "data:image/png;base64," + base64.b64encode(photo.read_bytes()).decode()
            done = await session.call_tool("stylize", {"photo": data, "style": "great-wave", "style_size": 64})
            assert not done.isError and "56 × 40 px" in str(done.content)
            for bad in ("/etc/hostname", "http://127.0.0.1:1/x.png"):
                assert (await session.call_tool("stylize", {"photo": bad, "style": "great-wave"})).isError

    with Server(make_app(service, mcp=True), "127.0.0.1", 0) as server:
        asyncio.run(use(server.url))
