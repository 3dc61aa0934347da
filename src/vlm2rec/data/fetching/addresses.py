"""Which addresses may be fetched from: links come from strangers, and must not lead into one's own network.

A name can stand for another address each time it is asked for, so an address is checked where it is used: the network
below looks a name up itself and connects to the very address that it has checked. Every connection passes through it,
so each redirect is checked like the first request. The server's certificate is still checked against the name.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpcore2
import httpx2

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Looks up a host name: (name, port) to its addresses, the best first. Raises OSError where there is none."""

_CLOSED = tuple(
    ipaddress.IPv4Network(block)
    for block in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    )
)
"""Private, shared (CGNAT), loopback, link-local, multicast, documentation, benchmarks, reserved."""

# Of IPv6 the reverse: only what is handed out for public use, without the special blocks inside it.
_PUBLIC = ipaddress.IPv6Network("2000::/3")
_SPECIAL = tuple(ipaddress.IPv6Network(block) for block in ("2001::/23", "2001:db8::/32", "3fff::/20"))
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_HOST = re.compile(rb"[A-Za-z0-9._:-]+")

_LOOKUPS = 16  # names looked up at once; a dead one can hold its thread for many seconds
_TRIED = 4  # addresses of one name


class Refused(Exception):
    """An address that is not fetched from; the text says why."""


def parse(url: str) -> httpx2.URL:
    """A link in its parts. Raises Refused unless it is an http(s) address without a password."""
    try:
        parsed = httpx2.URL(url.strip())
    except (httpx2.InvalidURL, ValueError) as error:
        raise Refused(f"not an address: {error}") from None
    if parsed.scheme not in ("http", "https"):
        raise Refused("not an http(s) address")
    if not _HOST.fullmatch(parsed.raw_host):
        raise Refused("no host in the address")
    if parsed.port is not None and not 1 <= parsed.port <= 65535:
        raise Refused(f"no such port: {parsed.port}")
    if parsed.userinfo:
        raise Refused("a user or password in the address")
    return parsed


def join(url: str, location: str) -> httpx2.URL:
    """Where a redirect leads, checked like any other address."""
    try:
        return parse(str(parse(url).join(location.strip())))
    except (httpx2.InvalidURL, ValueError) as error:
        raise Refused(f"redirected to no address: {error}") from None


def is_open(address: str) -> bool:
    """Whether an IP address is a public one, so that anybody's link may lead there.

    An IPv6 address that stands for an IPv4 one (mapped, 6to4, NAT64) is as open as that one.
    """
    try:
        found: IPAddress = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found.scope_id is not None:
            return False
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is None:
            return found in _PUBLIC and not any(found in block for block in _SPECIAL)
        found = inner
    return not any(found in block for block in _CLOSED)


class CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to public addresses only, or to any if `private`; raises Refused where a name has none.

    Of a name's addresses those that may be used are tried in turn, within the time for one connection.
    """

    def __init__(self, private: bool = False, resolve: Resolve | None = None) -> None:
        self._private = private
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="names")
        self._resolve = resolve or self._look_up
        self._network = httpcore2.AnyIOBackend()

    def close(self) -> None:
        """Begin no further lookup. Does not wait for those under way: nobody needs them."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Look up, check, connect."""
        try:
            async with asyncio.timeout(timeout):
                found = await self._resolve(host, port)
        except TimeoutError:
            raise httpcore2.ConnectTimeout(f"{host}: name not found in time") from None
        except (OSError, UnicodeError):
            raise httpcore2.ConnectError(f"{host}: name not found") from None
        usable = [address for address in found if self._private or is_open(address)][:_TRIED]
        if not usable:
            raise Refused(f"{host} is {', '.join(found[:_TRIED]) or 'nowhere'}, which is no public address")
        share = None if timeout is None else timeout / len(usable)
        for address in usable:
            try:
                return await self._network.connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def _look_up(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))
