"""Hosts without a model: asked once, looked at, and nothing of them left."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path

import psutil

from kensho.runtime.hosts import frames
from kensho.runtime.hosts.host_source import NewHost


def descriptors(pid: int | str = "self") -> list[str]:
    """What is open, without numbers."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(path.readlink()).split(":")[0].split(" ")[0])
        except FileNotFoundError:
            continue  # the one that listed them
    return sorted(found)


def run(main: Coroutine[object, object, None]) -> None:
    """To the end on a loop of its own; afterwards no child and no descriptor is left."""
    asyncio.run(asyncio.sleep(0))
    before = descriptors()
    asyncio.run(asyncio.wait_for(main, 60))
    assert psutil.Process().children(recursive=True) == []
    assert descriptors() == before


async def ping(made: NewHost) -> None:
    loop = asyncio.get_running_loop()
    made.sock.setblocking(False)
    await loop.sock_sendall(made.sock, frames.encode(frames.Ping()))
    assert await loop.sock_recv(made.sock, 99) == frames.encode(frames.Pong())
