import io
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from vlm2rec.data.dataset import Dataset
from vlm2rec.data.pictures import likeness
from vlm2rec.data.pictures.files import open_pictures
from vlm2rec.data.pictures.likeness import alike, differing, hashes, near_pairs, thumbnails
from vlm2rec.data.pictures.lookalikes import MANY, LookAlikes, _stars, look_alike, placeholder_rows
from vlm2rec.data.pictures.sheet import write_sheet
from vlm2rec.data.pictures.store import PictureStore, pack
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources.local import Local
from vlm2rec.errors import InputError

WORDS = ("amber", "birch", "cedar", "delta", "fjord", "grove", "haven", "inlet", "jetty", "knoll", "larch", "oak")


def scene(seed: int, width: int = 240, height: int = 320) -> Image.Image:
    """A picture like no other: coarse coloured noise, smooth as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def on_a_page(seed: int) -> Image.Image:
    """A symmetric thing in the middle of a white page, as shops show them."""
    half = np.asarray(scene(seed, 160, 160)).astype(int)
    page = Image.new("RGB", (320, 320), (255, 255, 255))
    page.paste(Image.fromarray(((half + half[:, ::-1]) // 2).astype(np.uint8)), (80, 80))
    return page


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return content.getvalue()


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def unlike(number: int) -> str:
    """A title that has nothing in common with its neighbours."""
    return f"{WORDS[number % 12]} {WORDS[(number * 5 + 3) % 12]} {number}"


def packed(folder: Path, files: Sequence[bytes | None], fit: str = "squash") -> Path:
    raw, out = folder / "raw", folder / "packed"
    raw.mkdir()
    out.mkdir()
    for number, content in enumerate(files):
        if content is not None:
            (raw / f"{number}.jpg").write_bytes(content)
    names = [None if content is None else f"{number}.jpg" for number, content in enumerate(files)]
    assert not pack(out, open_pictures(raw), names, 64, fit).any()  # type: ignore[arg-type]
    return out


def prepared(folder: Path, files: Sequence[bytes], titles: Sequence[str] | None = None) -> Dataset:
    """A data set of which every item has a picture and enough events to stay."""
    raw = folder / "raw"
    (raw / "images").mkdir(parents=True)
    for number, content in enumerate(files):
        (raw / "images" / f"{number}.jpg").write_bytes(content)
    ids = [f"i{number}" for number in range(len(files))]
    given_titles = titles or [unlike(number) for number in range(len(files))]
    table = {"item_id": ids, "title": given_titles, "image": [f"{number}.jpg" for number in range(len(files))]}
    pl.DataFrame(table).write_parquet(raw / "items.parquet")
    users = [f"u{number // 3}" for number in range(3 * len(ids))]
    events = {"user_id": users, "item_id": (ids * 3), "timestamp": range(len(users))}
    pl.DataFrame(events).write_parquet(raw / "interactions.parquet")
    return prepare(Local(raw), folder / "data", k_core=0, picture_size=64)


def groups_of(report: LookAlikes) -> list[set[str]]:
    return [set(own["item_id"]) for own in report.groups.partition_by("group", maintain_order=True)]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    count=st.sampled_from([0, 1, 2, 3, 40, 150]),
    distance=st.integers(0, 12),
    kept=st.integers(0, 4),
)
def test_all_pairs_of_near_hashes_are_found_once_however_they_are_sorted(
    seed: int, count: int, distance: int, kept: int
) -> None:
    rng = np.random.default_rng(seed)
    few = rng.integers(0, 2**64, 1 + count // 5, dtype=np.uint64)
    codes = few[rng.integers(0, len(few), count)]
    for _ in range(distance + 2):
        flips = np.uint64(1) << rng.integers(0, 64, count, dtype=np.uint64)
        codes = codes ^ np.where(rng.random(count) < 0.5, flips, np.uint64(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likeness, "_blocks_kept", lambda count, distance: min(kept, 2) if distance > 6 else kept)
        one, other = near_pairs(codes, distance)
        odd_one, odd_other = near_pairs(codes, distance, lambda one, other: (one + other) % 2 == 1)
    naive = [
        (i, j)
        for i in range(count)
        for j in range(i + 1, count)
        if (int(codes[i]) ^ int(codes[j])).bit_count() <= distance
    ]
    assert sorted(zip(one.tolist(), other.tolist(), strict=True)) == naive
    odd = [(i, j) for i, j in naive if (i + j) % 2]
    assert sorted(zip(odd_one.tolist(), odd_other.tolist(), strict=True)) == odd


def test_more_blocks_are_sorted_by_where_there_are_more_pictures() -> None:
    chosen = [likeness._blocks_kept(count, 8) for count in (10, 1_000, 100_000, 1_000_000, 10_000_000)]
    assert chosen == sorted(chosen)
    assert chosen[0] == 0
    assert chosen[-1] >= 3


def test_planted_pairs_are_found_among_many_in_little_time() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**64, 50_000, dtype=np.uint64)
    sources = rng.choice(20_000, 90, replace=False)
    for number, source in enumerate(sources):
        flips = rng.choice(64, number % 10, replace=False).astype(np.uint64)  # 0 to 9 bits; 9 are too many
        codes[30_000 + number] = codes[source] ^ np.bitwise_or.reduce(np.uint64(1) << flips, initial=np.uint64(0))
    found = set(zip(*(rows.tolist() for rows in near_pairs(codes, 8)), strict=True))
    for number, source in enumerate(sources.tolist()):
        assert ((source, 30_000 + number) in found) == (number % 10 < 9)


def test_small_copies_are_means_of_parts_and_hashes_forget_brightness_and_contrast() -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (64, 32, 3), dtype=np.uint8)
    small, there = thumbnails([pixels, None, np.full((8, 8, 3), 7, np.uint8)])
    assert there.tolist() == [True, False, True]
    assert np.abs(small[0] - pixels.reshape(16, 4, 16, 2, 3).mean((1, 3))).max() <= 1
    assert (small[2] == 7).all()
    scenes = np.stack([np.asarray(scene(n).resize((16, 16))) for n in range(40)]) // 2
    changed = np.concatenate([scenes, (scenes * 1.4 + 20).astype(np.uint8)])
    assert (differing(*np.split(hashes(changed), 2)) <= 2).all()
    rows = np.arange(40)
    assert (alike(changed, rows, rows + 40) > 0.999).all()
    assert (alike(changed, rows, np.roll(rows, 1)) < 0.9).all()
    assert hashes(scenes[:0]).shape == (0,)


def test_pictures_saved_anew_are_found_and_others_are_not(tmp_path: Path) -> None:
    """Also symmetric things on a white page: half of their frequencies are noise."""
    originals = [scene(number) for number in range(30)] + [on_a_page(number) for number in range(30, 60)]
    changes = [
        lambda image: jpeg(image, 25),
        lambda image: jpeg(image.resize((image.width // 3, image.height // 3)), 80),
        lambda image: png(ImageEnhance.Brightness(image).enhance(0.8)),
        lambda image: png(image.resize((image.width * 2, image.height * 2))),
        lambda image: jpeg(image.crop((2, 2, image.width - 2, image.height - 2))),
    ]
    copies = [changes[number % 5](image) for number, image in enumerate(originals)]
    report = look_alike(prepared(tmp_path, [png(image) for image in originals] + copies))
    expected = [{f"i{number}", f"i{number + 60}"} for number in range(60)]
    assert sorted(groups_of(report), key=sorted) == sorted(expected, key=sorted)
    assert set(report.groups["kind"]) == {"near"}
    assert report.counts["groups"] == 60
    assert report.counts["exact_groups"] == 0
    assert report.placeholders.is_empty()


def test_hashes_of_things_on_white_pages_tell_them_apart_and_not_their_copies() -> None:
    """All have one layout, which must not count, and half of their frequencies are noise, which must not either."""
    pages = [on_a_page(number) for number in range(60)]
    copies = [Image.open(io.BytesIO(jpeg(page.resize((200, 200)), 60))) for page in pages]
    small, _ = thumbnails([np.asarray(image) for image in (*pages, *copies)])
    page_codes, copy_codes = np.split(hashes(small), 2)
    assert (differing(page_codes, copy_codes) <= 4).all()
    one, other = np.triu_indices(60, 1)
    assert (differing(page_codes[one], page_codes[other]) <= 8).mean() < 0.1


@settings(deadline=None, max_examples=200)
@given(count=st.integers(1, 12), edges=st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11))), data=st.data())
def test_groups_are_stars_the_largest_first(count: int, edges: set[tuple[int, int]], data: st.DataObject) -> None:
    pairs = sorted({(min(i, j), max(i, j)) for i, j in edges if i != j and max(i, j) < count})
    size = data.draw(st.lists(st.integers(1, 5), min_size=count, max_size=count))
    one, other = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    near = {i: {j for pair in pairs if i in pair for j in pair if j != i} for i in range(count)}
    naive, free = list(range(count)), set(range(count))
    weights = {i: size[i] + sum(size[j] for j in near[i]) for i in range(count)}
    for node in sorted(range(count), key=lambda i: (-weights[i], i)):
        if node in free:
            for member in (near[node] & free) | {node}:
                naive[member] = node
            free -= near[node] | {node}
    assert _stars(count, one, other, np.array(size)).tolist() == naive


def test_other_colours_are_another_picture(tmp_path: Path) -> None:
    """The brightness is the same, hence the hash; the colours are not."""
    grey = np.asarray(scene(0).convert("L")).astype(int) // 2
    tint = np.array([[40, 0, 0], [0, 20, 0], [0, 0, 105]])  # equally bright
    shape = np.asarray(scene(1).convert("L")) > 128
    files = [
        png(Image.fromarray((grey[..., None] + 40 + shape[..., None] * colour).astype(np.uint8))) for colour in tint
    ]
    small, _ = thumbnails([np.asarray(Image.open(io.BytesIO(content))) for content in files])
    codes = hashes(np.concatenate([small, thumbnails([np.asarray(scene(n)) for n in range(20)])[0]]))
    assert (differing(codes[:1], codes[:3]) <= 2).all()
    assert groups_of(look_alike(prepared(tmp_path, files * 2))) == [{"i0", "i3"}, {"i1", "i4"}, {"i2", "i5"}]


def test_a_group_holds_what_looks_like_its_first_picture_and_is_no_chain(tmp_path: Path) -> None:
    """Crops of crops: each looks like the next, the ends do not look alike."""
    image = scene(3, 300, 400)
    chain = [png(image.crop((step, step, 300 - step, 400 - step))) for step in range(0, 60, 3)]
    others = [png(scene(number)) for number in range(10, 30)]
    report = look_alike(prepared(tmp_path, chain + others))
    found = groups_of(report)
    assert len(found) > 1
    assert all(int(name[1:]) < len(chain) for group in found for name in group)
    assert (report.groups["distance"] <= 8).all()
    assert (report.groups["alike"] > 0.95).all()
    first = report.groups.group_by("group", maintain_order=True).first()
    assert first["distance"].to_list() == [0] * len(found)
    assert [len(group) for group in found] == sorted(map(len, found), reverse=True)
    assert sum(map(len, found)) == len(set.union(*found))


def test_the_same_file_is_exact_and_counted_as_one(tmp_path: Path) -> None:
    twice, anew = png(scene(0)), jpeg(scene(0), 60)
    files = [png(scene(1)), twice, png(scene(2)), twice, anew, jpeg(scene(2), 50)]
    report = look_alike(prepared(tmp_path, files))
    first, second = report.groups.partition_by("group", maintain_order=True)
    assert dict(first.select("item_id", "kind").iter_rows()) == {"i1": "exact", "i3": "exact", "i4": "near"}
    assert dict(second.select("item_id", "kind").iter_rows()) == {"i2": "near", "i5": "near"}
    assert report.counts == {
        **{"items": 6, "pictures": 6, "files": 5, "groups": 2, "grouped_items": 5, "exact_groups": 1, "exact_items": 2},
        **{"placeholders": 0, "tiny": 0, "plain": 0, "shared": 0},
    }
    assert len(report.lines()) == 4
    assert "groups 2, items 5" in "\n".join(report.lines())


def no_image() -> Image.Image:
    sign = Image.new("RGB", (200, 200), (236, 236, 236))
    sign.paste((150, 150, 150), (60, 50, 140, 120))
    sign.paste((90, 90, 90), (50, 140, 150, 150))
    return sign


def test_a_picture_that_items_of_unrelated_titles_share_is_a_placeholder(tmp_path: Path) -> None:
    sign, thing = no_image(), png(scene(0))
    signs = [jpeg(sign, 50 + 4 * number) if number % 2 else jpeg(sign.resize((90, 90))) for number in range(8)]
    files = [*signs, *[thing] * 8, *[png(scene(number)) for number in range(1, 30)]]
    titles = [unlike(number) for number in range(len(files))]
    titles[8:16] = [
        f"Harbour enamel kettle, {colour}"
        for colour in ["red", "blue", "teal", "pink", "grey", "black", "white", "green"]
    ]
    dataset = prepared(tmp_path, files, titles)
    report = look_alike(dataset)
    assert groups_of(report) == [{f"i{n}" for n in range(8)}, {f"i{n}" for n in range(8, 16)}]
    assert report.placeholders["item_id"].to_list() == [f"i{number}" for number in range(8)]
    assert set(report.placeholders["why"]) == {"many unrelated titles"}
    assert set(report.placeholders["count"]) == {8}
    assert report.counts["placeholders"] == report.counts["shared"] == 8
    rows = placeholder_rows(dataset.path, pl.Series(titles))
    assert rows["row"].to_list() == list(range(8))


def test_too_few_or_missing_titles_tell_nothing(tmp_path: Path) -> None:
    sign = jpeg(no_image())
    folder = packed(tmp_path, [sign] * (MANY + 3) + [jpeg(scene(number)) for number in range(20)])
    titles = [unlike(number) for number in range(MANY + 23)]
    for named in range(MANY + 4):
        some = [title if number < named or number >= MANY + 3 else "" for number, title in enumerate(titles)]
        expected = list(range(MANY + 3 if named >= MANY else 0))
        assert placeholder_rows(folder, pl.Series(some))["row"].to_list() == expected
    same = ["Amber lamp"] * (MANY + 3) + titles[MANY + 3 :]
    assert placeholder_rows(folder, pl.Series(same)).is_empty()


def test_titles_without_spaces_are_compared_by_their_letters(tmp_path: Path) -> None:
    folder = packed(tmp_path, [jpeg(no_image())] * 6 + [jpeg(scene(number)) for number in range(20)])
    others = [chr(0x5000 + 40 * number) * 3 + chr(0x6000 + number) for number in range(20)]
    variants = [f"珈琲豆深煎{colour}袋" for colour in "赤青緑白黒茶"]
    unrelated = ["珈琲豆", "自転車", "毛布", "鉛筆削", "植木鉢", "歯磨粉"]
    assert placeholder_rows(folder, pl.Series(variants + others)).is_empty()
    assert placeholder_rows(folder, pl.Series(unrelated + others)).height == 6


def test_in_a_narrow_catalogue_titles_have_more_in_common_and_are_unrelated_all_the_same(tmp_path: Path) -> None:
    """A shop of two brands and three kinds: no two titles are without a common word."""
    rng = np.random.default_rng(0)
    brands, kinds, uses = ("Pebble", "Orbit"), ("lamp", "bag", "mug"), ("work", "travel", "camping", "parties")
    titles = [" ".join([rng.choice(brands), rng.choice(kinds), rng.choice(uses)]) for _ in range(60)]
    folder = packed(tmp_path, [jpeg(no_image())] * 20 + [jpeg(scene(number)) for number in range(40)])
    assert placeholder_rows(folder, pl.Series(titles))["row"].to_list() == list(range(20))


@pytest.mark.parametrize("fit", ["squash", "letterbox", "aspect"])
def test_plain_and_tiny_pictures_are_placeholders_however_they_were_fitted(fit: str, tmp_path: Path) -> None:
    speck = Image.new("RGB", (400, 400), (255, 255, 255))
    speck.paste((120, 110, 60), (195, 190, 205, 203))  # an earring on a white page: 0.1% of it
    gradient = Image.fromarray(np.linspace(60, 200, 200).astype(np.uint8)[:, None].repeat(300, 1)).convert("RGB")
    files: Mapping[str, bytes | None] = {
        "white": jpeg(Image.new("RGB", (300, 300), (255, 255, 255))),
        "grey, wide": jpeg(Image.new("RGB", (500, 200), (128, 130, 126)), 30),
        "gradient": jpeg(gradient),
        "spacer": png(Image.new("RGB", (1, 1), (0, 0, 0))),
        "icon": png(scene(1, 15, 40)),
        "earring": png(speck),
        "scene": jpeg(scene(2)),
        "small scene": jpeg(scene(3, 40, 30)),
        "none": None,
    }
    found = placeholder_rows(packed(tmp_path, list(files.values()), fit), pl.Series(list(files)))
    names = list(files)
    assert {names[row]: why for row, why in found.select("row", "why").iter_rows()} == {
        "white": "plain",
        "grey, wide": "plain",
        "gradient": "plain",
        "spacer": "tiny",
        "icon": "tiny",
    }
    assert found["count"].to_list() == [3, 3, 3, 2, 2]


def test_a_folder_without_pictures_has_no_look_alikes(tmp_path: Path) -> None:
    for number, files in enumerate(([], [None, None])):
        (tmp_path / str(number)).mkdir()
        folder = packed(tmp_path / str(number), files)
        assert placeholder_rows(folder, pl.Series(["a", "b"][: len(files)], dtype=pl.String)).is_empty()
        assert len(PictureStore(folder)) == len(files)


def test_a_distance_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, [png(scene(number)) for number in range(3)])
    for distance in (-1, 17):
        with pytest.raises(InputError, match=f"distance {distance}: give 0 to 16"):
            look_alike(dataset, distance)


class Page(HTMLParser):
    """What a page shows: pictures, and whether each tag is closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures.append(dict(attrs)["src"] or "")
        elif tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_sheet_shows_each_group_and_needs_no_other_file(tmp_path: Path) -> None:
    sign = jpeg(no_image())
    files = [*[sign] * 15, png(scene(0)), jpeg(scene(0)), png(scene(1)), png(Image.new("RGB", (90, 90)))]
    titles = [unlike(number) for number in range(len(files))]
    titles[15] = "<script>alert('x')</script> & Söhne"
    dataset = prepared(tmp_path, files, titles)
    report = look_alike(dataset)
    path = write_sheet(report, dataset, tmp_path / "new" / "sheet.html")
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert len(page.pictures) == 12 + 1 + 2  # twelve of the signs, the plain one, and a group of two
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in page.pictures)
    assert "and 3 more" in text
    assert "<script" not in text
    assert "Söhne" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    with pytest.raises(InputError, match="cannot be written"):
        write_sheet(report, dataset, path / "inside.html")
