"""One picture from one address: asked for, bounded in bytes, pixels and time, and looked at before it counts.

What goes wrong ends in a `Failure` that says whether asking again can help. Proxies that the environment names are not
used: a proxy looks names up itself, so nobody here could tell where a link leads.
"""

import asyncio
import contextlib
import io
import ssl
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Self

import httpcore2
from PIL import Image

from vlm2rec import __version__
from vlm2rec.data.fetching.addresses import CheckedNetwork, Refused, join, parse
from vlm2rec.errors import InputError

ENDINGS = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "GIF": ".gif",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "AVIF": ".avif",
}
"""Kinds of pictures that count, by what Pillow calls them, and the endings of their files."""

MAX_REDIRECTS = 5

_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429)  # and all from 500 on: may be otherwise the next time
_SNIFFED = 16  # bytes that tell what kind of picture it is
_READ_OUT = 16_384  # bytes of an answer without a picture: read, so that its connection can be used again
_KEPT_OPEN = 15.0  # seconds that a connection waits for the next request


@dataclass(frozen=True)
class Fetching:
    """Limits and manners of a download.

    Attributes:
        concurrency: requests at a time. So many pictures of `max_bytes` are held in memory at the worst.
        per_host: requests to one host at a time.
        delay: seconds between two requests to one host. It grows by itself where a host says that it is asked too
            much (429, 503), and shrinks again.
        retries: further attempts after one that failed for a reason that may pass.
        backoff: seconds before the first of them, up to a random half more or less; doubled each time.
        longest_wait: seconds; longer is never waited, whatever `Retry-After` says.
        timeout: seconds without a byte, and for a connection.
        total: seconds for one picture, so that a trickle ends.
        max_bytes: of a picture's file.
        max_pixels: of a picture, from its header; more than what `prepare` reads helps nobody.
        patience: pictures in a row that a host fails to give, retries included, before it is asked no more.
        private: whether private, loopback and other addresses that are not public may be fetched from.
        verify: whether files that are there are compared by checksum, not only by size.
        again: whether what failed for good in an earlier run is asked for again.
        agent: what the servers are told who asks.
    """

    concurrency: int = 64
    per_host: int = 8
    delay: float = 0.0
    retries: int = 4
    backoff: float = 0.5
    longest_wait: float = 60.0
    timeout: float = 20.0
    total: float = 60.0
    max_bytes: int = 20_000_000
    max_pixels: int = 89_000_000
    patience: int = 32
    private: bool = False
    verify: bool = False
    again: bool = False
    agent: str = f"vlm2rec/{__version__}"

    def __post_init__(self) -> None:
        for name in ("concurrency", "per_host", "timeout", "total", "max_bytes", "max_pixels", "patience"):
            if not getattr(self, name) > 0:
                raise InputError(f"downloading: {name} is {getattr(self, name)}; give more than 0")
        for name in ("delay", "retries", "backoff", "longest_wait"):
            if not getattr(self, name) >= 0:
                raise InputError(f"downloading: {name} is {getattr(self, name)}; give 0 or more")


class Failure(Exception):
    """Why a picture did not come.

    Attributes:
        reason: in a few fixed words, to be counted by.
        detail: what there is to say of this one.
        status: of HTTP; None where no answer came.
        permanent: whether asking again would end the same way.
        wait: seconds that the server asks to wait.
    """

    def __init__(
        self,
        reason: str,
        detail: str = "",
        status: int | None = None,
        permanent: bool = False,
        wait: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.detail, self.status, self.permanent, self.wait = reason, detail, status, permanent, wait


@dataclass(frozen=True)
class Moved:
    """The picture lies elsewhere; `host` and `url` say where."""

    host: str
    url: str


@dataclass(frozen=True)
class Body:
    """What came. `whole`: the server said how long it is, so nothing can be missing at its end."""

    content: bytearray
    whole: bool


class Client:
    """Asks for one address at a time, many at once. A context of `async with`."""

    def __init__(self, fetching: Fetching) -> None:
        self._fetching = fetching
        self._network = CheckedNetwork(fetching.private)
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=_tls(),
            max_connections=fetching.concurrency,
            keepalive_expiry=_KEPT_OPEN,
            network_backend=self._network,
        )
        self._headers: list[tuple[bytes | str, bytes | str]] = [
            ("User-Agent", fetching.agent),
            ("Accept", "image/*, */*;q=0.5"),
            ("Accept-Encoding", "identity"),  # a picture is compressed already
        ]
        self._timeouts = dict.fromkeys(("connect", "read", "write"), fetching.timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._network.close()
        await self._pool.aclose()

    async def get(self, url: str) -> Body | Moved:
        """What lies at an address, which may be a redirect. Raises Failure."""
        try:
            parsed = parse(url)
            target = httpcore2.URL(
                scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path
            )
            headers = [(b"Host", parsed.netloc), *self._headers]
            async with (
                asyncio.timeout(self._fetching.total),
                self._pool.stream("GET", target, headers=headers, extensions={"timeout": self._timeouts}) as response,
            ):
                return await self._read(url, response)
        except (Failure, asyncio.CancelledError):
            raise
        except Refused as error:
            raise Failure("refused address", str(error), permanent=True) from None
        except httpcore2.TimeoutException as error:
            raise Failure("no answer in time", str(error) or f"nothing for {self._fetching.timeout:g} s") from None
        except TimeoutError:
            raise Failure("too slow", f"more than {self._fetching.total:g} s") from None
        except (httpcore2.ConnectError, OSError) as error:
            raise Failure("no connection", str(error)) from None
        except Exception as error:  # whatever a stranger's server does, the others' pictures must come
            raise Failure("connection broke", f"{type(error).__name__}: {error}") from None

    async def _read(self, url: str, response: httpcore2.Response) -> Body | Moved:
        status = response.status
        headers = {name.lower(): value.decode(errors="replace").strip() for name, value in response.headers}
        length = headers.get(b"content-length", "")
        if status != 200 and length.isdecimal() and int(length) <= _READ_OUT:
            with contextlib.suppress(httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError):
                async for _ in response.aiter_stream():
                    pass
        if status in _REDIRECTS:
            if b"location" not in headers:
                raise Failure("redirect to nowhere", status=status, permanent=True)
            moved = join(url, headers[b"location"])
            return Moved(moved.host, str(moved))
        if status != 200:
            passing = status in _PASSING or status >= 500
            wait = _seconds(headers.get(b"retry-after"))
            raise Failure(f"HTTP {status}", status=status, permanent=not passing, wait=wait)
        limit = self._fetching.max_bytes
        if length.isdecimal() and int(length) > limit:
            raise Failure("too large", f"{int(length):,} bytes", status, permanent=True)
        unpack = _unpacker(headers.get(b"content-encoding", "identity").lower())
        content = bytearray()
        sniffed = False
        async for part in response.aiter_stream():
            content += unpack(part, limit + 1 - len(content))
            if len(content) > limit:
                raise Failure("too large", f"more than {limit:,} bytes", status, permanent=True)
            if not sniffed and len(content) >= _SNIFFED:
                kind_of(content)
                sniffed = True
        return Body(content, bool(length) or b"transfer-encoding" in headers)


def kind_of(content: bytes | bytearray) -> str:
    """What kind of picture it is by its first bytes, a key of `ENDINGS`. Raises Failure where it is none."""
    head = bytes(content[:_SNIFFED])
    for kind, beginnings in _BEGINNINGS.items():
        if head.startswith(beginnings):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "AVIF"
    said = (
        "nothing" if not head else "a page or a text" if head.lstrip()[:1] in (b"<", b"{") else f"begins {head[:8]!r}"
    )
    raise Failure("not a picture", said, 200, permanent=True)


def look(content: bytes | bytearray, max_pixels: int) -> str:
    """See that a picture is whole and can be decoded; its file's ending. Raises Failure.

    Its size is read from the header, before anything is decoded. A JPEG is then decoded at an eighth of its size, in
    grey: that reads every byte of it and costs a fraction.
    """
    kind = kind_of(content)
    try:
        with Image.open(io.BytesIO(content), formats=[kind]) as image:
            width, height = image.size
            if width * height <= max_pixels:
                image.verify()  # a PNG's checksums
        if width * height <= max_pixels:
            with Image.open(io.BytesIO(content), formats=[kind]) as image:
                image.draft("L", (width // 8, height // 8))
                image.load()
            return ENDINGS[kind]
    except Image.DecompressionBombError:
        raise Failure("too many pixels", status=200, permanent=True) from None
    except Exception as error:  # Pillow raises many kinds
        raise Failure("damaged picture", str(error)[:120], 200, permanent=True) from None
    raise Failure("too many pixels", f"{width:,} x {height:,}", 200, permanent=True)


_BEGINNINGS: dict[str, tuple[bytes, ...]] = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*"),
}


@cache
def _tls() -> ssl.SSLContext:
    """Checks certificates against the system's, or those of `SSL_CERT_FILE`. Reading them takes a while."""
    return httpcore2.default_ssl_context()


def _unpacker(encoding: str) -> Callable[[bytes, int], bytes]:
    """From a part of a body, and how many bytes may come of it, to its content."""
    if encoding in ("identity", ""):
        return lambda part, most: part
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Failure("unknown packing", f"Content-Encoding: {encoding[:40]}", 200, permanent=True)
    unzip = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, as its head says

    def unpack(part: bytes, most: int) -> bytes:
        try:
            return unzip.decompress(part, most)
        except zlib.error as error:
            raise Failure("damaged picture", str(error), 200, permanent=True) from None

    return unpack


def _seconds(retry_after: str | None) -> float | None:
    """`Retry-After`, a number of seconds or a date; None where it is neither."""
    if retry_after is None:
        return None
    if retry_after.isdecimal():
        return float(retry_after[:9])
    try:
        when = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
