"""Pictures read ahead, in host memory while there is room: the same visual tokens, whichever way."""

from dataclasses import dataclass, field
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from torch import Tensor

from vlm2rec.backbones import gallery as galleries
from vlm2rec.backbones import gallery as gallery_module
from vlm2rec.backbones import vision
from vlm2rec.backbones.gallery import Gallery
from vlm2rec.backbones.load import load_backbone
from vlm2rec.backbones.vision import Pixels, VisionTower, Visual
from vlm2rec.config import BackboneConfig, PromptConfig
from vlm2rec.data.pictures.fitting import Pixels as Picture
from vlm2rec.encode import encode
from vlm2rec.encoder import Encoder

EYES = [family for family in families.FAMILIES if family != "qwen2"]


class Pictures(list[Picture | None]):
    """Remembers which were read."""

    def __init__(self, pictures: list[Picture | None]) -> None:
        super().__init__(pictures)
        self.read: list[int] = []

    def __getitem__(self, index: int) -> Picture | None:  # type: ignore[override]
        self.read.append(index)
        return super().__getitem__(index)


@dataclass
class Shelf:
    pictures: Pictures
    titles: list[str] = field(default_factory=list)


def shelf(count: int = 12) -> Shelf:
    """Every fifth item without a picture."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (56, 56, 3), dtype=np.uint8) if i % 5 != 4 else None for i in range(count)]
    return Shelf(Pictures(pictures), [f"thing {i}" for i in range(count)])


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VisionTower]:
    root = tmp_path_factory.mktemp("families")
    found = {}
    for family in EYES:
        tower = load_backbone(BackboneConfig(path=str(families.build(family, root / family)))).vision
        assert tower is not None
        found[family] = tower
    return found


def parts(visual: Visual) -> list[Tensor]:
    return [part for part in (visual.tokens, visual.grid, *visual.deepstack) if part is not None]


def same(one: Visual | None, other: Visual | None) -> bool:
    if one is None or other is None:
        return one is other
    return len(parts(one)) == len(parts(other)) and all(map(torch.equal, parts(one), parts(other)))


@pytest.mark.parametrize("family", EYES)
@pytest.mark.parametrize("readers", [1, 4])
def test_reading_ahead_changes_no_bit(towers: dict[str, VisionTower], family: str, readers: int) -> None:
    catalogue, tower = shelf(), towers[family]
    ahead, in_turns = Gallery(tower, keep=True), Gallery(tower, keep=True)
    ahead.readers, in_turns.readers = readers, 0
    for items in (range(3, 9), range(12)):
        ahead.look_at(catalogue, items)
        in_turns.look_at(catalogue, items)
        assert ahead.visuals.keys() == in_turns.visuals.keys() >= set(items)
        for item in items:
            picture = catalogue.pictures[item]
            expected = None if picture is None else tower([picture])[0]
            assert same(ahead.visuals[item], expected) and same(in_turns.visuals[item], expected)


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures count as ones that cannot change, like those of a data set: others are read again to be compared."""
    monkeypatch.setattr(gallery_module, "_FIXED", (Pictures,))


@pytest.mark.usefixtures("fixed")
def test_what_is_expected_is_read_before_it_is_asked_for_and_once(towers: dict[str, VisionTower]) -> None:
    catalogue, gallery = shelf(), Gallery(towers["llava"], keep=True)
    gallery.readers = 4
    gallery.expect([3, 1, 2, 0])
    assert catalogue.pictures.read == []
    gallery.look_at(catalogue, [0, 1])
    gallery.look_at(catalogue, [2, 3])  # what was expected, but for what is there already
    gallery.look_at(catalogue, range(4))
    assert sorted(catalogue.pictures.read) == [0, 1, 2, 3]
    gallery.expect([7, 8])
    gallery.look_at(catalogue, [6])
    gallery.look_at(catalogue, [8])  # something else
    assert same(gallery.visuals[8], towers["llava"]([catalogue.pictures[8]])[0])
    gallery.expect([10, 11])
    gallery.look_at(catalogue, [10])
    other = shelf()
    other.pictures.reverse()
    gallery.look_at(other, [11])  # another catalogue's picture, not the one under way
    assert same(gallery.visuals[11], towers["llava"]([catalogue.pictures[0]])[0])


@pytest.mark.parametrize("readers", [0, 2])
def test_what_a_reader_raises_is_raised_and_can_be_tried_again(towers: dict[str, VisionTower], readers: int) -> None:
    catalogue, gallery = shelf(), Gallery(towers["llava"], keep=True)
    gallery.readers = readers
    good, catalogue.pictures[3] = catalogue.pictures[3], np.zeros((5, 5, 7), np.uint8)  # seven channels
    with pytest.raises(TypeError, match="Cannot handle this data type"):
        gallery.look_at(catalogue, range(6))
    assert set(gallery.visuals) == {0, 1, 2}
    catalogue.pictures[3] = good
    gallery.look_at(catalogue, range(6))
    assert set(gallery.visuals) == set(range(6))


def test_the_first_to_come_are_kept_while_there_is_room(
    towers: dict[str, VisionTower], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, tower = shelf(), towers["qwen3_vl"]
    one = tower([catalogue.pictures[0]])[0]
    assert one.bytes == 3 * one.tokens.nbytes, "two deep-stacked layers count too"
    monkeypatch.setattr(galleries, "host_room", lambda: 2 * one.bytes + 1)
    looked: list[int] = []
    look = tower.look
    monkeypatch.setattr(tower, "look", lambda pixels: looked.append(pixels.pictures) or look(pixels))
    gallery = Gallery(tower, keep=True)
    for items, new in (([0, 1, 4], 2), ([2, 3, 0], 2), ([3, 1], 0), ([2, 4], 1), ([0], 0)):
        looked.clear()
        gallery.look_at(catalogue, items)
        assert sum(looked) == new
        assert set(gallery.visuals) == {0, 1, 4, *items}
        for item in items:
            assert (gallery.visuals[item] is None) == (item == 4)
    assert gallery.room == 1
    gallery.look_at(shelf(), [])  # another catalogue: all room again
    assert gallery.room == 2 * one.bytes + 1 and gallery.visuals == {}


def test_nothing_is_kept_where_nothing_is_asked_to_be(towers: dict[str, VisionTower]) -> None:
    catalogue, gallery = shelf(), Gallery(towers["llava"], keep=False)
    gallery.look_at(catalogue, range(4))
    gallery.look_at(catalogue, [6])
    assert set(gallery.visuals) == {6}


def test_what_moves_to_the_host_is_the_same(towers: dict[str, VisionTower], monkeypatch: pytest.MonkeyPatch) -> None:
    """Page-locked memory needs a GPU; how pictures of several sizes are put into blocks and taken out does not."""
    blocks: list[int] = []
    monkeypatch.setattr(vision, "_page_locked", lambda block: blocks.append(len(block)) or block.clone())
    tower = towers["qwen3_vl"]
    rng = np.random.default_rng(0)
    shapes = [(56, 56, 3), (84, 56, 3), (56, 112, 3)]
    visuals = tower([rng.integers(0, 255, shape, dtype=np.uint8) for shape in shapes])
    assert len({len(visual.tokens) for visual in visuals}) == 3
    moved = vision.on_host(visuals)
    assert len(blocks) == 3  # tokens and two deep-stacked layers
    assert all(map(same, moved, visuals))


def test_room_is_shared_by_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    whole = vision.host_room()
    assert whole > 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert vision.host_room() == whole // 4


@pytest.mark.usefixtures("fixed")
def test_encoding_a_catalogue_reads_the_next_shard_meanwhile(
    towers: dict[str, VisionTower], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every picture is read once, a shard's before the tower has seen the first of it; and the table is the same."""
    catalogue, folder = shelf(260), families.build("llava", tmp_path / "llava")
    histories, ids = [[i] for i in range(260)], [str(i) for i in range(260)]
    tables = []
    for readers in (0, 2):
        encoder = Encoder.build(BackboneConfig(path=str(folder)), PromptConfig(modalities="image"))
        assert encoder.gallery is not None
        encoder.gallery.readers = readers
        under_way: list[bool] = []
        look_at = encoder.gallery.look_at

        def spied(of: Shelf, items: set[int], gallery: Gallery = encoder.gallery) -> None:
            under_way.append(gallery._coming is not None)  # noqa: B023
            look_at(of, items)  # noqa: B023

        monkeypatch.setattr(encoder.gallery, "look_at", spied)
        catalogue.pictures.read.clear()
        tables.append(encode(encoder, catalogue, histories, ids, tmp_path / f"table-{readers}"))
        assert sorted(catalogue.pictures.read) == list(range(260))
        assert under_way == [False, readers > 0, readers > 0]
    assert np.array_equal(tables[0]["fused"], tables[1]["fused"])


def test_prepared_pictures_are_counted(towers: dict[str, VisionTower]) -> None:
    for tower in towers.values():
        pixels = tower.prepare([picture for picture in shelf(3).pictures if picture is not None])
        assert isinstance(pixels, Pixels) and pixels.pictures == 3
        assert len(tower.look(pixels)) == 3
