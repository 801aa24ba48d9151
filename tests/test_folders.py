"""Folders of your own pictures: what is read of them, and what is refused."""

import csv
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tiny import file_of
from torch.nn import functional as F

from mnistlib.folders import Captioned, captioned_folder, read_pictures
from mnistlib.types import InputError

COLOURS, SHAPES = ("red", "green", "blue", "orange"), ("circle", "square", "triangle")
TEXTS = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
OLD, GREY, GLASS = "sub/old.jpg", "grey.png", "glass.png"


def shape(text, width, height):
    """Draw the shape that a caption names on white paper."""
    colour, name = text.split()[1:]
    picture = Image.new("RGB", (width, height), "white")
    draw, box = ImageDraw.Draw(picture), (4, 4, width - 5, height - 5)
    if name == "triangle":
        draw.polygon([(4, height - 5), (width - 5, height - 5), (width // 2, 4)], fill=colour)
    else:
        (draw.ellipse if name == "circle" else draw.rectangle)(box, fill=colour)
    return picture


def write_folder(folder, kind="csv"):
    """Write twelve shapes of odd sizes and their metadata; return the folder.

    One is grey, one shows through, one was taken with the camera upside down.
    """
    names = [f"{i:02d}.png" for i in range(len(TEXTS))]
    names[2], names[5], names[7] = OLD, GREY, GLASS
    (folder / "sub").mkdir(parents=True)
    for i, (name, text) in enumerate(zip(names, TEXTS, strict=True)):
        picture = shape(text, 33 + 5 * i, 61 - 2 * i)
        if name == GREY:
            picture = picture.convert("L")
        if name == GLASS:
            picture.putalpha(128)
        exif = Image.Exif()
        exif[0x0112] = 3
        picture.save(folder / name, **({"exif": exif} if name == OLD else {}))
    write_metadata(folder, [*zip(names, TEXTS, strict=True)], kind)
    return folder


def write_metadata(folder, rows, kind="csv"):
    """Write which file shows what."""
    with open(folder / f"metadata.{kind}", "w", encoding="utf-8", newline="") as f:
        if kind == "csv":
            csv.writer(f).writerows([("file_name", "text"), *rows])
        else:
            f.writelines(json.dumps({"file_name": n, "text": t}) + "\n" for n, t in rows)


@pytest.fixture
def folder(tmp_path):
    """Return a folder of shapes with a metadata.csv."""
    return write_folder(tmp_path / "shapes")


# ---- what is written -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_both_kinds_of_metadata_say_the_same(tmp_path, kind):
    folder = write_folder(tmp_path / "shapes", kind)
    found = captioned_folder(str(folder))
    assert found.texts == tuple(TEXTS)
    assert found.names[:4] == ("00.png", "01.png", OLD, "03.png")
    assert found.paths == tuple(folder / name for name in found.names)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("csv", '\ufefftext,score,file_name\r\n" one, two ",3,./00.png\r\n"",4,sub/../01.png\r\n'),
        ("csv", 'file_name,text\n00.png,"one,\n two"\n\n01.png,\n'),
        ("jsonl", '{"text": "one, two", "file_name": "00.png"}\n\n{"file_name": "01.png", '
                  '"text": "", "box": [1, 2]}'),
    ],
)  # fmt: skip
def test_metadata_as_other_programs_write_it(folder, kind, content):
    """A mark of byte order, columns in any order, quotes, empty lines and texts."""
    (folder / "metadata.csv").unlink()
    (folder / f"metadata.{kind}").write_bytes(content.encode())
    found = captioned_folder(folder)
    assert found.names == ("00.png", "01.png")
    assert [text.split() for text in found.texts] == [["one,", "two"], []]


def test_a_part_of_the_pictures(folder):
    whole = captioned_folder(folder)
    part = whole.part(slice(-3, None))
    assert part == Captioned(folder, whole.names[-3:], whole.texts[-3:])


def test_the_hash_knows_names_texts_and_files_and_not_the_place(folder, tmp_path):
    first = captioned_folder(folder)
    h = hashlib.sha256()
    for name, text in zip(first.names, first.texts, strict=True):
        h.update(json.dumps([name, text]).encode())
        h.update(hashlib.sha256((folder / name).read_bytes()).digest())
    assert first.sha256() == h.hexdigest()
    moved = captioned_folder(shutil.copytree(folder, tmp_path / "moved"))
    assert moved.sha256() == first.sha256()
    others = [first.part(slice(None, -1)), first._replace(texts=("a cat", *first.texts[1:]))]
    (moved.folder / "00.png").write_bytes((folder / "01.png").read_bytes())
    assert len({data.sha256() for data in (first, moved, *others)}) == 4


# ---- what is refused -----------------------------------------------------------------------

REFUSED = [
    ("metadata.csv", "file,text\n00.png,a\n", "metadata.csv has no column file_name"),
    ("metadata.csv", "file_name,caption\n00.png,a\n", "metadata.csv has no column text"),
    ("metadata.csv", "", "metadata.csv has no column file_name"),
    ("metadata.csv", "file_name,text\n", "metadata.csv lists no picture"),
    ("metadata.csv", "file_name,text\n00.png,\n01.png, !\n", "holds no word about any picture"),
    ("metadata.csv", "file_name,text\n00.png,a\n01.png\n", "line 3: there is no text"),
    ("metadata.csv", "file_name,text\n00.png,a\n ,b\n", "line 3: there is no file_name"),
    ("metadata.csv", 'file_name,text\n00.png,"a"b"\n', "near line 2: this is not CSV"),
    ("metadata.csv", "file_name,text\n00.png,a\n./00.png,b\n", "line 3: 00.png is listed a second"),
    ("metadata.csv", "file_name,text\n00.png,a\nno.png,b\n", "line 3: no.png is not there"),
    ("metadata.csv", "file_name,text\nsub,a\n", "line 2: sub is not there"),
    ("metadata.csv", "file_name,text\n../out.png,a\n", "line 2: ../out.png leaves the folder"),
    ("metadata.csv", "file_name,text\nsub/../../out.png,a\n", "line 2: ../out.png leaves the"),
    ("metadata.csv", "file_name,text\n/out.png,a\n", "line 2: /out.png leaves the folder"),
    ("metadata.csv", "file_name,text\n00.png,ü\n".encode("latin-1"), "is not text in UTF-8"),
    ("metadata.jsonl", "", "metadata.jsonl lists no picture"),
    ("metadata.jsonl", '{"file_name": "00.png", "text": "a"}\n\n{"file_name"\n',
     "metadata.jsonl, line 3: this is not JSON"),
    ("metadata.jsonl", '["00.png", "a"]\n', 'line 1: write {"file_name"'),
    ("metadata.jsonl", '{"file_name": "00.png"}\n', "line 1: there is no text"),
    ("metadata.jsonl", '{"file_name": "00.png", "text": 7}\n', "line 1: there is no text"),
    ("metadata.jsonl", '{"text": "a"}\n', "line 1: there is no file_name"),
]  # fmt: skip


def refusal(folder):
    """Return why a folder is refused, which must be one line."""
    with pytest.raises(InputError) as refused:
        captioned_folder(folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(("file", "content", "reason"), REFUSED)
def test_refused_metadata(folder, file, content, reason):
    (folder.parent / "out.png").write_bytes((folder / "00.png").read_bytes())
    (folder / "metadata.csv").unlink()
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert reason in refusal(folder)


def test_refused_folders(folder, tmp_path):
    assert "nowhere is not a folder" in refusal(tmp_path / "nowhere")
    assert "00.png is not a folder" in refusal(folder / "00.png")
    (tmp_path / "empty").mkdir()
    assert "holds neither metadata.csv nor metadata.jsonl" in refusal(tmp_path / "empty")
    (folder / "metadata.jsonl").touch()
    assert "holds both metadata.csv and metadata.jsonl" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"words", None])
def test_what_is_no_picture_is_named_when_it_is_read(folder, content):
    path = folder / "03.png"
    path.write_bytes(path.read_bytes()[:-60] if content is None else content)
    paths = captioned_folder(folder).paths
    assert read_pictures(paths[:2], 16).shape == (2, 3, 16, 16)
    with pytest.raises(InputError, match=r"03\.png is not a readable picture; replace it"):
        read_pictures(paths, 16)


def test_a_picture_too_large_to_be_one_is_refused(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"00\.png is not a readable picture"):
        read_pictures([folder / "00.png"], 16)


# ---- what is shown -------------------------------------------------------------------------


def read(*files, size=16):
    """Return what is read of files, as bytes: float (B, 3, size, size) in 0..255."""
    found = read_pictures(files, size)
    assert found.dtype == torch.float32
    assert found.shape == (len(files), 3, size, size)
    return (found + 1) * 127.5


@pytest.mark.parametrize(("height", "width"), [(40, 64), (63, 31), (16, 16), (10, 12), (200, 200)])
def test_the_middle_is_cut_out_and_resized(height, width):
    """By hand: rows and columns left out on both sides, then torch's own antialiased resizing.

    Near its border Pillow takes a little of what is left out into account.
    """
    rng = np.random.default_rng(height)
    pixels = rng.integers(64, 192, (height, width, 3), dtype=np.uint8)  # nothing is clipped
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = torch.from_numpy(pixels[top : top + side, left : left + side].copy())
    square = square.permute(2, 0, 1)[None].float()
    expected = F.interpolate(square, (16, 16), mode="bicubic", antialias=True).clamp(0, 255)
    inside = (read(file_of(pixels)) - expected)[..., 4:-4, 4:-4]
    assert inside.abs().max() < 1.6


def test_the_cut_is_central_where_an_odd_number_is_left_over():
    """A slope from 10 to 210 stays level with its middle, and keeps its steepness."""
    slope = np.linspace(10, 210, 201).round().astype(np.uint8)
    pixels = np.broadcast_to(slope[None, :, None], (100, 201, 3))
    found = read(file_of(np.ascontiguousarray(pixels)), size=10)
    expected = 110 + 10 * (torch.arange(10) - 4.5)
    assert (found - expected).abs().max() < 1
    turned = read(file_of(np.ascontiguousarray(pixels.transpose(1, 0, 2))), size=10)
    torch.testing.assert_close(turned, found.transpose(2, 3))


def test_bytes_fill_the_range_from_minus_one_to_one():
    pixels = np.repeat(np.array([0, 51, 255], dtype=np.uint8), 3).reshape(1, 3, 3)
    parts = [file_of(np.ascontiguousarray(pixels[:, i : i + 1])) for i in range(3)]
    found = read_pictures(parts, 1).flatten(1)
    torch.testing.assert_close(found, torch.tensor([[-1.0], [-0.6], [1.0]]).expand(3, 3))


def test_the_pictures_of_a_folder_come_in_the_order_of_their_metadata(folder):
    """Each alone gives the same; the one from the turned camera stands on its head."""
    found = captioned_folder(folder)
    images = read_pictures(found.paths, 24)
    for image, path in zip(images, found.paths, strict=True):
        assert torch.equal(image, read_pictures([path], 24)[0])
    raw = np.asarray(Image.open(folder / OLD)).astype(np.float32)
    top, left = ((n - min(raw.shape[:2])) // 2 for n in raw.shape[:2])
    side = min(raw.shape[:2])
    square = torch.from_numpy(raw[top : top + side, left : left + side].copy())
    upright = square.permute(2, 0, 1).flip(1, 2)[None]
    expected = F.interpolate(upright, (24, 24), mode="bicubic", antialias=True)[0]
    assert ((images[2] + 1) * 127.5 - expected).abs().mean() < 3
    assert ((images[2] + 1) * 127.5 - expected.flip(1)).abs().mean() > 20
    assert (images[5, 0] == images[5, 1]).all()
