"""Plots: what the page gets, taken apart again."""

import base64
import inspect
import io
import json
import re
import warnings
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from mnistlib import plots
from mnistlib.data import Digits, generator_for, to_uint8
from mnistlib.samplers import ddim
from mnistlib.types import InputError

NASTY = "<b>\"5\" & '6'</b></script>"


@pytest.fixture(autouse=True)
def _own_style():
    """Give matplotlib's settings back after each test, with no figure left open."""
    with plt.rc_context():
        yield
    plt.close("all")


class Page(HTMLParser):
    """Collect the tags of a page with their attributes, and the text inside each."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.open = {}, {}, []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # IPython suggests an IFrame for long HTML
            self.feed(html.data)

    def handle_starttag(self, tag, attrs):
        self.tags.setdefault(tag, []).append(dict(attrs))
        if tag not in ("img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data


def decoded(uri):
    """Return the picture of a data: address."""
    kind, data = uri.split(",", 1)
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def in_script(page, name):
    """Return a list that the script of a player holds."""
    return json.loads(re.search(rf"\b{name} = (\[.*?\])[,;]\s", page.texts["script"])[1])


def pictures(n, channels=1, seed=0):
    """Return n random images (n, channels, 6, 5) in [-1, 1]."""
    return torch.rand(n, channels, 6, 5, generator=generator_for(seed)) * 2 - 1


def curve():
    """Return a figure with one curve."""
    fig, ax = plots.figure(width=3, height=2)
    ax.plot([0, 1], [0, 1], label="line")
    ax.legend()
    return fig


# ---- pictures ------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("n", "columns", "gap"), [(5, None, 1), (5, 2, 1), (6, 3, 0), (1, 4, 3)])
def test_sheet_is_exact(n, columns, gap, channels):
    """Each image stands in its place; all that is left is grey paper."""
    images = pictures(n, channels)
    paper = plots.sheet(images, columns, gap).clone()
    wide = columns or n
    rows = -(-n // wide)
    assert paper.dtype == torch.uint8
    assert paper.shape == (channels, gap + rows * (6 + gap), gap + wide * (5 + gap))
    for i, image in enumerate(to_uint8(images)):
        y, x = gap + (i // wide) * (6 + gap), gap + (i % wide) * (5 + gap)
        assert torch.equal(paper[:, y : y + 6, x : x + 5], image)
        paper[:, y : y + 6, x : x + 5] = 118
    assert (paper == 118).all()


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (1, 4, 4), (4, 4)])
def test_sheet_needs_images(shape):
    with pytest.raises(InputError, match=r"needs images \(B, C, H, W\)"):
        plots.sheet(torch.zeros(shape))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_arrive_on_the_page_pixel_by_pixel(channels):
    images = pictures(4, channels)
    page = Page(plots.show_images(images, alt="noise", columns=2, scale=3))
    [image] = page.tags["img"]
    pixels = np.asarray(decoded(image["src"])).reshape(15, 13, -1)[:, :, :channels]
    np.testing.assert_array_equal(pixels, plots.sheet(images, 2).permute(1, 2, 0))
    assert "width:39px" in image["style"]
    assert "pixelated" in image["style"]


def test_alternative_text_is_escaped_and_captions_are_html():
    for html in (
        plots.show_images(pictures(1), alt=NASTY, caption="<em>five</em>"),
        plots.show_figure(curve(), alt=NASTY, caption="<em>five</em>"),
        plots.player(pictures(2), ["a", "b"], alt=NASTY, caption="<em>five</em>"),
    ):
        page = Page(html)
        assert page.tags["img"][0]["alt"] == NASTY
        assert page.texts["em"] == "five"
        assert page.open == []


def test_caption_may_be_left_out():
    assert "figcaption" not in Page(plots.show_images(pictures(1), alt="noise")).tags


# ---- figures -------------------------------------------------------------------------------


def test_figures_are_transparent_and_closed():
    fig = curve()
    page = Page(plots.show_figure(fig, alt="a line"))
    picture = decoded(page.tags["img"][0]["src"]).convert("RGBA")
    pixels = np.asarray(picture)
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1], 3] == 0).all()
    assert (pixels[:, :, 3] == 0).mean() > 0.7
    assert (pixels[:, :, 3] > 240).any()  # and something is drawn
    assert picture.size == (3 * 144, 2 * 144)
    assert plt.get_fignums() == []


def test_figures_are_deterministic():
    assert plots.show_figure(curve(), alt="x").data == plots.show_figure(curve(), alt="x").data


def test_lines_take_the_palette_in_order():
    _, ax = plots.figure()
    colours = [ax.plot([0, 1])[0].get_color() for _ in range(len(plots.PALETTE) + 1)]
    assert colours == [*plots.PALETTE, plots.PALETTE[0]]
    assert len(set(plots.PALETTE)) == len(plots.PALETTE)


# ---- the player ----------------------------------------------------------------------------


def test_player_holds_its_frames_and_labels():
    frames, labels = pictures(4), ["t = 3", "t = 2", NASTY, "t = 0"]
    page = Page(plots.player(frames, labels, alt="noise", start=2, fps=4, scale=2))
    for found, frame in zip(in_script(page, "frames"), frames, strict=True):
        np.testing.assert_array_equal(np.asarray(decoded(found)), to_uint8(frame[None])[0, 0])
    assert in_script(page, "labels") == labels
    assert page.tags["img"][0]["src"] == in_script(page, "frames")[2]
    assert page.texts["output"] == NASTY
    [slider] = page.tags["input"]
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "3", "2")
    assert slider["aria-label"]
    assert "}, 250);" in page.texts["script"]
    assert f'getElementById("{page.tags["figure"][0]["id"]}")' in page.texts["script"]


def test_player_is_deterministic_and_its_name_follows_its_content():
    def name(*changes, **more):
        frames, labels = pictures(2, seed=more.get("seed", 0)), [*changes, "a", "b"][:2]
        html = plots.player(frames, labels, alt=more.get("alt", "x"))
        assert html.data == plots.player(frames, labels, alt=more.get("alt", "x")).data
        return Page(html).tags["figure"][0]["id"]

    assert len({name(), name("c"), name(seed=1), name(alt="y")}) == 4


def test_player_takes_sheets_and_figures():
    sheets = [plots.sheet(pictures(3, seed=i)) for i in range(2)]
    page = Page(plots.player(sheets, ["a", "b"], alt="sheets"))
    np.testing.assert_array_equal(decoded(in_script(page, "frames")[1]), sheets[1][0])
    page = Page(plots.player([curve(), curve()], ["a", "b"], alt="figures"))
    assert "width:270px" in page.tags["img"][0]["style"]
    assert "pixelated" not in page.tags["img"][0]["style"]
    assert plt.get_fignums() == []


@pytest.mark.parametrize(("frames", "labels"), [(0, 0), (2, 1), (2, 3), (0, 1)])
def test_player_needs_one_label_per_frame(frames, labels):
    with pytest.raises(InputError, match=f"got {frames} and {labels}"):
        plots.player(list(pictures(frames)), ["t"] * labels, alt="x")


# ---- source --------------------------------------------------------------------------------


@pytest.mark.parametrize("thing", [ddim, Digits, plots.player])
def test_shown_source_is_the_librarys(thing):
    fence, *lines, end = plots.show_source(thing).data.split("\n")
    assert (fence, end) == ("```python", "```")
    assert "\n".join(lines) + "\n" == inspect.getsource(thing)


def test_shown_source_of_a_method_is_moved_to_the_left():
    lines = plots.show_source(Digits.sha256).data.split("\n")
    assert lines[1].startswith("def sha256(self)")
    assert [line.strip() for line in lines[1:-1]] == [
        line.strip() for line in inspect.getsource(Digits.sha256).rstrip().split("\n")
    ]
