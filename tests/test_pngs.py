"""Pictures from outside: which side is up, what shows through, and how deep grey is."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import file_of

from mnistlib import data
from mnistlib.pngs import check_plan, opened, read_picture, read_pngs, read_table
from mnistlib.types import InputError


def pixels_of(*args, **how):
    """Return what is read of a file: uint8 (H, W, 3)."""
    picture = opened(file_of(*args, **how))
    assert picture.mode == "RGB"
    return np.asarray(picture)


# The transformations that the Exif standard names, for what a camera stored.
UPRIGHT = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_side_that_the_camera_says_is_up_is_up(kind, orientation):
    """Four quarters of four colours, twice as wide as high."""
    quarters = np.zeros((32, 64, 3), dtype=np.uint8)
    quarters[:16, :32], quarters[:16, 32:] = (200, 0, 0), (0, 200, 0)
    quarters[16:, :32], quarters[16:, 32:] = (0, 0, 200), (200, 200, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    found, expected = pixels_of(quarters, kind, exif=exif, **how), UPRIGHT[orientation](quarters)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.astype(int), expected, atol=10)


def test_what_is_transparent_is_white():
    """Half of a colour is half of it and half of white; palettes may be transparent too."""
    layer = np.zeros((16, 16, 4), dtype=np.uint8)
    layer[..., :3], layer[:8, :, 3], layer[8:, :, 3] = (200, 100, 0), 0, 128
    found = pixels_of(layer)
    assert (found[:8] == 255).all()
    np.testing.assert_allclose(
        found[8:], np.array([200, 100, 0]) * 128 / 255 + 127 + 0 * found[8:], atol=1
    )
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([200, 0, 0])
    assert (pixels_of(palette, transparency=0) == 255).all()
    assert (pixels_of(palette)[0, 0] == [200, 0, 0]).all()


def test_grey_is_three_equal_colours_whatever_its_depth():
    steps = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for grey in (steps, steps.astype(np.uint16) * 256 + 99):
        assert (pixels_of(grey) == steps[..., None]).all()


def test_a_picture_becomes_bytes_channel_first():
    """Squeezed to a side by means over boxes; grey where it is asked for."""
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    pixels[:2], pixels[2:, :2] = (255, 0, 0), (0, 160, 0)
    found = read_picture(file_of(pixels), side=2)
    assert found.tolist() == [[[255, 255], [0, 0]], [[0, 0], [80, 0]], [[0, 0], [0, 0]]]
    whole = read_picture(file_of(pixels), "L")
    assert whole.shape == (1, 4, 8)
    assert whole[0, 0, 0] == 76  # 0.299 of red, as in ITU-R 601


def test_read_pngs_in_order_of_names(tmp_path):
    for name, shade in [("b", 0.0), ("a", -1.0), ("c", 1.0)]:
        data.write_png(tmp_path / f"{name}.png", torch.full((1, 28, 28), shade))
    (tmp_path / "labels.csv").touch()
    assert read_pngs(tmp_path)[:, 0, 0].tolist() == [0, 128, 255]


def test_read_pngs_refuses(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        read_pngs(tmp_path / "missing")
    with pytest.raises(InputError, match="holds no PNG"):
        read_pngs(tmp_path)
    data.write_png(tmp_path / "1.png", torch.zeros(1, 28, 28))
    data.write_png(tmp_path / "2.png", torch.zeros(1, 32, 32))
    with pytest.raises(InputError, match="differ in size"):
        read_pngs(tmp_path)


def test_read_pngs_refuses_damaged_files(tmp_path):
    """Cut anywhere, or with any byte of it changed, a PNG is refused or read unchanged."""
    image = torch.rand(1, 28, 28, generator=data.generator_for(1)) * 2 - 1
    path = tmp_path / "1.png"
    data.write_png(path, image)
    content, pixels = path.read_bytes(), read_pngs(tmp_path)
    cut = [content[:n] for n in range(0, len(content) - 12, 7)]  # the last 12 bytes say "end"
    flipped = [
        content[:i] + bytes([content[i] ^ 16]) + content[i + 1 :] for i in range(0, len(content), 5)
    ]
    for damaged in cut + flipped:
        path.write_bytes(damaged)
        try:
            assert torch.equal(read_pngs(tmp_path), pixels)
        except InputError as e:
            assert "is not a readable picture" in str(e)  # noqa: PT017


def test_grey_of_16_bits_and_transparent_places_are_read_as_by_opened(tmp_path):
    deep = np.array([[0, 64 * 257, 128 * 257, 255 * 257]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert read_pngs(tmp_path)[0].tolist() == [[0, 64, 128, 255]]
    Image.new("LA", (4, 1), (0, 0)).save(tmp_path / "a.png")
    assert read_pngs(tmp_path)[0].tolist() == [[255] * 4]


def test_a_plan_holds_for_its_own_pictures_only(tmp_path):
    check_plan(tmp_path, {"seed": 1})
    data.write_png(tmp_path / "00001.png", torch.zeros(1, 4, 4))
    check_plan(tmp_path, {"seed": 1})
    with pytest.raises(InputError, match="other settings"):
        check_plan(tmp_path, {"seed": 2})
    data.write_png(tmp_path / "cat.png", torch.zeros(1, 4, 4))
    with pytest.raises(InputError, match="holds other pictures"):
        check_plan(tmp_path, {"seed": 1})
    (tmp_path / "cat.png").unlink()
    (tmp_path / "plan.json").write_text("")
    with pytest.raises(InputError, match="other settings"):
        check_plan(tmp_path, {"seed": 1})


def test_tables_with_other_lines_are_refused(tmp_path):
    data.write_png(tmp_path / "1.png", torch.zeros(1, 4, 4))
    for line in ("1.png", "1.png,a,b"):
        (tmp_path / "labels.csv").write_text(f"file,label\n{line}\n")
        with pytest.raises(InputError, match="must hold a line file,label for every PNG"):
            read_table(tmp_path, "label")
