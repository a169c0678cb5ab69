"""The load of bench/overload.py, in a process of its own: requests as JSON lines over a Unix socket, answers counted.

    python bench/overload_generator.py SOCKET open   '{"load": 3, "per_s": 10, "tokens": 150, "for_s": 20, "seed": 1}'
    python bench/overload_generator.py SOCKET closed '{"at_once": 3, "tokens": 150, "for_s": 5, "seed": 1}'

open: requests come when the trace says, whatever the answers do. closed: so many at once, each followed by the next.
Prints one JSON object. A request is in time when its last token was there, by this process's clock, before its
deadline.
"""

import asyncio
import json
import random
import sys
import time
from typing import Any

from kensho.resilience.admission import Priority
from kensho.testing.load import DEADLINES_S, SERVICE_S, Trace, arrivals

MOST_TOKENS = 900


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.number = 0
        self.listening = asyncio.create_task(self.listen())

    async def listen(self) -> None:
        while line := await self.reader.readline():
            answer = json.loads(line)
            self.waiting.pop(answer["id"]).set_result(answer)

    async def ask(self, priority: Priority, tokens: int, within_s: float) -> dict[str, Any]:
        self.number += 1
        future = self.waiting[self.number] = asyncio.get_running_loop().create_future()
        asked = {"id": self.number, "priority": priority.name.lower(), "tokens": tokens, "within_s": within_s}
        began_s = time.monotonic()
        self.writer.write(json.dumps(asked).encode() + b"\n")
        answer = await future
        seconds = time.monotonic() - began_s
        is_good = answer["outcome"] == "ok" and seconds <= within_s
        return {
            "priority": priority,
            "outcome": answer["outcome"],
            "tokens": answer["tokens"],
            "seconds": seconds,
            "is_good": is_good,
            "ended_s": time.monotonic(),
        }


async def closed(client: Client, how: dict[str, Any]) -> list[dict[str, Any]]:
    rng, ends_s = random.Random(how["seed"]), time.monotonic() + how["for_s"]
    done: list[dict[str, Any]] = []

    async def one_after_another() -> None:
        while time.monotonic() < ends_s:
            tokens = int(how["tokens"] * rng.lognormvariate(-0.125, 0.5))
            done.append(await client.ask(Priority(how.get("priority", 2)), max(2, min(MOST_TOKENS, tokens)), 30.0))

    await asyncio.gather(*[one_after_another() for _ in range(how["at_once"])])
    return done


async def opened(client: Client, how: dict[str, Any]) -> list[dict[str, Any]]:
    """The arrivals of the simulation (made for 40 jobs a second), stretched to this machine's capacity."""
    stretch = 4 / SERVICE_S / how["per_s"]
    load = how["load"]
    trace = Trace("", lambda _: load, begins_s=0.0, ends_s=how["for_s"] / stretch)
    jobs = [job for job in arrivals(trace, seed=how["seed"]) if job.arrived_s < trace.ends_s]
    began_s = time.monotonic()
    tasks = []
    for job in jobs:
        await asyncio.sleep(max(0.0, began_s + job.arrived_s * stretch - time.monotonic()))
        tokens = max(2, min(MOST_TOKENS, int(how["tokens"] * job.service_s / SERVICE_S)))
        within_s = DEADLINES_S[job.priority] * how["deadline_factor"]
        tasks.append(asyncio.create_task(client.ask(job.priority, tokens, within_s)))
    return list(await asyncio.gather(*tasks))


async def main() -> None:
    path, kind, how = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    client = Client(*await asyncio.open_unix_connection(path))
    began_s = time.monotonic()
    done = await (opened if kind == "open" else closed)(client, how)
    client.writer.close()
    client.listening.cancel()
    ends_s = began_s + how["for_s"]
    good = [one for one in done if one["is_good"]]
    inside = [one for one in good if one["ended_s"] <= ends_s]
    ended = [one for one in done if one["tokens"] and one["ended_s"] <= ends_s]
    print(
        json.dumps(
            {
                "good_tokens_per_s": sum(one["tokens"] for one in inside) / how["for_s"],
                "late_share": 1 - sum(one["tokens"] for one in inside) / max(1, sum(one["tokens"] for one in ended)),
                "came": [sum(one["priority"] == p for one in done) for p in Priority],
                "good": [sum(one["priority"] == p for one in good) for p in Priority],
                "seconds": {p.name: sorted(one["seconds"] for one in good if one["priority"] == p) for p in Priority},
                "outcomes": {
                    word: sum(one["outcome"] == word for one in done) for word in {o["outcome"] for o in done}
                },
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
