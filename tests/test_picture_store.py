import io
import pickle
import threading
import time
import warnings
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm2rec.data.pictures import store as store_module
from vlm2rec.data.pictures.ahead import ReadAhead
from vlm2rec.data.pictures.files import open_pictures
from vlm2rec.data.pictures.fitting import FITS, fit_picture
from vlm2rec.data.pictures.store import PictureFiles, PictureStore, decode, keep, pack, read_index
from vlm2rec.errors import InputError


def half_and_half(width: int, height: int) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 0, 255), (width // 2, 0, width, height))
    return image


@pytest.mark.parametrize(
    ("size", "shape"), [((100, 50), (32, 64)), ((50, 100), (64, 32)), ((10, 10), (64, 64)), ((900, 3), (8, 64))]
)
def test_the_three_fits(size: tuple[int, int], shape: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 20, 30))
    squash, letterbox, aspect = (fit_picture(image, 64, fit) for fit in FITS)
    assert squash.shape == letterbox.shape == (64, 64, 3)
    assert (squash == (10, 20, 30)).all()
    assert aspect.shape == (*shape, 3)
    assert (aspect == (10, 20, 30)).all()
    inside = (letterbox == (10, 20, 30)).all(axis=2)
    assert (letterbox[~inside] == 255).all()
    rows, columns = inside.any(axis=1).sum(), inside.any(axis=0).sum()
    assert inside.sum() == rows * columns
    assert max(rows, columns) == 64
    assert abs(rows / columns - size[1] / size[0]) < 0.03
    middle = (letterbox.shape[0] - 1) / 2
    assert abs(np.flatnonzero(inside.any(axis=1)).mean() - middle) <= 0.5
    assert abs(np.flatnonzero(inside.any(axis=0)).mean() - middle) <= 0.5


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_in_exif_is_honoured(turn: int, tmp_path: Path) -> None:
    """A camera held in any of the eight ways shows the same scene."""
    upright = half_and_half(64, 32)
    upright.paste((0, 255, 0), (0, 0, 16, 8))
    undo = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}  # Image.Transpose that a camera's turn amounts to
    stored = upright
    for step in undo.get(turn, []):
        stored = stored.transpose(Image.Transpose(step))
    exif = Image.Exif()
    exif[0x0112] = turn
    stored.save(tmp_path / "x.jpg", exif=exif, quality=100, subsampling=0)
    (found,) = decode(open_pictures(tmp_path), ["x.jpg"], 64, "aspect")
    assert found is not None
    assert found.pixels.shape == (32, 64, 3)
    assert np.abs(found.pixels.astype(int) - np.asarray(upright)).mean() < 6


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    grey = np.full((20, 20), 128, np.uint8)
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    half = Image.new("RGBA", (20, 20), (0, 0, 0, 128))
    palette = Image.new("P", (20, 20), 0)
    palette.putpalette([200, 100, 50, 0, 0, 0])
    see_through = palette.copy()
    see_through.info["transparency"] = 0
    cases = {
        "L": (Image.fromarray(grey), (128, 128, 128)),
        "LA": (Image.fromarray(np.stack([grey, 0 * grey], axis=2), "LA"), (255, 255, 255)),
        "I;16": (Image.fromarray(grey.astype(np.uint16) * 257), (128, 128, 128)),
        "1": (Image.new("1", (20, 20), 1), (255, 255, 255)),
        "CMYK": (Image.new("CMYK", (20, 20), (0, 255, 255, 0)), (255, 0, 0)),
        "RGBA": (clear, (255, 255, 255)),
        "half": (half, (127, 127, 127)),
        "P": (palette, (200, 100, 50)),
        "P clear": (see_through, (255, 255, 255)),
    }
    for name, (image, colour) in cases.items():
        for fit in FITS:
            pixels = fit_picture(image, 16, fit)
            assert pixels.dtype == np.uint8
            assert np.abs(pixels.astype(int) - colour).max() <= 1, name


GREY = np.array([[0, 0.25], [0.5, 1]])
AS_8 = [0, 64, 128, 255]


def wide(values: object, dtype: type) -> Image.Image:
    return Image.fromarray(np.kron(np.asarray(values), np.ones((8, 8))).astype(dtype))


MODES: dict[str, tuple[str, Image.Image, str, list[int] | None]] = {
    "16-bit PNG": ("png", wide(np.rint(GREY * 65535), np.uint16), "I;16", AS_8),
    "16-bit TIFF": ("tif", wide(np.rint(GREY * 65535), np.uint16), "I;16", AS_8),
    "16-bit TIFF, dark": ("tif", wide([[0, 300], [257, 514]], np.uint16), "I;16", [0, 1, 1, 2]),
    "16-bit PNG of 8 bits": ("png", wide(np.rint(GREY * 255), np.uint16), "I;16", AS_8),
    "32-bit, to 255": ("tif", wide(np.rint(GREY * 255), np.int32), "I", AS_8),
    "32-bit, to 65535": ("tif", wide(np.rint(GREY * 65535), np.int32), "I", AS_8),
    "32-bit, above": ("tif", wide(GREY * 1_000_000, np.int32), "I", None),
    "32-bit, below": ("tif", wide(GREY * 255 - 9, np.int32), "I", None),
    "float, to 1": ("tif", wide(GREY, np.float32), "F", AS_8),
    "float, to 255": ("tif", wide(GREY * 255, np.float32), "F", AS_8),
    "float, to 65535": ("tif", wide(GREY * 65535, np.float32), "F", AS_8),
    "float, above": ("tif", wide(GREY * 1e6, np.float32), "F", None),
    "float, below": ("tif", wide(GREY - 0.1, np.float32), "F", None),
    "float, NaN": ("tif", wide(np.where(GREY == 0.5, np.nan, GREY), np.float32), "F", None),
    "float, infinite": ("tif", wide(np.where(GREY == 1, np.inf, GREY), np.float32), "F", None),
    "float, black": ("tif", wide(GREY * 0, np.float32), "F", [0] * 4),
    "8-bit": ("png", wide(np.rint(GREY * 255), np.uint8), "L", AS_8),
    "1-bit": ("png", wide([[0, 1], [1, 0]], bool), "1", [0, 255, 255, 0]),
}


@pytest.mark.parametrize("case", MODES)
def test_grey_of_any_depth_is_scaled_or_broken(case: str, tmp_path: Path) -> None:
    """From a file, as a user's is: never clipped to black and white."""
    ending, image, mode, expected = MODES[case]
    image.save(tmp_path / f"x.{ending}")
    with Image.open(tmp_path / f"x.{ending}") as opened:
        assert opened.mode[0] == mode[0]  # older Pillows say I of 16 bits too
    (found,) = decode(open_pictures(tmp_path), [f"x.{ending}"], 16, "squash")
    broken = pack(tmp_path, open_pictures(tmp_path), [f"x.{ending}"], 16, "squash")
    assert (found is None) == (expected is None) == broken[0]
    if found is not None:
        corners = found.pixels[[3, 3, 12, 12], [3, 12, 3, 12]]
        assert corners.tolist() == [[value] * 3 for value in expected or ()]


def coloured(mode: str) -> Image.Image:
    """Left half red, right half blue, or clear where the mode has that."""
    image = half_and_half(16, 16)
    if mode in ("RGBA", "LA", "PA"):
        image.putalpha(Image.fromarray(np.where(np.arange(16) < 8, 255, 0).astype(np.uint8)[None].repeat(16, 0)))
    return image if image.mode == mode else image.convert(mode)


@pytest.mark.parametrize(
    ("ending", "mode", "left", "right"),
    [
        ("png", "RGB", (255, 0, 0), (0, 0, 255)),
        ("png", "RGBA", (255, 0, 0), (255, 255, 255)),
        ("png", "LA", (76, 76, 76), (255, 255, 255)),
        ("png", "P", (255, 0, 0), (0, 0, 255)),
        ("gif", "P", (255, 0, 0), (0, 0, 255)),
        ("tif", "CMYK", (255, 0, 0), (0, 0, 255)),
        ("jpg", "CMYK", (254, 0, 0), (0, 0, 254)),
        ("webp", "RGBA", (255, 0, 0), (255, 255, 255)),
        ("tif", "YCbCr", (254, 0, 0), (0, 0, 254)),
    ],
)
def test_colours_of_any_mode_are_right(
    ending: str, mode: str, left: tuple[int, ...], right: tuple[int, ...], tmp_path: Path
) -> None:
    options = {"lossless": True} if ending == "webp" else {"quality": 100, "subsampling": 0} if ending == "jpg" else {}
    coloured(mode).save(tmp_path / f"x.{ending}", **options)
    (found,) = decode(open_pictures(tmp_path), [f"x.{ending}"], 16, "squash")
    assert found is not None
    assert np.abs(found.pixels[8, [3, 12]].astype(int) - [left, right]).max() <= 3


def test_a_palette_with_a_transparent_colour_lies_on_white(tmp_path: Path) -> None:
    image = half_and_half(16, 16).convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    for ending in ("png", "gif"):
        image.save(tmp_path / f"x.{ending}", transparency=image.getpixel((12, 8)))
        (found,) = decode(open_pictures(tmp_path), [f"x.{ending}"], 16, "squash")
        assert found is not None
        assert found.pixels[8, [3, 12]].tolist() == [[255, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_of_a_moving_picture_the_first_frame_counts(ending: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    more = {"lossless": True} if ending == "webp" else {}
    frames[0].save(tmp_path / f"x.{ending}", save_all=True, append_images=frames[1:], duration=100, **more)
    (found,) = decode(open_pictures(tmp_path), [f"x.{ending}"], 16, "squash")
    assert found is not None
    assert (found.pixels == (255, 0, 0)).all()


def test_a_big_photograph_is_decoded_small_and_right(tmp_path: Path) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    big = Image.fromarray(coarse).resize((480, 480), Image.Resampling.BICUBIC)
    big.save(tmp_path / "big.jpg", quality=95, subsampling=0)
    (found,) = decode(open_pictures(tmp_path), ["big.jpg"], 64, "squash")
    assert found is not None
    exact = np.asarray(big.resize((64, 64), Image.Resampling.BICUBIC))
    assert np.abs(found.pixels.astype(int) - exact).mean() < 1.5


def test_broken_pictures_are_counted_not_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tmp_path / "images"
    images.mkdir()
    half_and_half(40, 40).save(images / "good.png")
    half_and_half(400, 400).save(images / "whole.jpg")
    half_and_half(200, 200).save(images / "bomb.png")
    half_and_half(120, 120).save(images / "suspect.png")
    (images / "cut.jpg").write_bytes((images / "whole.jpg").read_bytes()[:900])
    (images / "text.png").write_text("<html>not found</html>")
    (images / "empty.png").write_bytes(b"")
    (images / "whole.jpg").unlink()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 100)
    names = ["good.png", None, "cut.jpg", "text.png", "empty.png", "bomb.png", "suspect.png", "gone.png", "good.png"]
    told = []
    album = open_pictures(images)
    broken = pack(tmp_path, album, names, 8, "squash", lambda done, total: told.append((done, total)))
    assert broken.tolist() == [False, False, True, True, True, True, True, True, False]
    assert told == [(n, 8) for n in range(1, 9)]
    store = PictureStore(tmp_path)
    assert [picture is not None for picture in store] == [True, *[False] * 7, True]
    assert np.array_equal(store[0], store[8])
    assert store.digests[0] == store.digests[8] != store.digests[1]


def test_store_gives_back_what_was_packed_in_any_order(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    names = [f"{n}.png" for n in range(70)]
    for name in names:
        shape = rng.integers(5, 40, 2)
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(images / name)
    pack(tmp_path, open_pictures(images), [*names, None], 16, "aspect")
    store = PictureStore(tmp_path)
    assert len(store) == 71
    expected = [fit_picture(Image.open(images / name), 16, "aspect") for name in names]
    for index in rng.permutation(70):
        assert np.array_equal(store[int(index)], expected[index])
    assert store[-1] is None
    assert [p is None for p in store[68:]] == [False, False, True]
    with pytest.raises(ValueError, match="read-only"):
        store[0][0, 0, 0] = 1  # type: ignore[index]


def noise(rng: np.random.Generator, *shape: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8))


@pytest.mark.parametrize("copied", [7, 1 << 24])
def test_the_pictures_that_are_kept_are_those_they_were(
    copied: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_COPIED", copied)
    rng = np.random.default_rng(copied)
    drawn = {f"{n}": noise(rng, *rng.integers(3, 9, 2)) for n in range(40)}
    names = [None if rng.random() < 0.2 else name for name in drawn]
    for case, rows in enumerate(
        [
            [],
            [0],
            [39],
            range(40),
            range(20, 40),
            np.flatnonzero(rng.random(40) < 0.5),
            np.flatnonzero(rng.random(40) < 0.9),
        ]
    ):
        folder = tmp_path / str(case)
        folder.mkdir()
        pack(folder, open_pictures(drawn.__getitem__), names, 8, "aspect")
        whole, index = [p if p is None else p.copy() for p in PictureStore(folder)], read_index(folder)
        keep(folder, rows)
        left = PictureStore(folder)
        assert len(left) == len(rows)
        for picture, row in zip(left, rows, strict=True):
            assert picture is whole[row] is None or np.array_equal(picture, whole[row])
        same = ["height", "width", "digest", "source_height", "source_width"]
        assert read_index(folder).select(same).equals(index[list(rows)].select(same))
        assert read_index(folder).schema == index.schema


def test_the_digest_is_that_of_the_file_and_the_source_has_its_own_size(tmp_path: Path) -> None:
    half_and_half(30, 20).save(tmp_path / "a.jpg")
    half_and_half(900, 700).save(tmp_path / "big.jpg")  # decoded at half its size
    (tmp_path / "packed").mkdir()
    pack(tmp_path / "packed", open_pictures(tmp_path), ["a.jpg", None, "gone.jpg", "big.jpg"], 64, "squash")
    index = read_index(tmp_path / "packed")
    expected = [blake2b((tmp_path / name).read_bytes(), digest_size=16).hexdigest() for name in ("a.jpg", "big.jpg")]
    assert index["digest"].to_list() == [expected[0], None, None, expected[1]]
    assert index["source_height"].to_list() == [20, 0, 0, 700]
    assert index["source_width"].to_list() == [30, 0, 0, 900]
    assert index["offset"].to_list() == [0, 0, 0, 64 * 64 * 3]


def test_a_store_sent_to_another_process_is_opened_there(tmp_path: Path) -> None:
    drawn = {str(n): noise(np.random.default_rng(n), 64, 64) for n in range(20)}
    pack(tmp_path, open_pictures(drawn.__getitem__), list(drawn), 64, "squash")
    store = PictureStore(tmp_path)
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    assert all(np.array_equal(one, other) for one, other in zip(pickle.loads(sent), store, strict=True))


def test_no_pictures_at_all(tmp_path: Path) -> None:
    assert pack(tmp_path, open_pictures(None), [None, None], 16, "squash").tolist() == [False, False]
    assert list(PictureStore(tmp_path)) == [None, None]
    (tmp_path / "pictures.parquet").unlink()
    with pytest.raises(InputError, match=r"pictures\.parquet"):
        PictureStore(tmp_path)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_what_is_read_ahead_comes_in_order_and_errors_in_their_place(threads: int) -> None:
    def read(part: int) -> int:
        if part == 5:
            raise ValueError("part 5")
        return part * part

    with ReadAhead(read, range(20), threads, 4) as found:
        assert [next(found) for _ in range(5)] == [0, 1, 4, 9, 16]
        with pytest.raises(ValueError, match="part 5"):
            next(found)
        assert list(found) == [part * part for part in range(6, 20)]
        assert list(found) == []
    with ReadAhead(read, range(20), threads, 4) as cut:
        next(cut)
    assert list(cut) == []


def test_parts_are_under_way_before_they_are_asked_for_but_only_a_few() -> None:
    begun: list[int] = []
    second, go = threading.Event(), threading.Event()

    def read(part: int) -> int:
        begun.append(part)
        if part == 1:
            second.set()
        assert part == 0 or go.wait(30)
        return part

    with ReadAhead(read, range(50), 8, 3) as found:
        assert second.wait(30), "nothing was asked for, yet part 1 is being read"
        assert next(found) == 0  # leaves 1, 2 and 3
        go.set()
        assert next(found) == 1
        found.close()
        assert set(begun) <= {0, 1, 2, 3, 4}


def test_pictures_decoded_when_asked_for_are_those_that_were_packed(tmp_path: Path) -> None:
    for name, size in (("a.jpg", (300, 200)), ("b.png", (20, 50))):
        half_and_half(*size).save(tmp_path / name)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    names = ["a.jpg", None, "broken.jpg", "absent.jpg", "../a.jpg", "b.png"]
    (tmp_path / "packed").mkdir()
    for fit in FITS:
        pack(tmp_path / "packed", open_pictures(tmp_path), names, 64, fit)
        store, files = PictureStore(tmp_path / "packed"), PictureFiles(tmp_path, names, 64, fit)
        assert len(files) == len(store) == 6
        assert [picture is None for picture in files] == [False, True, True, True, True, False]
        for one, other in zip(files[:], store[:], strict=True):
            assert one is other is None or np.array_equal(one, other)


def test_a_suspected_bomb_is_broken_whoever_decodes_it_and_nobody_is_warned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_and_half(120, 120).save(tmp_path / "suspect.png")
    half_and_half(90, 90).save(tmp_path / "good.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 100)
    names = ["suspect.png", "good.png"] * 20
    monkeypatch.setattr("vlm2rec.data.pictures.files._Folder.threads", 4)
    real = Image.open

    def slow(file: io.BytesIO) -> Image.Image:
        time.sleep(0.001)  # others come in between, if they may
        assert warnings.filters[0][0] == "error"
        return real(file)

    monkeypatch.setattr(Image, "open", slow)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        packed = list(decode(open_pictures(tmp_path), names, 8, "squash"))
        files = PictureFiles(tmp_path, names, 8)
        with ReadAhead(lambda i: files[i], range(40), 4, 8) as read:
            asked = list(read)
        assert warnings.filters[0][0] == "always"  # and the setting is as it was
    assert [p is None for p in packed] == [p is None for p in asked] == [True, False] * 20
    assert warned == []


def test_what_a_drawing_function_raises_is_passed_on(tmp_path: Path) -> None:
    def draw(name: str) -> Image.Image:
        raise ZeroDivisionError(name)

    with pytest.raises(ZeroDivisionError, match="mug"):
        pack(tmp_path, open_pictures(draw), ["mug"], 8, "squash")


def test_damaged_files_of_every_kind_never_raise(tmp_path: Path) -> None:
    """Cut, spliced and with changed bytes: decoded or broken, and nothing else."""
    rng = np.random.default_rng(0)
    good: list[bytes] = []
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"):
        buffer = io.BytesIO()
        noise(rng, 30, 40).resize((60, 50)).save(buffer, kind)
        good.append(buffer.getvalue())
    names: list[str] = []
    for case in range(300):
        content = bytearray(good[case % len(good)])
        for place in rng.integers(0, len(content) if case % 2 else 200, rng.integers(1, 12)):
            content[place] = rng.integers(256)
        names.append(f"{case}")
        (tmp_path / names[-1]).write_bytes(bytes(content[: rng.integers(len(content))] if case % 3 == 0 else content))
    (tmp_path / "packed").mkdir()
    broken = pack(tmp_path / "packed", open_pictures(tmp_path), names, 16, "aspect")
    assert 0 < broken.sum() < len(names)
    assert [picture is None for picture in PictureStore(tmp_path / "packed")] == broken.tolist()
