"""An HTTP server on loopback that misbehaves in every way pictures on the web do; what it does is in the path.

It counts requests by path, and how many are open at once for each host it is called by.
"""

import asyncio
import contextlib
import gzip
import io
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from PIL import Image


def picture(number: int, kind: str = "JPEG", side: int = 48) -> bytes:
    """A picture like no other: noise of its own."""
    noise = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, kind)
    return content.getvalue()


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG that says it is so large, and no pixels."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@lru_cache
def bomb() -> bytes:
    """Twenty kilobytes that become twenty megabytes, which begin like a JPEG."""
    return gzip.compress(b"\xff\xd8\xff" + bytes(20_000_000))


class NastyServer:
    """Runs in a thread of its own. `address` is where, `requests` counts by path, `most` the requests open at once."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.connections = 0
        self.times: dict[str, list[float]] = {}
        self.headers: list[dict[str, str]] = []
        self.pause = 0.0  # seconds before any answer
        self._open: Counter[str] = Counter()
        self._window: list[float] = []
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(5)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=512))
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        # A connection left to the garbage collector is closed by the thread that collects, under the loop's feet.
        with (
            contextlib.closing(writer),
            contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError),
        ):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                path = head[0].split(" ")[1]
                headers = dict(line.split(": ", 1) for line in head[1:] if line)
                host = headers["Host"].rpartition(":")[0]
                self.headers.append(headers)
                self.requests[path] += 1
                self.times.setdefault(host, []).append(time.monotonic())
                self._open[host] += 1
                self.most[host] = max(self.most[host], self._open[host])
                try:
                    await asyncio.sleep(self.pause)
                    await self._answer(path, writer)
                    await writer.drain()
                finally:
                    self._open[host] -= 1
                if writer.is_closing():
                    return

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        """One path, one way to behave: /what/number."""
        what, _, rest = path.strip("/").partition("/")
        number = int("".join(filter(str.isdigit, rest)) or 0)
        send = writer.write
        if what in ("good", "slow"):
            await asyncio.sleep(0.2 if what == "slow" else 0)
            send(reply(picture(number)))
        elif what == "kind":
            send(reply(picture(1, rest), kind="application/octet-stream"))
        elif what == "stall":
            send(reply(picture(number))[:200])
            await asyncio.sleep(60)
        elif what == "silent":
            await asyncio.sleep(60)
        elif what == "reset":
            send(reply(picture(number))[:200])
            await writer.drain()
            writer.transport.abort()
        elif what == "garbage":
            send(b"\0\1\2 what is this\r\n\r\n")
            writer.close()
        elif what.isdecimal():
            send(reply(b"no", int(what)))
        elif what == "once":  # 503 the first time
            send(reply(picture(number)) if self.requests[path] > 1 else reply(b"later", 503, "Retry-After: 1"))
        elif what == "date":
            when = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 2))
            send(reply(picture(number)) if self.requests[path] > 1 else reply(b"later", 503, f"Retry-After: {when}"))
        elif what == "forever":
            send(reply(b"later", 429, "Retry-After: 86400"))
        elif what == "limited":  # no more than 5 in 0.3 seconds, whatever the path
            now = time.monotonic()
            self._window = [one for one in self._window if one > now - 0.3]
            if len(self._window) >= 5:
                send(reply(b"too many", 429))
            else:
                self._window.append(now)
                send(reply(picture(number)))
        elif what == "html":
            send(reply(b"<html><body>Sorry, no picture</body></html>", kind="image/jpeg"))
        elif what == "endlesshtml":
            send(b"HTTP/1.1 200 OK\r\n\r\n<html>")
            await flood(writer, b"<p>")
        elif what == "empty":
            send(reply(b""))
        elif what == "truncated":
            send(reply(picture(number)[:-300]))
        elif what == "cut":  # without a length, so that nothing tells
            send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + picture(number)[:-300])
            writer.close()
        elif what == "short":  # less than it says
            send(reply(picture(number))[:-300])
            writer.close()
        elif what == "closed":  # all of it, without a length
            send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + picture(number))
            writer.close()
        elif what == "chunked":
            content = picture(number)
            send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for start in range(0, len(content), 100):
                part = content[start : start + 100]
                send(b"%x\r\n%b\r\n" % (len(part), part))
            send(b"0\r\n\r\n")
        elif what == "pixels":
            send(reply(png_header(25_000, 20_000)))
        elif what == "manypixels":
            send(reply(png_header(10_000, 9_500)))
        elif what == "loop":
            send(reply(b"", 302, "Location: /loop/" + str(number + 1)))
        elif what == "hop":  # so many redirects, then a picture
            send(reply(b"", 301, f"Location: {f'/hop/{number - 1}' if number > 1 else '/good/1'}"))
        elif what == "to":  # where the rest says
            send(reply(b"", 302, "Location: " + bytes.fromhex(rest).decode("latin-1")))
        elif what == "nowhere":
            send(reply(b"", 302))
        elif what == "trickle":
            send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n\xff\xd8\xff")
            for _ in range(1000):
                await asyncio.sleep(0.1)
                send(b"\0")
                await writer.drain()
        elif what == "trickleheaders":
            send(b"HTTP/1.1 200 OK\r\n")
            for _ in range(1000):
                await asyncio.sleep(0.1)
                send(b"X: y\r\n")
                await writer.drain()
        elif what == "endless":
            send(b"HTTP/1.1 200 OK\r\n\r\n\xff\xd8\xff")
            await flood(writer, b"\0")
        elif what == "endlessheaders":
            send(b"HTTP/1.1 200 OK\r\n")
            await flood(writer, b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n")
        elif what == "huge":
            send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n\xff\xd8\xff")
            await asyncio.sleep(60)
        elif what == "gzip":
            send(reply(gzip.compress(picture(number)), extra="Content-Encoding: gzip"))
        elif what == "bomb":
            send(reply(bomb(), extra="Content-Encoding: gzip"))
        elif what == "brotli":
            send(reply(b"abc", extra="Content-Encoding: br"))
        else:
            send(reply(b"no such path", 404))


def reply(content: bytes, status: int = 200, extra: str = "", kind: str = "image/jpeg") -> bytes:
    """A whole answer."""
    head = f"HTTP/1.1 {status} Whatever\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
    return (head + (extra + "\r\n" if extra else "") + "\r\n").encode("latin-1") + content


async def flood(writer: asyncio.StreamWriter, what: bytes) -> None:
    """Send the same for ever."""
    while True:
        writer.write(what * (65_536 // len(what)))
        await writer.drain()


@contextlib.contextmanager
def serving() -> Iterator[NastyServer]:
    """A server for one test."""
    server = NastyServer()
    try:
        yield server
    finally:
        server.close()
