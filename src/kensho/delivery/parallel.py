"""Do the same thing to many items on a few threads. Reading, hashing and the network release the interpreter's lock."""

import threading
from collections.abc import Callable, Iterable
from typing import Generic, Self, TypeVar

T = TypeVar("T")


def for_each(items: Iterable[T], act: Callable[[T], None], *, threads: int) -> None:
    """`act` on every item, in order of beginning; the caller is one of the `threads` workers.

    The first exception (Ctrl-C included) ends the taking of new items, and is raised here when the running ones have
    ended: afterwards no thread is left that could touch a descriptor of the caller's.
    """
    queue = iter(items)
    lock = threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not errors:
                with lock:
                    item = next(queue)
                act(item)
        except StopIteration:
            return
        except BaseException as error:
            errors.append(error)

    others = [threading.Thread(target=work, daemon=True) for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    work()
    for thread in others:
        thread.join()
    if errors:
        raise errors[0]


class Meanwhile(Generic[T]):
    """`act` on a thread of its own, begun at once, while the caller does something else. `with` waits for its end, so
    that afterwards no thread is left that could touch what is the caller's."""

    def __init__(self, act: Callable[[], T]) -> None:
        self._act = act
        self._results: list[T] = []
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def result(self) -> T:
        """Waits; raises what `act` raised."""
        self._thread.join()
        if self._errors:
            raise self._errors[0]
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._act())
        except BaseException as error:
            self._errors.append(error)
