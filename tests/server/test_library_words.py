"""What libraries say becomes events, in sums and without values; stderr stays silent and is never waited for."""

import asyncio
import errno
import logging
import os
import sys
import threading

import pytest

from kensho.base.events import ErrorRaised, Event, LibraryWarned
from kensho.server.gathering import MAX_KEYS, SOON_S, Gathering
from kensho.server.library_words import library_words_heard
from kensho.server.lossy_stderr import LossyStream, lossy_stderr
from kensho.testing.loop import run_virtual


def test_what_comes_often_is_told_soon_and_then_seldom() -> None:
    told: list[tuple[float, dict[str, int]]] = []

    async def main() -> None:
        now_s = asyncio.get_running_loop().time
        began_s = now_s()
        some: Gathering[str] = Gathering(lambda counts: told.append((now_s() - began_s, dict(counts))), every_s=10.0)
        for _ in range(300):
            some.add("a")
            await asyncio.sleep(0.1)
        some.flush()
        some.flush()
        for number in range(1000):
            some.add(str(number))
        some.flush()

    run_virtual(main())
    assert [round(at_s, 6) for at_s, _ in told[:4]] == [SOON_S, SOON_S + 10, SOON_S + 20, 30]
    assert sum(counts["a"] for _, counts in told[:4]) == 300
    assert len(told[4][1]) == MAX_KEYS


def test_a_flood_of_errors_is_one_event_without_values(capfd: pytest.CaptureFixture[str]) -> None:
    events: list[Event] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with library_words_heard(events.append):
            for number in range(1000):
                error = OSError(errno.EMFILE, "secret", f"file {number}")
                loop.call_exception_handler({"message": "no descriptor", "exception": error, "socket": number})
                logging.getLogger("uvicorn.error").warning("odd request %d\nof %s", number, "a secret")
            speaking = threading.Thread(target=logging.getLogger("some.library").error, args=("from a thread",))
            speaking.start()
            await asyncio.to_thread(speaking.join)
        assert not logging.getLogger().handlers or "Ear" not in repr(logging.getLogger().handlers)

    asyncio.run(main())
    (fault,) = [event for event in events if isinstance(event, ErrorRaised)]
    assert fault.reason == f"asyncio: no descriptor: OSError {errno.EMFILE}, 1000 times"
    warned = {event.library: event for event in events if isinstance(event, LibraryWarned)}
    assert (warned["uvicorn.error"].words, warned["uvicorn.error"].times) == ("odd request %d", 1000)
    assert warned["some.library"].words == "from a thread"
    assert capfd.readouterr() == ("", "")


def test_a_callback_that_fails_is_told_with_its_frames() -> None:
    events: list[Event] = []

    def fail() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        with library_words_heard(events.append):
            asyncio.get_running_loop().call_soon(fail)
            await asyncio.sleep(0)

    asyncio.run(main())
    (fault,) = events
    assert isinstance(fault, ErrorRaised) and "ZeroDivisionError" in fault.reason
    assert any("fail" in frame for frame in fault.frames)


def test_stderr_that_nobody_reads_is_not_waited_for() -> None:
    read_end, write_end = os.pipe()
    stream = LossyStream(write_end)
    assert stream.write("caf\xe9 \udc80\n") == 7
    assert os.read(read_end, 100) == b"caf\xc3\xa9 \\udc80\n"
    for _ in range(100):
        stream.write("x" * 3000)
    stream.write("y" * 1_000_000)
    assert 16_000 < len(os.read(read_end, 1 << 20)) < 1_000_000
    assert stream.write("again\n") and os.read(read_end, 1 << 20).endswith(b"again\n")
    os.close(read_end)
    stream.write("nobody is there")
    os.close(write_end)


def test_the_interpreter_s_own_words_go_there_too(capfd: pytest.CaptureFixture[str]) -> None:
    before = sys.stderr
    with capfd.disabled():
        read_end, write_end = os.pipe()
        kept = os.dup(2)
        os.dup2(write_end, 2)
        try:
            with open(2, "w", closefd=False) as usual:
                sys.stderr = usual
                with lossy_stderr() as stream:
                    assert not stream.isatty()
                    print("seen", file=sys.stderr, flush=True)
        finally:
            sys.stderr = before
            os.dup2(kept, 2)
            for descriptor in (kept, write_end):
                os.close(descriptor)
        assert os.read(read_end, 100) == b"seen\n"
        os.close(read_end)
