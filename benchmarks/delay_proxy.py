"""A TCP proxy that delivers every byte later, as a network with a longer way does.

    python benchmarks/delay_proxy.py LISTEN_PORT SERVER_PORT DELAY_MS [BYTES_PER_S]

Half of the delay is added in each direction. Without a limit on the bytes of all connections to the
server, Python passes on about a gigabyte a second.
"""

from __future__ import annotations

import asyncio
import sys

_BLOCK = 1 << 18
_MOST_UNDER_WAY = 64 << 20  # bytes of one direction of a connection


class Pace:
    """Lets so many bytes a second through, of all connections together."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s, self._free_s = bytes_per_s, 0.0

    async def wait(self, n_bytes: int) -> None:
        """Wait until some bytes are through."""
        now_s = asyncio.get_running_loop().time()
        self._free_s = max(self._free_s, now_s) + n_bytes / self._bytes_per_s
        await asyncio.sleep(self._free_s - now_s)


async def pass_on(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, delay_s: float, pace: Pace | None
):
    """Pass bytes on, each block after the delay."""
    loop, under_way, room = asyncio.get_running_loop(), 0, asyncio.Event()

    def deliver(block: bytes) -> None:
        nonlocal under_way
        under_way -= len(block)
        room.set()
        if not target.is_closing():
            target.write(block)

    while block := await source.read(_BLOCK):
        under_way += len(block)
        if pace is not None:
            await pace.wait(len(block))
        loop.call_later(delay_s, deliver, block)
        while under_way > _MOST_UNDER_WAY:
            room.clear()
            await room.wait()
        await target.drain()
    loop.call_later(delay_s, target.close)


async def serve(port: int, server_port: int, delay_s: float, pace: Pace | None) -> None:
    """Serve until the process is ended."""

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", server_port, limit=_BLOCK)
        both = pass_on(reader, back, delay_s, pace), pass_on(there, writer, delay_s, None)
        await asyncio.gather(*both, return_exceptions=True)

    server = await asyncio.start_server(connect, "127.0.0.1", port, backlog=256, limit=_BLOCK)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    limit = Pace(float(sys.argv[4])) if len(sys.argv) > 4 else None
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 2000, limit))
