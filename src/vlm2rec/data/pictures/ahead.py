"""Reading in threads what will be asked for next: Pillow and NumPy let go of the interpreter while they work."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, Self, TypeVar

S = TypeVar("S")
T = TypeVar("T")


class ReadAhead(Iterator[T], Generic[S, T]):
    """`read` of every part, in order, made by threads before it is asked for.

    The first parts are under way as soon as the object is there, and never more than `ahead` at a time, so memory does
    not grow with their number. What `read` raises comes out in the place of its result. Without threads each part is
    read when it is asked for.
    """

    def __init__(self, read: Callable[[S], T], parts: Iterable[S], threads: int, ahead: int) -> None:
        self._read, self._parts = read, iter(parts)
        self._pool = ThreadPoolExecutor(threads) if threads else None
        self._waiting: deque[Future[T]] = deque()
        self._submit(ahead)

    def __next__(self) -> T:
        if self._pool is None:
            return self._read(next(self._parts))
        if not self._waiting:
            self.close()
            raise StopIteration
        found = self._waiting.popleft().result()
        self._submit(1)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Begin no further part, and wait for those under way."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._parts = iter(())
        self._waiting.clear()

    def _submit(self, count: int) -> None:
        if self._pool is not None:
            self._waiting.extend(self._pool.submit(self._read, part) for part in islice(self._parts, count))
