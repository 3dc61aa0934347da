"""Pictures a second that `vlm2rec.data.fetching.download` fetches, looks at and saves, beside fetching alone.

A server on loopback, a process of its own, hands out JPEGs from memory; client and server share the machine's cores, so
its own CPU seconds are printed too. In turns, each in a process of its own: `download`, and as many threads of the
standard library as it has connections, which ask for the same pictures and look at nothing. After that `download`
starts again with nothing left to do, and once more among many names that an earlier run has settled.
"""

import argparse
import asyncio
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from vlm2rec.data.fetching.client import Fetching
from vlm2rec.data.fetching.download import download
from vlm2rec.data.fetching.journal import JOURNAL

KINDS = 64  # different pictures, handed out over and over


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--side", type=int, default=500, help="pixels")
    parser.add_argument("--per-host", type=int, default=Fetching.per_host)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds that the server waits before each answer")
    parser.add_argument("--names", type=int, default=1_000_000, help="names settled before, for the last line")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part == "serve":
        asyncio.run(serve(given.side, given.latency))
    elif given.part is not None:
        print(json.dumps(timed(given)))
    else:
        compare(given)


def compare(given: argparse.Namespace) -> None:
    """Run each part in a process of its own and print the table."""
    command = [sys.executable, *sys.argv, "--part"]
    with subprocess.Popen([*command, "serve"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port, size = server.stdout.readline().split()
        print(
            f"{given.pictures:,} JPEGs of {given.side} px, {int(size) / 1000:.0f} kB on average; {os.cpu_count()} cores"
        )
        print(f"{'':30}{'pictures/s':>12}{'MB/s':>8}{'CPU s':>8}{'server CPU s':>14}{'peak GiB':>10}")
        try:
            for repeat in range(given.repeats):
                with tempfile.TemporaryDirectory() as scratch:
                    parts = ["plain", "download"] if repeat % 2 else ["download", "plain"]
                    parts += ["again", "settle", "names"] if repeat == given.repeats - 1 else []
                    for part in parts:
                        before = cpu_of(server.pid)
                        options = [part, "--port", port, "--folder", scratch]
                        done = subprocess.run([*command, *options], stdout=subprocess.PIPE, text=True, check=True)
                        show(part, json.loads(done.stdout), cpu_of(server.pid) - before, int(size), given)
        finally:
            server.kill()
    print(f"load {', '.join(f'{one:.1f}' for one in os.getloadavg())}")


def show(part: str, found: dict[str, float], server: float, size: int, given: argparse.Namespace) -> None:
    """One row of the table."""
    if part in ("plain", "download"):
        rate = given.pictures / found["seconds"]
        print(f"{part:30}{rate:12.0f}{rate * size / 1e6:8.1f}{found['cpu']:8.1f}{server:14.1f}{found['peak']:10.2f}")
    elif part != "settle":
        what = "nothing left to do" if part == "again" else f"among {given.names:,} names"
        print(f"{what:30}{found['seconds']:10.1f} s{'':8}{found['cpu']:8.1f}{server:14.1f}{found['peak']:10.2f}")


def timed(given: argparse.Namespace) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory of one part."""
    wanted = pl.DataFrame({"name": [f"B{k:09}" for k in range(given.pictures)]}).with_columns(
        url=pl.format("http://127.0.0.1:{}/{}.jpg", pl.lit(given.port), "name")
    )
    fetching = Fetching(private=True, per_host=given.per_host)
    if given.part == "names":
        wanted = pl.concat([gone(given.names), wanted])
    start, cpu = time.perf_counter(), time.process_time()
    if given.part == "settle":
        settle(given.folder, given.names)
    elif given.part == "plain":
        fetch(wanted, given.folder, fetching)
    else:
        rows = download(wanted, given.folder, fetching)
        assert rows["file"].count() == given.pictures
    return {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def fetch(wanted: pl.DataFrame, folder: Path, fetching: Fetching) -> None:
    """The usual few lines: threads and the standard library."""
    (folder / "plain").mkdir()

    def one(row: tuple[str, str]) -> None:
        with urllib.request.urlopen(row[1], timeout=20) as answer:
            (folder / "plain" / f"{row[0]}.jpg").write_bytes(answer.read())

    with ThreadPoolExecutor(fetching.per_host) as pool:
        list(pool.map(one, wanted.iter_rows()))


def gone(names: int) -> pl.DataFrame:
    """Names of an earlier run and their addresses."""
    name = pl.int_range(names, eager=True).cast(pl.String).alias("name")
    return name.to_frame().with_columns(
        url=pl.format("http://127.0.0.1:9/pictures/of/a/usual/length/{}._SX300_QL70_.jpg", "name")
    )


def settle(folder: Path, names: int) -> None:
    """Write into the journal that they have failed for good."""
    facts = {"reason": pl.lit("HTTP 404"), "detail": pl.lit(""), "permanent": pl.lit(True), "status": pl.lit(404)}
    with (folder / JOURNAL).open("a") as journal:
        journal.write(gone(names).with_columns(**facts).write_ndjson())


class Answers(asyncio.Protocol):
    """Any request is answered with the next picture."""

    count = 0

    def __init__(self, answers: list[bytes], latency: float) -> None:
        self._answers, self._latency, self._heard = answers, latency, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._heard += data
        while b"\r\n\r\n" in self._heard:
            self._heard = self._heard.partition(b"\r\n\r\n")[2]
            Answers.count += 1
            answer = self._answers[Answers.count % len(self._answers)]
            if self._latency:
                asyncio.get_running_loop().call_later(self._latency, self._transport.write, answer)
            else:
                self._transport.write(answer)


async def serve(side: int, latency: float) -> None:
    """Hand out pictures; says its port and their mean size first."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(KINDS):
        coarse = rng.integers(0, 256, (side // 12, side // 12, 3), np.uint8)  # about as many bytes as a photograph
        content = io.BytesIO()
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(content, "JPEG", quality=85)
        pictures.append(content.getvalue())
    head = "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"
    answers = [head.format(len(one)).encode() + one for one in pictures]
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Answers(answers, latency), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], sum(map(len, pictures)) // KINDS, flush=True)
    await server.serve_forever()


def cpu_of(process: int) -> float:
    """CPU seconds of another process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
