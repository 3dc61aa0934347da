"""Whose turn it is: requests shared out fairly between hosts, each asked no faster than it bears.

A queue of rows for each host, and hosts take turns; so a slow one keeps its own connections busy and nobody else's.
What waits (a retry, a host that asked for rest) holds no connection. In memory is a little for each host and each
request under way or waiting, nothing for the rows that have not been begun.
"""

import asyncio
import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

_BEGUN = 256  # rows of one host under way or waiting for a retry; more are not begun
_FIRST_GAP = 0.1  # seconds between requests to a host that has said "too many" once
_LONGEST_GAP = 10.0
_EASING = 0.98  # what is left of the gap after an answer without complaint


@dataclass(slots=True, eq=False)
class Host:
    """One host: its rows not begun yet, what waits for a retry, and how it is to be treated.

    Attributes:
        name: as in the address.
        rows: rows not begun.
        waiting: heap of (due in seconds of the loop's clock, tie-breaker, errand).
        begun: its own rows that are begun and not settled, wherever a redirect has led them.
        active: requests to it now.
        not_before: the loop's time before which it is not asked.
        gap: seconds between two requests.
        slowed: when the gap last grew.
        lost: pictures in a row that it failed to give, all retries included.
        given_up: whether it is asked no more.
    """

    name: str
    rows: range = range(0)
    waiting: list[tuple[float, int, "Errand"]] = field(default_factory=list)
    begun: int = 0
    active: int = 0
    not_before: float = 0.0
    gap: float = 0.0
    slowed: float = -1.0
    lost: int = 0
    given_up: bool = False
    offered: bool = False
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class Errand:
    """One picture to bring.

    Attributes:
        row: its number.
        home: the host its address names.
        host: the host to ask next, another one after a redirect.
        url: where to ask after a redirect; None: at the row's own address.
        tries: attempts that failed.
        hops: redirects followed in this attempt.
        began: the loop's time at which the request began.
    """

    row: int
    home: Host
    host: Host
    url: str | None = None
    tries: int = 0
    hops: int = 0
    began: float = 0.0


class Turns:
    """Hands out errands. Each one taken is given back by `again` or `settle`."""

    def __init__(self, hosts: Iterable[tuple[str, range]], per_host: int, delay: float) -> None:
        """`hosts`: name and rows of each; at most `per_host` requests to one at a time, `delay` seconds apart."""
        self._per_host, self._delay = per_host, delay
        self._hosts = {name: Host(name, rows, gap=delay) for name, rows in hosts}
        self._left = sum(len(host.rows) for host in self._hosts.values())
        self._ready: asyncio.Queue[Host | None] = asyncio.Queue()
        self._number = count()
        for host in self._hosts.values():
            self._offer(host)
        self._end_if_done()

    async def take(self) -> Errand | None:
        """The next errand, as soon as there is one; None once all are settled."""
        loop = asyncio.get_running_loop()
        while (host := await self._ready.get()) is not None:
            host.offered = False
            now = loop.time()
            due = self._due(host)
            if due is None or due > now:  # it asked for rest meanwhile
                self._offer(host)
                continue
            if host.waiting and host.waiting[0][0] <= now:
                errand = heapq.heappop(host.waiting)[2]
            else:
                errand = Errand(host.rows[0], host, host)
                host.rows = host.rows[1:]
                host.begun += 1
            errand.began = now
            host.active += 1
            host.not_before = max(host.not_before, now + host.gap)
            self._offer(host)
            return errand
        self._ready.put_nowait(None)  # for the next who asks
        return None

    def again(self, errand: Errand, seconds: float) -> None:
        """Its turn is over; it wants another one in so many seconds, at its own host."""
        errand.url, errand.hops = None, 0
        errand.tries += 1
        self._move(errand, errand.home, seconds)

    def follow(self, errand: Errand, host: str, url: str) -> None:
        """Its turn is over; it wants another one at the address it was led to, when that host has time."""
        errand.url = url
        errand.hops += 1
        if host not in self._hosts:
            self._hosts[host] = Host(host, gap=self._delay)
        self._move(errand, self._hosts[host], 0.0)

    def settle(self, errand: Errand) -> None:
        """Its turn is over and it needs no other."""
        errand.host.active -= 1
        self._close(errand)
        self._offer(errand.host)
        self._end_if_done()

    def praise(self, host: Host) -> None:
        """It answered as it should."""
        host.lost = 0
        host.gap = max(self._delay, host.gap * _EASING if host.gap > 0.01 else 0.0)

    def slow_down(self, errand: Errand, rest: float) -> None:
        """The errand's host is asked too much: more time between requests, and none for `rest` seconds."""
        host, now = errand.host, asyncio.get_running_loop().time()
        if errand.began > host.slowed:  # else it was asked before it could see that we slowed down
            host.gap = min(max(2 * host.gap, _FIRST_GAP), max(_LONGEST_GAP, self._delay))
            host.slowed = now
        host.not_before = max(host.not_before, now + max(rest, host.gap if rest else 0.0))

    def has_given_up(self, host: str) -> bool:
        """Whether a host is asked no more."""
        return host in self._hosts and self._hosts[host].given_up

    def give_up(self, host: Host) -> list[int]:
        """Ask a host no more. The rows not begun and those that waited for it, all of which count as settled."""
        rows, errands = list(host.rows), [errand for _, _, errand in host.waiting]
        host.rows, host.waiting, host.given_up = range(0), [], True
        self._left -= len(rows)
        for errand in errands:
            self._close(errand)
        self._end_if_done()
        return rows + [errand.row for errand in errands]

    def _move(self, errand: Errand, host: Host, seconds: float) -> None:
        before, errand.host = errand.host, host
        before.active -= 1
        due = asyncio.get_running_loop().time() + seconds
        heapq.heappush(host.waiting, (due, next(self._number), errand))
        self._offer(host)
        self._offer(before)

    def _close(self, errand: Errand) -> None:
        errand.home.begun -= 1
        self._left -= 1
        self._offer(errand.home)

    def _due(self, host: Host) -> float | None:
        """When it can be asked next; None: not before something else happens."""
        if host.active >= self._per_host:
            return None
        if host.rows and host.begun < _BEGUN:
            return host.not_before
        return max(host.waiting[0][0], host.not_before) if host.waiting else None

    def _offer(self, host: Host) -> None:
        """Put it into the line now, or when its time has come."""
        if host.offered:
            return
        if host.timer is not None:
            host.timer.cancel()
            host.timer = None
        due = self._due(host)
        if due is None:
            return
        loop = asyncio.get_running_loop()
        if due <= loop.time():
            host.offered = True
            self._ready.put_nowait(host)
        else:
            host.timer = loop.call_at(due, self._offer, host)

    def _end_if_done(self) -> None:
        if self._left == 0:
            self._ready.put_nowait(None)
