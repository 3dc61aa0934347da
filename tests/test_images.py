import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm2rec.data.ahead import ReadAhead
from vlm2rec.data.images import FITS, PictureFiles, PictureStore, decode, find, fit_picture, keep, pack
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
    (found,) = decode(tmp_path, ["x.jpg"], 64, "aspect")
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


def test_a_big_photograph_is_decoded_small_and_right(tmp_path: Path) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    big = Image.fromarray(coarse).resize((480, 480), Image.Resampling.BICUBIC)
    big.save(tmp_path / "big.jpg", quality=95, subsampling=0)
    (found,) = decode(tmp_path, ["big.jpg"], 64, "squash")
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
    broken = pack(tmp_path, images, names, 8, "squash", lambda done, total: told.append((done, total)))
    assert broken == [False, False, True, True, True, True, True, True, False]
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
    pack(tmp_path, images, [*names, None], 16, "aspect")
    store = PictureStore(tmp_path)
    assert len(store) == 71
    expected = [fit_picture(Image.open(images / name), 16, "aspect") for name in names]
    for index in rng.permutation(70):
        assert np.array_equal(store[int(index)], expected[index])
    assert store[-1] is None
    assert [p is None for p in store[68:]] == [False, False, True]
    with pytest.raises(ValueError, match="read-only"):
        store[0][0, 0, 0] = 1  # type: ignore[index]

    rows = [1, 2, 30, 69, 70]
    keep(tmp_path, rows)
    left = PictureStore(tmp_path)
    assert len(left) == 5
    for place, row in enumerate(rows[:-1]):
        assert np.array_equal(left[place], expected[row])
    assert left[4] is None
    assert left.digests == [store.digests[row] for row in rows]


def test_no_pictures_at_all(tmp_path: Path) -> None:
    assert pack(tmp_path, None, [None, None], 16, "squash") == [False, False]
    assert list(PictureStore(tmp_path)) == [None, None]
    (tmp_path / "pictures.parquet").unlink()
    with pytest.raises(InputError, match=r"pictures\.parquet"):
        PictureStore(tmp_path)


def test_a_name_never_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "sub" / "in.png")
    folder = tmp_path / "images"
    assert find(folder, "sub/in.png")
    for name in ("../secret.png", "sub/../../secret.png", str(tmp_path / "secret.png"), "sub", "", "a\0b"):
        assert not find(folder, name)
    assert list(decode(folder, ["../secret.png"], 8, "squash")) == [None]


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
        pack(tmp_path / "packed", tmp_path, names, 64, fit)
        store, files = PictureStore(tmp_path / "packed"), PictureFiles(tmp_path, names, 64, fit)
        assert len(files) == len(store) == 6
        assert [picture is None for picture in files] == [False, True, True, True, True, False]
        for one, other in zip(files[:], store[:], strict=True):
            assert one is other is None or np.array_equal(one, other)
