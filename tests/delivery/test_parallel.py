"""Few threads, all ended when the call returns, and the first error told."""

import threading

import pytest

from kensho.delivery.parallel import Meanwhile, for_each


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_item_is_done_once(threads: int) -> None:
    done: list[int] = []
    for_each(range(100), done.append, threads=threads)
    assert sorted(done) == list(range(100))


def test_one_thread_is_the_caller_and_keeps_the_order() -> None:
    seen: list[tuple[int, int]] = []
    for_each(range(3), lambda item: seen.append((item, threading.get_ident())), threads=1)
    assert seen == [(item, threading.get_ident()) for item in range(3)]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_the_first_error_ends_the_work_and_leaves_no_thread(threads: int, kind: type[BaseException]) -> None:
    before = threading.active_count()
    done: list[int] = []

    def act(item: int) -> None:
        if item == 5:
            raise kind("stop")
        done.append(item)

    with pytest.raises(kind):
        for_each(iter(range(10**9)), act, threads=threads)
    assert set(range(5)) <= set(done)
    assert threading.active_count() == before


def test_what_runs_meanwhile_has_ended_when_the_block_is_left_and_tells_its_error() -> None:
    before = threading.active_count()
    with Meanwhile(lambda: 7) as seven, pytest.raises(ValueError, match="here"):
        raise ValueError("here")
    assert threading.active_count() == before
    assert seven.result() == 7
    with pytest.raises(ZeroDivisionError):
        Meanwhile(lambda: 1 // 0).result()
