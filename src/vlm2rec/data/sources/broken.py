"""Lines of raw files that cannot be read: counted, listed, and in the end few enough or an error."""

from collections.abc import Sequence

import polars as pl

from vlm2rec.errors import InputError

_EXCERPT = 120  # characters of a broken line that are kept
SCHEMA = {"file": pl.String, "line": pl.Int64, "reason": pl.String, "text": pl.String}


class Broken:
    """What a reader could not read, file by file.

    Attributes:
        read: lines read so far of each file, broken ones too.
    """

    def __init__(self) -> None:
        self.read: dict[str, int] = {}
        self._listed = 0
        self._tables: list[pl.DataFrame] = []
        self._rows: list[tuple[str, int, str, str]] = []

    def __len__(self) -> int:
        return self._listed

    def count(self, file: str, lines: int) -> None:
        """Say that so many more lines of a file have been read."""
        self.read[file] = self.read.get(file, 0) + lines

    def add(self, file: str, line: int, reason: str, text: str = "") -> None:
        """List one line, counted from 1, and why it cannot be read."""
        self._listed += 1
        self._rows.append((file, line, reason, text[:_EXCERPT]))

    def add_many(self, file: str, lines: pl.Series, reason: str, texts: Sequence[str] | pl.Series) -> None:
        """List several lines of a file that all have the same fault."""
        if len(lines):
            self._listed += len(lines)
            text = pl.Series("text", texts, dtype=pl.String).fill_null("").str.slice(0, _EXCERPT)
            table = pl.DataFrame({"line": lines.cast(pl.Int64), "text": text})
            self._tables.append(
                table.select(pl.lit(file).alias("file"), "line", pl.lit(reason).alias("reason"), "text")
            )

    def table(self) -> pl.DataFrame:
        """All of them: file, line, reason, text (its beginning); by file and line."""
        rows = pl.DataFrame(self._rows, schema=SCHEMA, orient="row")
        return pl.concat([rows, *self._tables]).sort("file", "line", maintain_order=True)

    def refuse_many(self, share: float) -> None:
        """Raise InputError if more than this share of a file's lines is broken, with the first of them."""
        table = self.table()
        for (file,), own in table.group_by("file", maintain_order=True):
            lines = max(self.read.get(str(file), 0), own.height)
            if own.height > share * lines:
                line, reason, text = own.select("line", "reason", "text").row(0)
                if "time" in reason:
                    help_ = "say how times are written, as in --time-format %d/%m/%Y"
                else:
                    help_ = "mend the file" if own.height < lines else "is it the file that is meant?"
                if own.height < lines:
                    help_ += ", or raise --bad-lines to leave them out"
                raise InputError(
                    f"{file}: {own.height:,} of {lines:,} lines cannot be read; the first is line {line}: {reason}:"
                    f" {text!r}; {help_}"
                )
