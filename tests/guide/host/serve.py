"""The guide's Example 1, with custom commands beside it: what the guide's web clients talk to."""

from __future__ import annotations

import asyncio
from typing import Any

from zCLI.zCLI import zCLI

from zcomm.threaded import Client


class MockWalker:
    """As in the guide: data and a logger are enough."""

    def __init__(self, zcli: zCLI):
        self.zcli = zcli
        self.data = zcli.data
        self.logger = zcli.logger


async def main() -> None:
    """Serve until Ctrl-C."""
    zcli = zCLI({"zSpark": {}, "plugins": []})
    walker = MockWalker(zcli)
    bifrost = zcli.comm.create_websocket(walker=walker, port=0)

    @bifrost.command("custom_command")
    def custom_command(horizontal: Any) -> Any:
        return horizontal

    @bifrost.command("who_is_here")
    def who_is_here() -> int:
        return len(bifrost.clients)

    @bifrost.command("drop_me")
    async def drop_me(horizontal: Any, client: Client) -> None:
        await asyncio.to_thread(client.close, 1001, "come back")

    await zcli.comm.start_websocket(asyncio.Event(), walker=walker)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        pass
