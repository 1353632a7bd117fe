"""Reading ahead: a thread makes items while others are worked on, never more than a few."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from queue import Full, Queue
from threading import Event, Thread
from typing import Any, TypeVar

Item = TypeVar("Item")


@contextlib.contextmanager
def reading_ahead(items: Generator[Item, None, None], depth: int) -> Iterator[Iterator[Item]]:
    """The items of a generator, which a thread runs ahead; both end with the block.

    Args:
        items: is closed in the thread that runs it.
        depth: items that wait at most, so that memory stays flat.

    Yields:
        An iterator over the items. What the generator raises, it raises.
    """
    queue: Queue[tuple[str, Any]] = Queue(depth)
    stop = Event()

    def put(kind: str, value: Any) -> bool:
        while not stop.is_set():
            with contextlib.suppress(Full):
                queue.put((kind, value), timeout=0.05)
                return True
        return False

    def work() -> None:
        try:
            with contextlib.closing(items):
                for item in items:
                    if not put("item", item):
                        return
        except BaseException as error:
            put("error", error)
        else:
            put("end", None)

    def taken() -> Iterator[Item]:
        while True:
            kind, value = queue.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value

    thread = Thread(target=work, name="sact-reading-ahead", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stop.set()
        thread.join()
