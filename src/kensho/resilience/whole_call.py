"""A call that answers in one piece (a tensor request, such as logits): dispatched again once if its engine fails.

Nothing of it has been seen when an engine fails, so it simply runs again, on another engine where there is one. A
second failure is told: a third engine would not help a request that ends two.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from kensho.base.errors import DeadlineMissed, EngineError, KenshoError, Overloaded
from kensho.base.inference import Engine
from kensho.resilience.classify import FailureClass, classify
from kensho.resilience.estimate import Work
from kensho.resilience.failover import EngineLost, StreamProgress, nobody_left
from kensho.resilience.guard import Guard
from kensho.resilience.life import Floor, Request

T = TypeVar("T")


async def call_whole(request: Request, floor: Floor, call: Callable[[Engine], Awaitable[T]]) -> T:
    """The result of `call` on the engine whose turn it is. Its outcome is told as that of any request.

    Raises Overloaded, DeadlineMissed, EngineError after the second failure, PoisonRequest, and what `call` raises that
    is not an engine's failure.
    """
    progress, outcome = StreamProgress(floor.clock.monotonic_s()), "failed"
    floor.retries.earn()
    try:
        floor.poison.check(request.prompt_ids, request.sampling, floor.clock.monotonic_s())
        result = await _until_answered(request, floor, progress, call)
        outcome = "ok"
        return result
    except asyncio.CancelledError:
        outcome = "cancelled"
        raise
    except _Late as late:
        outcome = "deadline"
        raise late.error from None
    except Overloaded:
        outcome = ""  # the intake has told it
        raise
    except KenshoError as error:
        raise floor.closing() or error from error.__cause__
    finally:
        if outcome:
            floor.finished(request, outcome, progress.record)


async def _until_answered(
    request: Request, floor: Floor, progress: StreamProgress, call: Callable[[Engine], Awaitable[T]]
) -> T:
    work = Work(len(request.prompt_ids))
    turn = await floor.intake.wait_for_turn(
        request.priority, request.deadline_s, work, request.engine, request=request.number
    )
    why: EngineError | None = None
    try:
        while True:
            try:
                if turn.engine is None:
                    asked = [guard for guard in floor.guards.values() if request.engine in {None, guard.name}]
                    raise nobody_left(asked, "no engine can take it now") from why
                async with asyncio.timeout_at(request.deadline_s) as limit:
                    return await _once(floor.guards[turn.engine], floor, call)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise _Late(request, floor) from None
            except EngineLost as lost:
                now_s = floor.clock.monotonic_s()
                progress.lost(lost.engine, lost.why, lost.silent_since_s)
                if lost.was_working:
                    floor.poison.blame(request.prompt_ids, request.sampling, lost.why, now_s)
                    floor.poison.check(request.prompt_ids, request.sampling, now_s)
                may_repeat = not floor.guards[lost.engine].admits or floor.retries.spend()
                if why is not None or not may_repeat:
                    said = "it failed twice" if why else "too many calls had to be repeated lately"
                    raise nobody_left(tuple(floor.guards.values()), said) from lost.why
                why, lost_engine = lost.why, lost.engine
            finally:
                floor.intake.give_back(turn)
            turn = await floor.intake.wait_again(turn, request.deadline_s, work, avoids=lost_engine, is_urgent=True)
    finally:
        floor.intake.done(turn)


async def _once(guard: Guard, floor: Floor, call: Callable[[Engine], Awaitable[T]]) -> T:
    async with guard.lane:
        permit, began_s, is_working = guard.admit(), floor.clock.monotonic_s(), False
        if permit is None:
            why = EngineError(f"engine {guard.name} takes no requests now", advice="another engine may")
            raise EngineLost(guard.name, why, began_s, was_working=False)
        try:
            await guard.start()
            is_working = True
            result = await call(guard.engine)
        except EngineError as error:
            guard.failed(permit, classify(error) or FailureClass.UNKNOWN)
            raise EngineLost(guard.name, error, began_s, was_working=is_working) from error
        except BaseException:
            guard.cancelled(permit)
            raise
        guard.succeeded(permit)
        return result


class _Late(Exception):
    """Carries the error past those of the intake, which has told its own."""

    def __init__(self, request: Request, floor: Floor) -> None:
        self.error = DeadlineMissed(
            f"{request.priority.name.lower()} request was not complete by its deadline",
            advice="allow more time, or come back later",
            retry_after_s=floor.intake.estimate().service_s,
        )
        super().__init__(str(self.error))
