"""Do the same thing to many items on a few threads. Reading, hashing and the network release the interpreter's lock."""

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

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
