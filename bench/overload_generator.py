"""The load of bench/overload.py, in a process of its own: requests as JSON lines over a Unix socket, answers kept.

    python bench/overload_generator.py SOCKET KIND '{"slots": 2, "load": 10, "stretch": 0.5, "tokens": 150, "for_s": 20,
                                                     "seed": 1}'

KIND is open: requests come when the trace says, whatever the answers do (`only`: those of one class, by number); alone:
the CRITICAL requests of the trace one after another; or closed: `at_once` clients, each of whom sends the next request
when it has its answer. The trace is that of the simulation on so many slots, `stretch` times as long.

Prints one JSON object: every request as the fields of `kensho.testing.play.Played`, whose end is when this process read
the answer; when the run began; what this process cost; and how late it sent its requests.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

from kensho.resilience.admission import Priority
from kensho.testing.load import SERVICE_S, Job, Trace, arrivals

MOST_TOKENS = 900
PATIENCE_S = 30.0
Row = dict[str, Any]


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.waiting: dict[int, asyncio.Future[Row]] = {}
        self.number = 0
        self.slips_s: list[float] = []
        self.listening = asyncio.create_task(self.listen())

    async def listen(self) -> None:
        while line := await self.reader.readline():
            number, row = json.loads(line)
            row["ended_s"] = time.monotonic()
            self.waiting.pop(number).set_result(row)

    async def ask(self, priority: Priority, tokens: int, within_s: float) -> Row:
        self.number += 1
        future = self.waiting[self.number] = asyncio.get_running_loop().create_future()
        now_s = time.monotonic()
        asked = [self.number, priority, tokens, now_s, now_s + within_s]
        self.writer.write(json.dumps(asked).encode() + b"\n")
        return await future


def length(tokens: float) -> int:
    return max(2, min(MOST_TOKENS, int(tokens)))


def jobs_of(how: dict[str, Any]) -> tuple[list[Job], float]:
    load, slots = how["load"], how["slots"]
    trace = Trace("", lambda _: load, slots=lambda _: slots, begins_s=0.0, ends_s=how["for_s"] / how["stretch"])
    only = how.get("only")
    jobs = [job for job in arrivals(trace, seed=how["seed"]) if job.arrived_s < trace.ends_s]
    return [job for job in jobs if only in {None, job.priority}], how["stretch"]


async def opened(client: Client, how: dict[str, Any]) -> list[Row]:
    jobs, stretch = jobs_of(how)
    began_s = time.monotonic()
    tasks = []
    for job in jobs:
        due_s = began_s + job.arrived_s * stretch
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        client.slips_s.append(time.monotonic() - due_s)
        tokens, within_s = length(how["tokens"] * job.service_s / SERVICE_S), (job.deadline_s - job.arrived_s) * stretch
        tasks.append(asyncio.create_task(client.ask(job.priority, tokens, within_s)))
    return list(await asyncio.gather(*tasks))


async def closed(client: Client, how: dict[str, Any]) -> list[Row]:
    rng, ends_s = random.Random(how["seed"]), time.monotonic() + how["for_s"]
    rows: list[Row] = []

    async def one_after_another() -> None:
        while time.monotonic() < ends_s:
            tokens = length(how["tokens"] * rng.lognormvariate(-0.125, 0.5))
            rows.append(await client.ask(Priority.NORMAL, tokens, PATIENCE_S))

    await asyncio.gather(*[one_after_another() for _ in range(how["at_once"])])
    return rows


async def alone(client: Client, how: dict[str, Any]) -> list[Row]:
    ends_s = time.monotonic() + how["for_s"]
    jobs: Iterator[Job] = iter(jobs_of(how | {"only": 0, "for_s": 60.0})[0])
    rows: list[Row] = []
    while time.monotonic() < ends_s and (job := next(jobs, None)):
        rows.append(await client.ask(job.priority, length(how["tokens"] * job.service_s / SERVICE_S), PATIENCE_S))
    return rows


async def main() -> None:
    path, kind, how = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    client = Client(*await asyncio.open_unix_connection(path))
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    rows = await {"open": opened, "closed": closed, "alone": alone}[kind](client, how)
    client.writer.close()
    client.listening.cancel()
    cpu_s = time.process_time() - began_cpu_s
    print(json.dumps({"rows": rows, "began_s": began_s, "cpu_s": cpu_s, "slips_s": client.slips_s}))


if __name__ == "__main__":
    asyncio.run(main())
