"""Pictures from the web into a folder: many at once, whole or not at all, and never one twice.

`downloads.jsonl` in the folder says what became of each picture, a line when it is settled (the last one of a name
counts). A start goes on where the last one was stopped, however that happened:

- What is saved (same name, same address, a file of the same size) and what failed for good is not asked for again. For
  good: HTTP 4xx but 408, 425 and 429, no picture, a damaged or too large one, a wrong redirect, an address that is
  refused (until `Fetching.private` allows it).
- Asked for anew is what failed for a reason that may pass, after all retries (no connection, no answer, 408, 425, 429,
  5xx), a changed address, a file that is missing or has another size.

A file is written beside its place and renamed, then its line is written; only what was under way at a kill is asked for
twice. Nothing is synced to disk, which would cost more than fetching: what a power failure loses, the sizes show.
"""

import asyncio
import hashlib
import os
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl

from vlm2rec.data.fetching.client import MAX_REDIRECTS, Body, Client, Failure, Fetching, Moved, look
from vlm2rec.data.fetching.hosts import Errand, Turns
from vlm2rec.data.fetching.journal import SCHEMA, Journal, open_journal, stem_of, write_whole
from vlm2rec.errors import InputError

Progress = Callable[[int, int], None]
"""Told (pictures settled, pictures in all) after each picture."""

_DECODERS = min(os.cpu_count() or 1, 4)
_HOST = r"(?i)^\s*https?://(?:[^/?#]*@)?(\[[^\]]*\]|[^/?#:]*)"


def download(
    wanted: Mapping[str, str] | pl.DataFrame,
    folder: Path | str,
    fetching: Fetching | None = None,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Fetch pictures into a folder.

    Stopped by Ctrl-C or killed, it leaves whole pictures only, and goes on at the next call. An address that several
    names share is fetched once. In memory are the table itself and what is under way. Runs an event loop of its own, so
    it cannot be called from within another one.

    Args:
        wanted: name to address, or a table with the columns `name` and `url` (null: there is none).
        folder: where the files go; a name's file is `stem_of(name)` and an ending by what its bytes are.
        fetching: limits and manners.
        progress: told how many are settled, of how many.

    Returns:
        A row for each wanted name, in order: name, url, file (in the folder; null if it failed), reason (a few fixed
        words; null if it is saved), detail (of this failure), permanent (whether the next start will not ask again),
        status (of HTTP), bytes, sha256.

    Raises:
        InputError: a name is wanted twice, or the folder cannot be written to.
    """
    folder, fetching = Path(folder), fetching or Fetching()
    table = _table(wanted)
    with open_journal(folder) as journal:
        state = _state(table, journal, fetching.again, fetching.verify, fetching.private)
        todo = _todo(state, folder)
        if progress is not None:
            progress(table.height - todo.height, table.height)
        if todo.height:
            del state  # while pictures come, memory holds one table of all names, not two
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's; here and not in its threads, where it is unsafe
                asyncio.run(_Download(todo, journal, fetching, progress, table.height).run())
            state = _state(table, journal)
        if _share(state, journal):
            state = _state(table, journal)
    return _results(state)


def _table(wanted: Mapping[str, str] | pl.DataFrame) -> pl.DataFrame:
    if not isinstance(wanted, pl.DataFrame):
        wanted = pl.DataFrame({"name": list(wanted.keys()), "url": list(wanted.values())})
    url = pl.col("url").cast(pl.String)
    table = wanted.select(pl.col("name").cast(pl.String), pl.when(url.str.strip_chars() != "").then(url).alias("url"))
    twice = table.filter(~pl.col("name").is_first_distinct())["name"]
    if table["name"].null_count():
        raise InputError("pictures to download: one has no name; give each its item's id")
    if len(twice):
        count = (table["name"] == twice[0]).sum()
        raise InputError(f"pictures to download: {twice[0]!r} is wanted {count} times; name it once")
    return table


def _state(
    table: pl.DataFrame, journal: Journal, again: bool = False, verify: bool = False, private: bool = False
) -> pl.DataFrame:
    """The table with what is known of each name at its address: columns of `SCHEMA`, `settled` and `old`.

    `settled`: it need not be asked for; `old`: the file in the folder that the name's last line speaks of.
    """
    known = journal.read().join(journal.files(), on="file", how="left")
    whole = (pl.col("there") == pl.col("bytes")).fill_null(False)
    failed = pl.col("file").is_null() & pl.col("permanent").fill_null(False) & pl.lit(not again)
    if private:  # refused for what may be allowed now
        failed &= pl.col("reason") != "refused address"
    known = known.with_columns(
        settled=whole | failed,
        old=pl.when(pl.col("there").is_not_null()).then("file"),
        file=pl.when(whole).then("file"),
    ).drop("there")
    state = table.join(known.rename({"url": "asked"}), on="name", how="left", maintain_order="left")
    same = (pl.col("asked") == pl.col("url")).fill_null(False)
    state = state.with_columns(
        *(pl.when(same).then(name).alias(name) for name in SCHEMA if name not in ("name", "url")),
        settled=(same & pl.col("settled")).fill_null(False),
    )
    if verify:
        state = state.with_columns(
            settled=pl.col("settled") & ~pl.Series(_differ(state, journal.folder), dtype=pl.Boolean)
        )
    return state


def _differ(state: pl.DataFrame, folder: Path) -> list[bool]:
    """Whether a row's file has another checksum than it had."""

    def differs(row: tuple[str | None, str | None]) -> bool:
        file, sha256 = row
        if file is None:
            return False
        with (folder / file).open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest() != sha256

    with ThreadPoolExecutor(_DECODERS) as pool:
        return list(pool.map(differs, state.select("file", "sha256").iter_rows()))


def _todo(state: pl.DataFrame, folder: Path) -> pl.DataFrame:
    """What to ask for, each address once: name, url, host; by host. Removes files that are not what they should be."""
    unsettled = state.filter(~pl.col("settled"))
    for file in unsettled["old"].drop_nulls():
        # Damaged, or of another address: a name's file is that of its address, or there is none.
        (folder / file).unlink(missing_ok=True)
    unsettled = unsettled.filter(pl.col("url").is_not_null()).unique("url", keep="first", maintain_order=True)
    return (
        unsettled.join(_same_address(state, unsettled), on="url", how="anti")
        .select("name", "url", host=pl.col("url").str.extract(_HOST).str.to_lowercase().fill_null(""))
        .sort("host", maintain_order=True)
    )


def _same_address(state: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    """One settled row for each address of the others, where there is one."""
    settled = state.filter(pl.col("settled")).join(others.select("url"), on="url", how="semi")
    return settled.unique("url", keep="first")


def _share(state: pl.DataFrame, journal: Journal) -> bool:
    """Give a picture to the other names that have its address; whether there were any."""
    others = state.filter(~pl.col("settled"))
    saved = _same_address(state, others).filter(pl.col("file").is_not_null())
    twins = others.select("name", "url").join(saved.drop("name"), on="url")
    for twin in twins.iter_rows(named=True):
        content = (journal.folder / twin["file"]).read_bytes()
        file = stem_of(twin["name"]) + Path(twin["file"]).suffix
        write_whole(journal.folder, file, content)
        journal.add(**{**{key: twin[key] for key in SCHEMA}, "file": file})
    return twins.height > 0


def _results(state: pl.DataFrame) -> pl.DataFrame:
    """What `download` returns: a failure counts for all names of the address."""
    facts = ["reason", "detail", "permanent", "status"]
    untold = pl.col("file").is_null() & pl.col("reason").is_null() & pl.col("url").is_not_null()
    failed = state.filter(pl.col("reason").is_not_null()).select("url", *facts)
    failed = failed.join(state.filter(untold).select("url"), on="url", how="semi").unique("url", keep="first")
    state = state.join(failed, on="url", how="left", suffix="_shared", maintain_order="left")
    state = state.with_columns(pl.coalesce(name, f"{name}_shared").alias(name) for name in facts)
    nowhere = pl.when(pl.col("url").is_null())
    return state.with_columns(
        nowhere.then(pl.lit("no address")).otherwise("reason").alias("reason"),
        nowhere.then(True).otherwise("permanent").alias("permanent"),
    ).select(*SCHEMA)


class _Download:
    """Fetches the rows of a table: name, url, host; sorted by host."""

    def __init__(
        self, todo: pl.DataFrame, journal: Journal, fetching: Fetching, progress: Progress | None, total: int
    ) -> None:
        self._todo, self._journal, self._fetching = todo, journal, fetching
        self._names, self._urls = todo["name"], todo["url"]
        self._progress, self._total = progress, total
        self._done = total - todo.height
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="pictures")

    async def run(self) -> None:
        """Fetch them all."""
        runs = self._todo["host"].rle().struct.unnest()
        ends = runs["len"].cum_sum()
        hosts = (
            (host, range(end - rows, end)) for rows, host, end in zip(runs["len"], runs["value"], ends, strict=True)
        )
        self._turns = Turns(hosts, self._fetching.per_host, self._fetching.delay)
        with self._decoders:
            async with Client(self._fetching) as self._client:
                workers = [asyncio.create_task(self._work()) for _ in range(self._fetching.concurrency)]
                try:
                    await asyncio.gather(*workers)
                finally:
                    for worker in workers:
                        worker.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self) -> None:
        while (errand := await self._turns.take()) is not None:
            try:
                await self._try(errand)
            except Failure as failure:
                self._fail(errand, failure)

    async def _try(self, errand: Errand) -> None:
        found = await self._client.get(errand.url or self._urls[errand.row])
        self._turns.praise(errand.host)
        if isinstance(found, Moved):
            if errand.hops == MAX_REDIRECTS:
                raise Failure("too many redirects", f"at last to {found.url}", permanent=True)
            if self._turns.has_given_up(found.host):
                raise Failure("host given up", f"redirected to {found.host}")
            self._turns.follow(errand, found.host, found.url)
            return
        loop = asyncio.get_running_loop()
        saved = await loop.run_in_executor(self._decoders, self._save, self._names[errand.row], found)
        self._journal.add(name=self._names[errand.row], url=self._urls[errand.row], status=200, **saved)
        self._turns.settle(errand)
        self._settle(1)

    def _save(self, name: str, body: Body) -> dict[str, Any]:
        """In a thread: look at a picture and write its file; what there is to say of it."""
        try:
            file = stem_of(name) + look(body.content, self._fetching.max_pixels)
        except Failure as failure:
            # Without a length nobody can tell a damaged picture from a connection that was cut.
            failure.permanent = failure.permanent and (body.whole or failure.reason != "damaged picture")
            raise
        write_whole(self._journal.folder, file, body.content)
        return {"file": file, "bytes": len(body.content), "sha256": hashlib.sha256(body.content).hexdigest()}

    def _fail(self, errand: Errand, failure: Failure) -> None:
        fetching = self._fetching
        wait = fetching.backoff * 2**errand.tries * random.uniform(0.5, 1.5)
        wait = min(max(wait, failure.wait or 0.0), fetching.longest_wait)
        if failure.status in (429, 503):
            # "Too many" is about the host, "unavailable" may be about this one picture.
            self._turns.slow_down(errand, rest=wait if failure.status == 429 else 0.0)
        retry = not failure.permanent and errand.tries < fetching.retries
        if retry and not errand.home.given_up and not errand.host.given_up:
            self._turns.again(errand, wait)
            return
        self._lose([errand.row], failure)
        self._turns.settle(errand)
        host = errand.host
        if failure.permanent:
            self._turns.praise(host)
            return
        host.lost += 1
        if host.lost >= fetching.patience and not host.given_up:
            rows = self._turns.give_up(host)
            why = f"{host.name} failed to give {host.lost} pictures in a row, the last time: {failure.reason}"
            self._lose(rows, Failure("host given up", why))

    def _lose(self, rows: Sequence[int], failure: Failure) -> None:
        facts = {"reason": failure.reason, "detail": failure.detail, "permanent": failure.permanent}
        lost = self._todo[rows].select("name", "url", **{key: pl.lit(value) for key, value in facts.items()})
        self._journal.add_all(lost.with_columns(status=pl.lit(failure.status, pl.Int64)))
        self._settle(len(rows))

    def _settle(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)
