import gc
import io
import os
import re
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlm2rec.data.pictures import archives
from vlm2rec.data.pictures.files import Album, open_pictures
from vlm2rec.data.pictures.store import PictureStore, pack
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources.local import Local
from vlm2rec.errors import InputError

Files = Mapping[str, bytes]
KINDS = ("folder", "zip", "tar")


def write(path: Path, files: Files) -> Path:
    """The same files as a folder, a .zip or a .tar, by the ending of the path."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for number, (name, content) in enumerate(files.items()):
                archive.writestr(name, content, zipfile.ZIP_STORED if number % 2 else zipfile.ZIP_DEFLATED)
    elif path.suffix == ".tar":
        with tarfile.open(path, "w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return path


def opened(folder: Path, kind: str, files: Files) -> Album:
    return open_pictures(write(folder / ("all" if kind == "folder" else f"all.{kind}"), files))


def has(album: Album, *names: str | None) -> list[bool]:
    return list(album.has(pl.Series(names, dtype=pl.String)))


FILES = {
    "a.jpg": b"a",
    "b.png": b"b",
    "b.jpeg": b"bb",
    "c.d.JPG": b"c",
    "plain": b"plain",
    "plain.jpg": b"not this",
    "notes.txt": b"t",
    "sub/a.jpg": b"sub",
    "sub/deep/e.webp": b"e",
    "empty.png": b"",
    "mätch 5%.png": b"umlaut",
    ".hidden.png": b"h",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_found_by_its_name_with_or_without_its_ending(kind: str, tmp_path: Path) -> None:
    album = opened(tmp_path, kind, FILES)
    for name, content in FILES.items():
        assert album.read(name) == content
    assert album.read("a") == b"a"
    assert album.read("b") == b"bb"  # .jpeg comes before .png
    assert album.read("c.d") == b"c"
    assert album.read("plain") == b"plain"
    assert album.read("sub/deep/e") == b"e"
    assert album.read("./sub//a.jpg") == b"sub"
    assert album.read("e") == album.read("e.webp") == b"e"  # the only file of that name
    for name in ("c", "notes", "A.jpg", "a.jpg.jpg", "sub", "sub/", "deep/e", "c.d.jpg", "", ".", "mätch"):
        assert album.read(name) is None
        assert has(album, name) == [False]
    assert has(album, "a", None, "gone.jpg", "sub/a.jpg", *FILES) == [True, False, False, True, *[True] * len(FILES)]
    assert has(album) == []
    assert album.has(pl.Series([None, None])).tolist() == [False, False]


LETTERS = st.sampled_from(["a", "b", ".", "/", "..", ".jpg", ".JPG", ".png", "\0", "é", "\n", "$", "\\"])
NAMES = st.lists(LETTERS, max_size=6).map("".join)


@pytest.fixture(scope="module")
def albums(tmp_path_factory: pytest.TempPathFactory) -> list[Album]:
    files = {
        f"{name}": name.encode() for name in ("a.jpg", "a.JPG", "b", "a/b.png", "a/a.jpg.png", "bb/..b.jpg", "é.png")
    }
    folder = tmp_path_factory.mktemp("albums")
    (folder / "outside.png").write_bytes(b"outside")
    (folder / "a.png").write_bytes(b"outside")
    return [opened(folder, kind, files) for kind in KINDS]


@settings(deadline=None, max_examples=300)
@given(names=st.lists(NAMES, max_size=8))
def test_many_names_are_asked_as_one_is_and_none_leads_out(albums: list[Album], names: list[str]) -> None:
    asked = ["../outside.png", "a/../../a.png", "a/a.jpg", "a/a.jpg.png", "a/b", *names]
    for album in albums:
        contents = [album.read(name) for name in asked]
        assert contents[:2] == [None, None]
        assert b"outside" not in contents
        assert has(album, *asked) == [content is not None for content in contents]
        for name, content in zip(asked, contents, strict=True):
            tidy = "/".join(part for part in name.split("/") if part not in ("", "."))
            assert content is None or tidy.encode() in content


def test_absolute_names_lead_nowhere(tmp_path: Path) -> None:
    album = opened(tmp_path, "folder", {"a.jpg": b"a"})
    name = str(tmp_path / "all" / "a.jpg")
    assert album.read(name) is None
    assert has(album, name, "a.jpg") == [False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_is_a_path_a_path_inside_the_only_folder_or_a_base_name(kind: str, tmp_path: Path) -> None:
    files = {"./top/x.jpg": b"x", "top/sub/y.jpg": b"y", "top/one/z.jpg": b"1", "top/two/z.jpg": b"2"}
    files |= {"top/one/w.PNG": b"w", "top/two/v.png": b"v", "top/two/v.jpg": b"V", "top/one/u.png": b"1"}
    files |= {"top/two/u.jpg": b"2", "notes.txt": b"notes", "top/.old/y.jpg": b"old", ".old/x.jpg": b"old"}
    apple = {"__MACOSX/top/._x.jpg": b"junk", "__MACOSX/top/._w.jpg": b"junk"}
    album = opened(tmp_path, kind, {**files, **apple})
    expected = {"top/x.jpg": b"x", "x.jpg": b"x", "x": b"x", "sub/y.jpg": b"y", "y.jpg": b"y", "y": b"y"}
    expected |= {"one/z.jpg": b"1", "top/two/z.jpg": b"2", "two/z": b"2", "w": b"w", "w.PNG": b"w", "v": b"V"}
    expected |= {"one/u": b"1", "two/u": b"2", "u.png": b"1", "u.jpg": b"2", "top/.old/y.jpg": b"old"}
    absent = ["z.jpg", "z", "u", "top", "top/y.jpg", "._w.jpg", "two/y.jpg", "w.png", "", "y.jpg.jpg"]
    for _ in range(2):  # one by one, then all at once
        assert [album.read(name) for name in expected] == list(expected.values())
        assert [album.read(name) for name in absent] == [None] * len(absent)
        assert has(album, *expected, *absent) == [True] * len(expected) + [False] * len(absent)
    doubtful = {name: sorted(files) for name, files in album.ambiguous.items()}
    both = ["top/one/z.jpg", "top/two/z.jpg"]
    assert doubtful == {"z.jpg": both, "z": both, "u": ["top/one/u.png", "top/two/u.jpg"]}


PARTS = st.lists(st.sampled_from(["a", "b", "c", ".h"]), min_size=0, max_size=2)
TREE = st.dictionaries(
    st.builds(lambda parts, name: "/".join([*parts, name]), PARTS, st.sampled_from(["x.jpg", "x.png", "y.JPG", "x"])),
    st.just(b""),
    max_size=8,
)


@settings(deadline=None, max_examples=150)
@given(tree=TREE, together=st.booleans())
def test_a_folder_and_its_archives_find_the_same(tree: dict[str, bytes], together: bool, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("trees")
    files = {name: name.encode() for name in tree if not any(other.startswith(f"{name}/") for other in tree)}
    asked = ["x", "y", "x.jpg", "y.JPG", "a/x", "b/x.jpg", "b/a/x.png", ".h/x", *files]
    found = []
    for kind in KINDS:
        (folder / "all").mkdir(exist_ok=True)
        album = opened(folder, kind, files)
        there = has(album, *asked) if together else []
        contents = [album.read(name) for name in asked]
        assert there in ([], [content is not None for content in contents])
        found.append((contents, {name: sorted(files) for name, files in album.ambiguous.items()}))
    assert found[0] == found[1] == found[2]
    assert found[0][0][8:] == list(files.values())


def test_a_folder_is_not_walked_where_all_names_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    album = opened(tmp_path, "folder", {"a.jpg": b"a", "sub/b.jpg": b"b", "other/c.jpg": b"c"})
    listed: list[str] = []
    scandir = os.scandir

    def counted(path):
        listed.append(Path(path).name)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    assert has(album, "a", "sub/b.jpg", None) == [True, True, False]
    assert album.read("sub/b") == b"b"
    assert sorted(listed) == ["all", "sub"]
    assert has(album, "c") == [True]
    assert set(listed) == {"all", "sub", "other"}
    before = len(listed)
    assert album.read("c") == b"c" and album.read("gone") is None and album.read("gone too") is None
    assert len(listed) == before


def test_folders_that_lead_to_each_other_are_walked_once(tmp_path: Path) -> None:
    album = opened(tmp_path, "folder", {"a/x.jpg": b"x", "a/b/y.jpg": b"y"})
    (tmp_path / "all" / "a" / "up").symlink_to(tmp_path / "all")
    (tmp_path / "all" / "loop").symlink_to(tmp_path / "all" / "loop")
    assert has(album, "x", "y", "z") == [True, True, False]


def test_nested_pictures_make_the_same_data_and_those_of_one_name_are_said(tmp_path: Path) -> None:
    """The layout of H&M, with a picture that is in two folders; as a folder and as both archives."""
    files = {f"0{n % 3}/{n:03}.jpg": picture(n) for n in range(8)} | {"09/000.jpg": picture(9)}
    items = pl.DataFrame({"item_id": [f"{n:03}" for n in range(8)], "title": "T"}).with_columns(image="item_id")
    rows = [(f"u{user}", f"{n:03}", n) for user in range(3) for n in range(8)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    prints = set()
    for kind in KINDS:
        raw = tmp_path / kind / "raw"
        raw.mkdir(parents=True)
        write(raw / ("images" if kind == "folder" else f"images.{kind}"), files)
        items.write_csv(raw / "items.csv")
        log.write_csv(raw / "interactions.csv")
        said: list[str] = []
        made = prepare(Local(raw), tmp_path / kind / "out", k_core=3, notice=said.append)
        assert made.item_ids == [f"{n:03}" for n in range(1, 8)]
        assert made.manifest["dropped"]["item"] == {"picture ambiguous": 1}
        assert any("2 files are called 000 (00/000.jpg, 09/000.jpg)" in line for line in said)
        assert any("dropped 1 of 8 items" in line and "picture ambiguous" in line for line in said)
        prints.add(made.fingerprint)
    assert len(prints) == 1


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_of_two_files_of_one_name_the_later_counts_and_none_outside_is_listed(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"all.{kind}"
    rows = [("a.jpg", b"old"), ("../b.jpg", b"up"), ("/c.jpg", b"root"), ("a.jpg", b"new"), ("d/", b"")]
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
            for name, content in rows:
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w") as archive:
            for name, content in rows:
                member = tarfile.TarInfo(name)
                member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            link = tarfile.TarInfo("e.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
    album = open_pictures(path)
    assert album.read("a.jpg") == b"new"
    assert has(album, "a.jpg", "b.jpg", "../b.jpg", "c.jpg", "/c.jpg", "d", "e.jpg") == [True, *[False] * 6]


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_folder_and_its_archives_pack_to_the_same_bytes(tmp_path: Path) -> None:
    files = {f"{number % 7}/{number}.png": picture(number) for number in range(60)}
    names = [*files, "gone", None]
    packed = []
    for kind in KINDS:
        album = opened(tmp_path, kind, files)
        (tmp_path / f"packed {kind}").mkdir()
        broken = pack(tmp_path / f"packed {kind}", album, names, 16, "aspect")
        assert broken.tolist() == [False] * 60 + [True, False]
        packed.append((tmp_path / f"packed {kind}" / "pictures.bin").read_bytes())
    assert packed[0] == packed[1] == packed[2] != b""
    assert PictureStore(tmp_path / "packed tar").digests == PictureStore(tmp_path / "packed zip").digests


@pytest.mark.parametrize("kind", KINDS)
def test_threads_read_at_the_same_time(kind: str, tmp_path: Path) -> None:
    files = {f"{n}.jpg": bytes([n]) * (1000 + 37 * n) for n in range(200)}
    album = opened(tmp_path, kind, files)
    names = [name for name in files for _ in range(5)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(album.read, names)) == [files[name] for name in names]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_too_large_is_there_but_not_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "LARGEST", 1000)
    monkeypatch.setattr("vlm2rec.data.pictures.files.LARGEST", 1000)
    album = opened(tmp_path, kind, {"bomb.png": bytes(100_000), "good.png": bytes(1000)})
    assert has(album, "bomb.png", "good.png") == [True, True]
    assert album.read("bomb.png") is None
    assert album.read("good.png") == bytes(1000)


def test_a_zip_that_lies_about_a_size_unpacks_no_more_than_it_said(tmp_path: Path) -> None:
    path = write(tmp_path / "all.zip", {"bomb.png": bytes(1_000_000), "good.png": b"good"})
    content = path.read_bytes().replace(struct.pack("<I", 1_000_000), struct.pack("<I", 10))
    path.write_bytes(content)
    album = open_pictures(path)
    assert album.read("bomb.png") is None
    assert album.read("good.png") == b"good"


def test_a_bomb_that_lies_takes_no_memory(tmp_path: Path) -> None:
    size = 100_000_000
    path = write(tmp_path / "all.zip", {"bomb.png": bytes(size)})
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", size), struct.pack("<I", 10)))
    album = open_pictures(path)
    tracemalloc.start()
    try:
        assert album.read("bomb.png") is None
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_zip_that_speaks_of_places_beyond_all_numbers_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "all.zip", {"a.png": b"a"})
    content = path.read_bytes()
    start = content.index(b"PK\1\2")
    entry = bytearray(content[start : start + 46])
    extra = struct.pack("<HHQ", 1, 8, 2**64 - 1)  # where sizes of 8 bytes stand
    struct.pack_into("<I", entry, 24, 0xFFFFFFFF)
    struct.pack_into("<H", entry, 30, len(extra))
    end = bytearray(content[content.index(b"PK\5\6") :])
    struct.pack_into("<I", end, 12, len(entry) + len("a.png") + len(extra))
    path.write_bytes(content[:start] + entry + b"a.png" + extra + end)
    with pytest.raises(InputError, match=r"all\.zip: says that files lie beyond its end; fetch it again"):
        open_pictures(path)


def test_a_damaged_picture_in_a_sound_zip_is_only_broken(tmp_path: Path) -> None:
    path = write(tmp_path / "all.zip", {"a.png": picture(1), "b.png": picture(2)})
    content = bytearray(path.read_bytes())
    content[100] ^= 255
    path.write_bytes(content)
    album = open_pictures(path)
    assert album.read("a.png") is None
    assert album.read("b.png") == picture(2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("all.tar.gz", "cannot be read one by one; unpack it"),
        ("all.TGZ", "cannot be read one by one; unpack it"),
        ("all.7z", "cannot be read one by one; unpack it"),
        ("all.txt", "give a folder, a .zip or a .tar"),
        ("all.zip", "cannot be read as .zip (File is not a zip file); fetch it again"),
        ("all.tar", "all.tar: is cut short; fetch it again"),
    ],
)
def test_what_is_no_archive_is_refused_in_one_line(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"this is no archive")
    with pytest.raises(InputError, match=re.escape(message)) as error:
        open_pictures(tmp_path / name)
    assert "\n" not in str(error.value)
    assert str(tmp_path / name) in str(error.value)


def test_an_archive_that_is_not_there_is_an_error_and_a_folder_is_empty(tmp_path: Path) -> None:
    for name in ("gone.zip", "gone.tar"):
        with pytest.raises(InputError, match=r"gone\.(zip|tar): cannot be read \(No such file"):
            open_pictures(tmp_path / name)
    assert has(open_pictures(tmp_path / "gone"), "a.jpg") == [False]
    assert has(open_pictures(None), "a.jpg") == [False]
    assert open_pictures(None).read("a.jpg") is None


def test_an_encrypted_or_oddly_packed_zip_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "locked.zip", {"a.png": b"a"})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"locked\.zip: is encrypted \('a\.png'\); unpack it"):
        open_pictures(path)
    with zipfile.ZipFile(tmp_path / "odd.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.png", b"a")
    with pytest.raises(InputError, match=r"odd\.zip: 'a\.png' is packed in a rare way \(14\); unpack it"):
        open_pictures(tmp_path / "odd.zip")


def test_empty_archives_hold_nothing(tmp_path: Path) -> None:
    for kind in ("zip", "tar"):
        assert has(opened(tmp_path, kind, {}), "a.jpg", None) == [False, False]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_damaged_archives_end_in_one_line_or_in_broken_pictures(kind: str, tmp_path: Path) -> None:
    files = {f"top/{number}.png": picture(number) for number in range(5)}
    files[f"top/{'long' * 40}.png"] = b"a name too long for a plain header"
    whole = write(tmp_path / f"whole.{kind}", files).read_bytes()
    rng = np.random.default_rng(0)
    heads = [match.start() for match in re.finditer(b"PK" if kind == "zip" else b"ustar", whole)]
    refused = read = 0
    for case in range(800):
        content = bytearray(whole)
        if case % 4 == 0:
            content = content[: rng.integers(len(content))]
        for _ in range(rng.integers(0 if case % 4 == 0 else 1, 8)):
            near = heads[rng.integers(len(heads))] + rng.integers(-260 if kind == "tar" else 0, 60)
            place = near if case % 2 else rng.integers(len(content))
            if 0 <= place < len(content):
                content[place] = rng.choice([0, 255, 128, rng.integers(256)])
        path = tmp_path / f"damaged.{kind}"
        path.write_bytes(content)
        try:
            album = open_pictures(path)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        there = has(album, *files)
        contents = [album.read(name) for name in files]
        assert all(known or content is None for known, content in zip(there, contents, strict=True))
        if kind == "zip":  # a tar has no checksums of contents
            assert all(content in (None, files[name]) for name, content in zip(files, contents, strict=True))
        read += sum(content is not None for content in contents)
    assert refused > 50
    assert read > 500


def test_a_folder_is_listed_as_the_file_system_has_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "all", {"a.jpg": b"a", "sub/b.jpg": b"b"})
    (folder / "link.jpg").symlink_to(folder / "a.jpg")
    (folder / "other").symlink_to(folder / "sub")
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "folder.jpg").mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.jpg")).touch()  # a name that is no Unicode
    absent = ["gone.jpg", "loop.jpg", "folder.jpg", "a.jpg/b.jpg", "x" * 300, "x" * 300 + "/b"]
    names = ["a", "link.jpg", "other/b", *absent]
    album = open_pictures(folder)
    assert has(album, *names) == [True, True, True, *[False] * 6]
    assert [album.read(name) is not None for name in names] == [True, True, True, *[False] * 6]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_listed_is_an_error(tmp_path: Path) -> None:
    folder = write(tmp_path / "all", {"a.jpg": b"a"})
    folder.chmod(0o300)
    with pytest.raises(InputError, match=r"cannot be listed \(Permission denied\); check its rights"):
        has(open_pictures(folder), "a.jpg")
    folder.chmod(0o700)


def test_an_archive_is_closed_when_nobody_holds_it(tmp_path: Path) -> None:
    path = write(tmp_path / "all.zip", {"a.jpg": b"a"})
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        open_pictures(path).read("a.jpg")
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_drawn_pictures_are_there_whatever_their_name(tmp_path: Path) -> None:
    album = open_pictures(lambda name: Image.new("RGB", (len(name), 2)))
    assert has(album, "mug", "", None) == [True, False, False]
    drawn = album.read("mug")
    assert isinstance(drawn, Image.Image)
    assert drawn.size == (3, 2)
    assert album.threads == 1
