"""The book is built from scratch without a warning, and each page is opened in a real browser.

Without Chromium the page tests are skipped; where CI=true they fail instead.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scripts.screenshots import BROWSERS, THEMES, chromium, find_browser, new_page, serve, visit

ROOT = Path(__file__).resolve().parent.parent

IMAGES_NOT_DECODED = """() => Promise.all([...document.images].map(image =>
    image.decode().then(() => image.naturalWidth > 0 ? null : image.src.slice(0, 80),
                        () => image.src.slice(0, 80))
)).then(found => found.filter(Boolean))"""

IMAGES_WITHOUT_ALT = """() => [...document.images].filter(image => !image.alt)
    .map(image => image.src.slice(0, 80))"""

FORMULAS_NOT_SET = r"""() => [...document.querySelectorAll(".math")]
    .filter(math => !math.querySelector("mjx-container") || math.innerText.includes("\\(")
                 || math.querySelector("mjx-merror, [data-mjx-error]"))
    .map(math => math.textContent.slice(0, 80))"""


def pages_of_contents():
    """Return every page that _toc.yml lists, as a path in the built book."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]
    return [f"{file}.html" for file in [contents["root"], *files]]


PAGES = pages_of_contents()


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    """Build the book in an empty folder; warnings are errors. Return the folder of the pages."""
    out = tmp_path_factory.mktemp("book")
    command = [Path(sys.executable).with_name("jupyter-book"), "build", ROOT, "--path-output", out]
    run = subprocess.run(
        [*map(str, command), "-W", "-n", "--keep-going", "-q"], capture_output=True, text=True
    )
    if run.returncode:
        pytest.fail(f"the book does not build without warnings:\n{run.stderr[-4000:]}")
    return out / "_build" / "html"


@pytest.fixture(scope="session")
def browser():
    """Yield a headless browser."""
    if find_browser() is None:
        reason = f"no browser: install Debian's `chromium` (or one of {', '.join(BROWSERS[1:])})"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def address(book):
    """Yield the address of a server of the built book."""
    with serve(book) as url:
        yield url


@pytest.fixture
def watched(browser):
    """Return a function that visits a page and returns it with the list of all that went wrong."""
    opened = []

    def open_and_listen(origin, name, theme="light"):
        page = new_page(browser, theme)
        opened.append(page.context)
        problems = listen(page, origin)
        visit(page, f"{origin}/{name}")
        return page, problems

    yield open_and_listen
    for context in opened:
        context.close()


def listen(page, origin):
    """Return a list that fills with errors, failed requests and requests that leave `origin`."""
    problems = []
    own = (f"{origin}/", "data:", "blob:")
    page.on("console", lambda entry: entry.type == "error" and problems.append(entry.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda sent: sent.url.startswith(own) or problems.append(sent.url))
    page.on("requestfailed", lambda sent: problems.append(f"failed: {sent.url}"))
    return problems


def test_every_listed_page_is_built(book):
    assert [name for name in PAGES if not (book / name).is_file()] == []
    assert f"url={PAGES[0]}" in (book / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", PAGES)
def test_page_over_http(address, watched, name, theme):
    page, problems = watched(address, name, theme)
    assert problems == []
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    assert page.evaluate(IMAGES_NOT_DECODED) == []
    assert page.evaluate(IMAGES_WITHOUT_ALT) == []
    assert page.evaluate(FORMULAS_NOT_SET) == []
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "too wide for a phone"


@pytest.mark.parametrize("name", PAGES)
def test_page_from_disk(book, watched, name):
    page, problems = watched(book.as_uri(), name)
    assert problems == []
    assert page.evaluate(FORMULAS_NOT_SET) == []


@pytest.mark.parametrize("name", ["genindex.html", "search.html", "_modules/mnistlib/unet.html"])
def test_generated_page(address, watched, name):
    _, problems = watched(address, name)
    assert problems == []


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("notebooks/")])
def test_players_move_their_picture(address, watched, name):
    page, problems = watched(address, name)
    players = page.locator(".mnistlib-player").all()
    assert players, "each chapter has a player"
    for player in players:
        check_player(page, player)
    assert problems == []


def check_player(page, player):
    """Assert that the slider moves the picture there and back, and that Play moves it."""
    slider, button = player.locator("input[type=range]"), player.locator("button")
    slider.press("Home")
    page.wait_for_timeout(200)
    first = pixels(player)
    slider.press("End")
    assert comes_true(page, lambda: pixels(player) != first), "the slider moves nothing"
    slider.press("Home")
    assert comes_true(page, lambda: pixels(player) == first), "the picture does not come back"
    button.click()
    assert comes_true(page, lambda: pixels(player) != first), "Play moves nothing"
    button.click()


def pixels(player):
    """Return a photograph of a player's picture as it stands on the page."""
    return player.locator("img").screenshot()


def comes_true(page, condition, patience=50):
    """Whether a condition comes true within 5 seconds."""
    for _ in range(patience):
        if condition():
            return True
        page.wait_for_timeout(100)
    return False
