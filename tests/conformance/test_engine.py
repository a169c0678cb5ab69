"""What every engine must do, whatever is inside: one suite, run on each implementation (KINDS in conftest.py).

The undisturbed answer is taken from the engine itself (its first full stream), so the rules are about how it behaves,
not about what it says. After each test the fixture looks for what an engine may not leave behind: processes,
descriptors, threads, segments, maps, tasks.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from kensho.base.errors import ConfigError, EngineCrashed, EngineError
from kensho.base.inference import Engine, Sampling

PROMPT = (2, 301, 302)
TOKENS = Sampling(max_tokens=20)
LONG = Sampling(max_tokens=120)
OnEngine = Callable[[Callable[[Engine], Awaitable[None]]], None]


async def answer(engine: Engine, accepted: list[int] | None = None, sampling: Sampling = TOKENS) -> list[int]:
    return [token async for token in engine.generate(PROMPT, accepted or [], sampling)]


def test_an_engine_lives_from_start_to_close_and_again(on_engine: OnEngine) -> None:
    async def check(engine: Engine) -> None:
        assert engine.name
        assert not engine.is_alive
        for _ in range(2):
            await engine.start()
            await engine.start()
            assert engine.is_alive
            assert len(await answer(engine)) == 20
            await engine.close()
            await engine.close()
            assert not engine.is_alive

    on_engine(check)


def test_the_same_request_has_the_same_answer(on_engine: OnEngine) -> None:
    async def check(engine: Engine) -> None:
        await engine.start()
        first = await answer(engine)
        await answer(engine, [5, 6, 7])
        assert await answer(engine) == first

    on_engine(check)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_stream_goes_on_from_any_accepted_prefix(temperature: float, on_engine: OnEngine) -> None:
    sampling = Sampling(max_tokens=20, temperature=temperature, seed=3)

    async def check(engine: Engine) -> None:
        await engine.start()
        whole = await answer(engine, [], sampling)
        for cut in (1, 10, 19, 20):
            assert whole[:cut] + await answer(engine, whole[:cut], sampling) == whole

    on_engine(check)


def test_a_stop_id_ends_the_stream_and_is_not_handed_out(on_engine: OnEngine) -> None:
    async def check(engine: Engine) -> None:
        await engine.start()
        whole = await answer(engine)
        stop = whole[7]
        assert await answer(engine, [], Sampling(max_tokens=20, stop_ids=(stop,))) == whole[: whole.index(stop)]

    on_engine(check)


def test_after_a_closed_stream_the_engine_is_free_at_once(on_engine: OnEngine) -> None:
    async def check(engine: Engine) -> None:
        await engine.start()
        whole = await answer(engine)
        stream = engine.generate(PROMPT, [], TOKENS)
        assert await anext(stream) == whole[0]
        await stream.aclose()
        assert await answer(engine) == whole

    on_engine(check)


def test_a_second_stream_waits_for_the_first(on_engine: OnEngine) -> None:
    async def check(engine: Engine) -> None:
        await engine.start()
        whole = await answer(engine)
        first = engine.generate(PROMPT, [], TOKENS)
        assert await anext(first) == whole[0]
        second = asyncio.create_task(answer(engine))
        assert [token async for token in first] == whole[1:]
        assert await second == whole

    on_engine(check)


def test_a_cancel_is_obeyed_within_a_step_not_at_the_end_of_the_answer(on_engine: OnEngine) -> None:
    async def check(engine: Engine) -> None:
        loop = asyncio.get_running_loop()
        await engine.start()
        began_s = loop.time()
        await answer(engine, [], LONG)
        whole_s = loop.time() - began_s
        stream = engine.generate(PROMPT, [], LONG)
        await anext(stream)
        began_s = loop.time()
        await stream.aclose()
        await answer(engine, [], Sampling(max_tokens=1))
        assert loop.time() - began_s < whole_s / 2

    on_engine(check)


def test_a_cancelled_task_frees_the_engine_and_so_does_one_that_waits(on_engine: OnEngine) -> None:
    async def check(engine: Engine) -> None:
        await engine.start()
        whole = await answer(engine)
        running, waiting = asyncio.create_task(answer(engine, [], LONG)), asyncio.create_task(answer(engine))
        for _ in range(3):
            await asyncio.sleep(0)
        for task in (waiting, running):
            task.cancel()
        results = await asyncio.gather(running, waiting, return_exceptions=True)
        assert isinstance(results[1], asyncio.CancelledError)
        assert await answer(engine) == whole

    on_engine(check)


def test_many_streams_wait_for_each_other(on_engine: OnEngine) -> None:
    async def check(engine: Engine) -> None:
        await engine.start()
        whole = await answer(engine)
        assert await asyncio.gather(*(answer(engine) for _ in range(5))) == [whole] * 5

    on_engine(check)


def test_an_answer_that_is_complete_already_has_no_more_tokens(on_engine: OnEngine) -> None:
    async def check(engine: Engine) -> None:
        await engine.start()
        whole = await answer(engine)
        assert await answer(engine, whole) == []
        assert await answer(engine, [], Sampling(max_tokens=0)) == []
        assert await answer(engine, whole, Sampling(max_tokens=10)) == []

    on_engine(check)


@pytest.mark.parametrize(
    ("prompt", "sampling"),
    [
        ((), TOKENS),
        ((2**32 - 1,), TOKENS),
        ((-1,), TOKENS),
        ((2,) * 100_000, Sampling(max_tokens=1)),
        (PROMPT, Sampling(max_tokens=1, stop_ids=(2**32 - 1,) * 64)),
    ],
    ids=["empty", "huge id", "negative id", "longer than any context", "odd stop ids"],
)
def test_a_bad_request_is_the_callers_error_or_answered_and_the_engine_goes_on(
    prompt: tuple[int, ...], sampling: Sampling, on_engine: OnEngine
) -> None:
    async def check(engine: Engine) -> None:
        await engine.start()
        whole = await answer(engine)
        with suppress(ConfigError):
            async for _ in engine.generate(prompt, [], sampling):
                pass
        assert engine.is_alive
        assert await answer(engine) == whole

    on_engine(check)


def test_a_killed_engine_ends_its_stream_with_engine_crashed_and_starts_again(on_engine: OnEngine) -> None:
    async def check(engine: Engine) -> None:
        await engine.start()
        whole = await answer(engine, [], LONG)
        stream = engine.generate(PROMPT, [], LONG)
        got = [await anext(stream)]
        await engine.kill()
        await engine.kill()
        assert not engine.is_alive
        with pytest.raises(EngineCrashed):
            async for token in stream:
                got.append(token)  # what had arrived before the kill may still be handed out
        assert got == whole[: len(got)]
        await engine.start()
        assert got + await answer(engine, got, LONG) == whole

    on_engine(check)


def test_an_engine_that_does_not_run_answers_with_engine_crashed(on_engine: OnEngine) -> None:
    async def check(engine: Engine) -> None:
        with pytest.raises(EngineError) as caught:
            await answer(engine)
        assert isinstance(caught.value, EngineCrashed)

    on_engine(check)


def test_a_killed_engine_answers_with_engine_crashed_until_it_is_started(on_engine: OnEngine) -> None:
    async def check(engine: Engine) -> None:
        await engine.kill()  # nothing to kill yet
        await engine.start()
        whole = await answer(engine)
        waiting = engine.generate(PROMPT, [], TOKENS)
        await engine.kill()
        with pytest.raises(EngineCrashed):
            await anext(waiting)
        with pytest.raises(EngineCrashed):
            await answer(engine)
        await engine.start()
        assert await answer(engine) == whole

    on_engine(check)


def test_killing_closing_and_starting_at_once_ends_in_order(on_engine: OnEngine) -> None:
    async def check(engine: Engine) -> None:
        await asyncio.gather(engine.start(), engine.start(), engine.start())
        whole = await answer(engine)
        await asyncio.gather(engine.kill(), engine.close(), engine.kill())
        assert not engine.is_alive
        await engine.start()
        assert await answer(engine) == whole

    on_engine(check)


def test_a_start_that_is_cancelled_leaves_an_engine_that_starts(on_engine: OnEngine) -> None:
    async def check(engine: Engine) -> None:
        for turns in (1, 3, 10):
            task = asyncio.create_task(engine.start())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await engine.start()
        assert len(await answer(engine)) == 20

    on_engine(check)
