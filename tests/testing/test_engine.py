import asyncio
from typing import Any

import pytest

from kensho.base.errors import EngineCrashed, EngineError, WrongNumbers
from kensho.base.inference import Engine, Sampling
from kensho.testing.clock import VirtualClock
from kensho.testing.engine import Fault, ScriptedEngine, expected_ids
from kensho.testing.loop import run_virtual

PROMPT = [5, 6, 7]
TEN = Sampling(max_tokens=10)


async def collect(engine: Engine, accepted: tuple[int, ...] = (), sampling: Sampling = TEN) -> list[int]:
    return [token async for token in engine.generate(PROMPT, accepted, sampling)]


def on_engine(fault: Fault | None, use: Any, **timing: float) -> Any:
    async def main() -> Any:
        engine = ScriptedEngine("primary", **timing)
        engine.inject(fault)
        await engine.start()
        return await use(engine)

    return run_virtual(main())


def test_an_accepted_prefix_continues_as_if_undisturbed() -> None:
    whole = expected_ids(PROMPT, TEN)
    assert on_engine(None, collect) == whole
    for cut in range(11):
        assert on_engine(None, lambda e, cut=cut: collect(e, tuple(whole[:cut]))) == whole[cut:]


def test_a_stop_id_ends_the_stream_and_is_not_part_of_it() -> None:
    whole = expected_ids(PROMPT, TEN)
    sampling = Sampling(max_tokens=10, stop_ids=(whole[4],))
    assert on_engine(None, lambda e: collect(e, sampling=sampling)) == whole[:4]


def test_a_seed_matters_only_when_tokens_are_drawn() -> None:
    assert expected_ids(PROMPT, Sampling(seed=1)) == expected_ids(PROMPT, Sampling(seed=2))
    assert expected_ids(PROMPT, Sampling(seed=1, temperature=1.0)) != expected_ids(
        PROMPT, Sampling(seed=2, temperature=1.0)
    )


@pytest.mark.parametrize(
    ("kind", "error", "lives"),
    [("fail", EngineError, True), ("nan", WrongNumbers, True), ("crash", EngineCrashed, False)],
)
def test_a_fault_comes_after_exactly_its_tokens(kind: Any, error: type[EngineError], lives: bool) -> None:
    async def use(engine: ScriptedEngine) -> None:
        for at_token in (0, 3, 10):
            engine.inject(Fault(kind, at_token))
        for at_token in (0, 3, 10):
            got: list[int] = []
            with pytest.raises(error):
                async for token in engine.generate(PROMPT, (), TEN):
                    got.append(token)
            assert got == expected_ids(PROMPT, TEN)[:at_token]
            assert engine.is_alive is lives
            await engine.start()

    async def main() -> None:
        engine = ScriptedEngine("primary")
        await engine.start()
        await use(engine)

    run_virtual(main())


def test_a_hang_lasts_until_the_kill() -> None:
    async def use(engine: ScriptedEngine) -> None:
        asyncio.get_running_loop().call_later(300.0, engine.die)
        with pytest.raises(EngineCrashed):
            await collect(engine)
        assert asyncio.get_running_loop().time() >= 1300.0

    on_engine(Fault("hang", 2), use)


def test_a_host_that_ignores_sigterm_answers_and_takes_half_a_second_to_close() -> None:
    async def use(engine: ScriptedEngine) -> None:
        loop = asyncio.get_running_loop()
        assert await collect(engine) == expected_ids(PROMPT, TEN)
        engine.terminate()
        assert await collect(engine) == expected_ids(PROMPT, TEN)
        for takes_s in (0.5, 0.0):
            began_s = loop.time()
            await engine.close()
            assert loop.time() - began_s == pytest.approx(takes_s)
        await engine.start()
        engine.terminate()  # another process, which was not told to ignore it
        assert not engine.is_alive

    on_engine(Fault("ignore_sigterm", 2), use)


def test_wrong_numbers_are_finite_and_wrong_from_the_given_token_on() -> None:
    got = on_engine(Fault("wrong", 4), collect)
    right = expected_ids(PROMPT, TEN)
    assert got[:4] == right[:4]
    assert all(a != b for a, b in zip(got[4:], right[4:], strict=True))


def test_a_slow_stream_takes_ten_times_as_long() -> None:
    async def took(engine: ScriptedEngine) -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await collect(engine)
        return loop.time() - began

    assert on_engine(Fault("slow"), took) == pytest.approx(10 * on_engine(None, took))


def test_a_second_stream_waits_for_the_first() -> None:
    async def use(engine: ScriptedEngine) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        both = await asyncio.gather(collect(engine), collect(engine))
        assert both[0] == both[1]
        assert loop.time() - began == pytest.approx(2 * (0.02 + 10 * 0.01))

    on_engine(None, use)


def test_death_while_the_host_computes_ends_the_stream_at_once() -> None:
    async def use(engine: ScriptedEngine) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        loop.call_later(0.055, engine.die)
        with pytest.raises(EngineCrashed):
            await collect(engine)
        assert loop.time() - began == pytest.approx(0.055)

    on_engine(None, use)


def test_a_refused_start_is_an_engine_error_and_the_next_one_works() -> None:
    async def main() -> None:
        engine = ScriptedEngine("primary", start_s=2.0)
        engine.refuse_starts(2)
        for _ in range(2):
            with pytest.raises(EngineError):
                await engine.start()
        await engine.start()
        await engine.start()
        assert engine.starts == 3
        assert asyncio.get_running_loop().time() == pytest.approx(6.0)

    run_virtual(main(), clock=VirtualClock(start_s=0.0))


def test_a_stream_on_a_dead_engine_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(EngineCrashed):
            await collect(ScriptedEngine("primary"))

    run_virtual(main())


@pytest.mark.parametrize("at_token", [0, 3])
def test_a_deaf_engine_obeys_no_cancel_and_ends_when_it_is_killed(at_token: int) -> None:
    async def use(engine: ScriptedEngine) -> None:
        task = asyncio.create_task(collect(engine))
        await asyncio.sleep(1.0)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(1.0)
        assert not task.done()
        await engine.kill()
        await asyncio.wait({task})
        assert task.cancelled()

    on_engine(Fault("deaf", at_token), use)


def test_a_deaf_engine_is_busy_when_its_stream_is_closed_between_two_tokens() -> None:
    async def use(engine: ScriptedEngine) -> None:
        ids = engine.generate([1, 2], (), Sampling(max_tokens=8))
        await anext(ids)
        closing = asyncio.ensure_future(ids.aclose())
        await asyncio.sleep(1.0)
        assert not closing.done()
        engine.die()
        await closing

    on_engine(Fault("deaf", 1), use)
