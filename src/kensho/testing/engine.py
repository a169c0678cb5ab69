"""An engine without a model, whose failures are written down beforehand.

Its tokens are a function of (prompt, accepted ids, sampling) alone, so two scripted engines agree, and
`expected_ids` says what an undisturbed stream would have been. Its time is asyncio's: on `run_virtual` a hang of five
minutes costs nothing.

    async def main() -> list[int]:
        engine = ScriptedEngine("primary")
        engine.inject(Fault("crash", at_token=3))
        await engine.start()
        try:
            return [token async for token in engine.generate([1, 2], (), Sampling(max_tokens=8))]
        except EngineCrashed:
            await engine.start()          # the fault was for one stream; this one is undisturbed
            return [token async for token in engine.generate([1, 2], (), Sampling(max_tokens=8))]

    assert run_virtual(main()) == expected_ids([1, 2], Sampling(max_tokens=8))
"""

import asyncio
import zlib
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Literal

from kensho.base.clock import Seconds
from kensho.base.errors import EngineCrashed, EngineError, WrongNumbers
from kensho.base.inference import Sampling
from kensho.base.structs import Struct

VOCABULARY = 1000

FaultKind = Literal["fail", "hang", "deaf", "slow", "crash", "nan", "wrong", "ignore_sigterm"]
"""fail: an error, the host lives on. hang: no more tokens until killed or cancelled. deaf: until killed; it obeys no
cancel, as a process that was stopped. slow: ten times the token time. crash: the host is gone. nan: the engine sees
non-finite numbers and says so. wrong: finite, plausible, and not the right id.
ignore_sigterm: the answer is as ever, but from then on only SIGKILL ends the host."""

SLOW_FACTOR = 10.0
GRACE_S: Seconds = 0.5
"""How long `close` waits for a host to end by itself."""


class Fault(Struct):
    """What goes wrong in one stream, once it has made `at_token` tokens."""

    kind: FaultKind
    at_token: int = 0


def expected_ids(prompt_ids: Sequence[int], sampling: Sampling, accepted_ids: Sequence[int] = ()) -> list[int]:
    """What every undisturbed scripted engine answers: ids after prompt + accepted, up to a stop id or max_tokens."""
    ids: list[int] = []
    state = _digest(prompt_ids, sampling)
    for token in accepted_ids:
        state = _mix(state, token)
    while len(accepted_ids) + len(ids) < sampling.max_tokens:
        token = state % VOCABULARY
        if token in sampling.stop_ids:
            break
        ids.append(token)
        state = _mix(state, token)
    return ids


class ScriptedEngine:
    """Satisfies `base.inference.Engine`. `starts`, `streams` and `kills` count what was asked of it."""

    def __init__(
        self, name: str, *, token_s: Seconds = 0.01, prefill_s: Seconds = 0.02, start_s: Seconds = 0.1
    ) -> None:
        self._name = name
        self._token_s = token_s
        self._prefill_s = prefill_s
        self._start_s = start_s
        self._is_alive = False
        self._died = asyncio.Event()
        self._lane = asyncio.Lock()
        self._faults: deque[Fault | None] = deque()
        self._refusals = 0
        self._signal = ""
        self._ignores_sigterm = False
        self.starts = 0
        self.streams = 0
        self.kills = 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def is_alive(self) -> bool:
        return self._is_alive

    def inject(self, *faults: Fault | None) -> None:
        """Queue faults: each coming stream takes the next one; None lets a stream through undisturbed."""
        self._faults.extend(faults)

    def refuse_starts(self, times: int) -> None:
        """The next `times` starts raise EngineError after their usual time."""
        self._refusals = times

    async def start(self) -> None:
        if self._is_alive:
            return
        self.starts += 1
        await asyncio.sleep(self._start_s)
        if self._refusals > 0:
            self._refusals -= 1
            raise EngineError(f"engine {self._name} refused to start", advice="its script says so")
        self._died = asyncio.Event()
        self._is_alive = True

    async def generate(
        self, prompt_ids: Sequence[int], accepted_ids: Sequence[int], sampling: Sampling
    ) -> AsyncGenerator[int, None]:
        async with self._lane:
            if not self._is_alive:
                raise self._crashed()
            self.streams += 1
            fault = self._faults.popleft() if self._faults else None
            slowness = SLOW_FACTOR if fault and fault.kind == "slow" else 1.0
            await self._pass_time(self._prefill_s * slowness)
            made = 0
            for token in expected_ids(prompt_ids, sampling, accepted_ids):
                if fault and made == fault.at_token:
                    await self._fail(fault)
                await self._pass_time(self._token_s * slowness)
                is_wrong = fault is not None and fault.kind == "wrong" and made >= fault.at_token
                made += 1
                try:
                    yield (token + 1) % VOCABULARY if is_wrong else token
                except GeneratorExit:
                    if fault and fault.kind == "deaf" and made >= fault.at_token:
                        await _outlast_cancels(self._died)
                    raise
            if fault and made == fault.at_token:
                await self._fail(fault)

    async def kill(self) -> None:
        self.kills += 1
        self.die()

    async def close(self) -> None:
        must_be_killed = self._is_alive and self._ignores_sigterm
        self.die()
        if must_be_killed:
            await asyncio.sleep(GRACE_S)

    def terminate(self) -> None:
        """Somebody sends it SIGTERM."""
        if not self._ignores_sigterm:
            self.die("SIGTERM")

    def die(self, signal: str = "SIGKILL") -> None:
        """The process ends now, as after a signal from outside: the running stream raises EngineCrashed."""
        self._signal = signal
        self._is_alive = self._ignores_sigterm = False
        self._died.set()

    async def _fail(self, fault: Fault) -> None:
        match fault.kind:
            case "fail":
                raise EngineError(f"engine {self._name} failed", advice="its script says so")
            case "nan":
                raise WrongNumbers(f"engine {self._name} made numbers that are not finite", advice="its script says so")
            case "crash":
                self.die("SIGSEGV")
                raise self._crashed()
            case "hang":
                await self._died.wait()
                raise self._crashed()
            case "deaf":
                await _outlast_cancels(self._died)
                raise self._crashed()
            case "ignore_sigterm":
                self._ignores_sigterm = True
            case "slow" | "wrong":
                pass

    async def _pass_time(self, duration_s: Seconds) -> None:
        died = self._died
        try:
            async with asyncio.timeout(duration_s):
                await died.wait()
        except TimeoutError:
            return
        raise self._crashed()

    def _crashed(self) -> EngineCrashed:
        gone = f"the host of engine {self._name} is gone"
        return EngineCrashed(gone, advice="start it again", engine=self._name, signal=self._signal)


async def _outlast_cancels(died: asyncio.Event) -> None:
    """Raises the cancel, if there was one, when it is over."""
    cancelled: asyncio.CancelledError | None = None
    while not died.is_set():
        try:
            await died.wait()
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def _digest(prompt_ids: Sequence[int], sampling: Sampling) -> int:
    chosen_by = (0.0, 0) if sampling.temperature == 0 else (sampling.temperature, sampling.seed)
    return zlib.crc32(repr((tuple(prompt_ids), chosen_by)).encode())


def _mix(state: int, token: int) -> int:
    return zlib.crc32(token.to_bytes(4, "little"), state)
