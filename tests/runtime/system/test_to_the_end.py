import asyncio

import pytest

from kensho.runtime.system.to_the_end import to_the_end
from kensho.testing.loop import run_virtual


def test_cancelled_twice_the_work_is_done_and_the_cancellation_is_raised() -> None:
    async def main() -> list[str]:
        done: list[str] = []

        async def reap() -> None:
            await asyncio.sleep(1)
            done.append("reaped")

        task = asyncio.create_task(to_the_end(reap()))
        for _ in range(3):
            await asyncio.sleep(0.1)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return done

    assert run_virtual(main()) == ["reaped"]


def test_an_error_of_the_work_is_raised_and_a_result_returned() -> None:
    async def fail() -> int:
        raise ValueError("no")

    async def seven() -> int:
        return 7

    assert run_virtual(to_the_end(seven())) == 7
    with pytest.raises(ValueError, match="no"):
        run_virtual(to_the_end(fail()))
