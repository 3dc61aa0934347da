"""Small data that several tests share."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from program import Call, Said

from vlm2rec.cli import main
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources import RawData
from vlm2rec.data.sources.local import Local


@dataclass(frozen=True)
class Given:
    """A source that hands over what it was given."""

    raw: RawData

    def read(self) -> RawData:
        return self.raw


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of every family, by its name."""
    import families  # brings torch and transformers, which most tests do without

    root = tmp_path_factory.mktemp("families")
    return {family: families.build(family, root / family) for family in families.FAMILIES}


def write_pictures(folder: Path, names: Sequence[str]) -> None:
    """Pictures of noise, each unlike the others and none of them square."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 60)).save(folder / name)


def tiny_tables(users: int = 40, items: int = 24) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Items with pictures `iNN.png`; users with 5 to 12 events each, in order of time."""
    rng = np.random.default_rng(7)
    ids = [f"i{index:02d}" for index in range(items)]
    shelf = pl.DataFrame(
        {"item_id": ids, "title": [f"Thing {name}" for name in ids], "image": [f"{name}.png" for name in ids]}
    )
    rows = [
        (f"u{user}", ids[item], 100 * user + step)
        for user in range(users)
        for step, item in enumerate(rng.choice(items, rng.integers(5, 13), replace=False))
    ]
    return shelf, pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A raw `local` folder that a test may spoil."""
    folder = tmp_path / "raw"
    items, interactions = tiny_tables()
    write_pictures(folder / "images", items["image"].to_list())
    items.write_parquet(folder / "items.parquet")
    interactions.write_parquet(folder / "interactions.parquet")
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A prepared data set: 40 users, 24 items with titles and pictures of 32 pixels. Not to be written to."""
    folder = tmp_path_factory.mktemp("tiny")
    items, interactions = tiny_tables()
    write_pictures(folder / "raw" / "images", items["image"].to_list())
    items.write_parquet(folder / "raw" / "items.parquet")
    interactions.write_parquet(folder / "raw" / "interactions.parquet")
    return prepare(Local(folder / "raw"), folder / "data", picture_size=32)


@pytest.fixture
def from_sequences(tmp_path: Path) -> Callable[..., Dataset]:
    """Prepare a data set without pictures from each user's item numbers."""

    def make(sequences: Sequence[Sequence[int]], n_items: int, name: str = "made") -> Dataset:
        items = pl.DataFrame({"item_id": [str(i) for i in range(n_items)], "title": [f"t{i}" for i in range(n_items)]})
        rows = [(f"u{u}", str(item), step) for u, own in enumerate(sequences) for step, item in enumerate(own)]
        interactions = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
        source = Given(RawData(name, items, interactions))
        return prepare(source, tmp_path / name, require=["title"], k_core=0)

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The private test data; tests that need it are skipped without."""
    given = os.environ.get("VLM2REC_TEST_DATA")
    path = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the private test data is not here; set VLM2REC_TEST_DATA")
    return path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Run the program in this process, in an empty directory."""
    import transformers as hf

    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    # A program of its own sets these before transformers is imported; here it has been already.
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()

    def called(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["vlm2rec", *map(str, arguments)])
        capfd.readouterr()
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Said(status, *capfd.readouterr())

    return called
