"""One catalogue and one log as the raw files of every source."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import raw_amazon

from vlm2rec.data.sources import Source
from vlm2rec.data.sources.amazon import Amazon
from vlm2rec.data.sources.local import Local
from vlm2rec.data.sources.movielens import MovieLens
from vlm2rec.data.sources.recbole import RecBole

LOCAL = ("local-csv", "local-jsonl", "local-parquet")
OWN = (*LOCAL, "recbole")
"""Sources of files that people make themselves."""
EVERY = (*OWN, "movielens-1m", "movielens-32m", "amazon-2014", "amazon-2018", "amazon-2023")


def write(folder: Path, kind: str, items: pl.DataFrame, log: pl.DataFrame) -> Callable[..., Source]:
    """Write `items` (item_id, title) and `log` (user_id, item_id, timestamp, …) as a source has them.

    Returns what makes the source, which takes its options.
    """
    folder.mkdir(exist_ok=True)
    name, _, form = kind.partition("-")
    if name == "local":
        for table, file in ((items, "items"), (log, "interactions")):
            path = folder / f"{file}.{form}"
            {"csv": table.write_csv, "jsonl": table.write_ndjson, "parquet": table.write_parquet}[form](path)
        return lambda **options: Local(folder, **options)
    if name == "recbole":
        for table, ending in ((items, "item"), (log, "inter")):
            header = "\t".join(f"{c}:{'float' if c == 'timestamp' else 'token'}" for c in table.columns)
            (folder / f"x.{ending}").write_text(f"{header}\n" + table.write_csv(include_header=False, separator="\t"))
        return lambda **options: RecBole(folder, **options)
    if name == "movielens":
        rated = log.select("user_id", "item_id", rating=pl.lit(5), timestamp="timestamp")
        if form == "1m":
            lines = ["::".join(map(str, row)) for row in rated.rows()]
            raw_amazon.write_lines(folder / "ratings.dat", lines)
            films = [f"{item}::{title}::Drama" for item, title in items.select("item_id", "title").rows()]
            raw_amazon.write_lines(folder / "movies.dat", films)
        else:
            lines = ["userId,movieId,rating,timestamp", *(",".join(map(str, row)) for row in rated.rows())]
            raw_amazon.write_lines(folder / "ratings.csv", lines)
            films = [f"{item},{title},Drama" for item, title in items.select("item_id", "title").rows()]
            raw_amazon.write_lines(folder / "movies.csv", ["movieId,title,genres", *films])
        return lambda: MovieLens(folder)
    whole = items.select("item_id", "title", url=pl.lit(""), brand=pl.lit(""), category=pl.lit("A"), price=pl.lit("1"))
    rated = log.with_columns(pl.col("user_id", "item_id").cast(pl.String), rating=pl.lit(5.0))
    if form == "2023":  # which counts milliseconds: they are written a thousand times as large
        rated = rated.with_columns(pl.col("timestamp") / 1000)
    raw_amazon.write_raw(folder, form, whole, rated)
    return lambda: Amazon(folder, form)  # type: ignore[arg-type]
