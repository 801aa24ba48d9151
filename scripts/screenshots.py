"""Photograph every page of the built book, light and dark: `python scripts/screenshots.py FOLDER`.

The tests of the pages use the same server and the same browser.
"""

import argparse
import shutil
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import sync_playwright

BUILT = Path(__file__).resolve().parent.parent / "_build" / "html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
THEMES = ("light", "dark")


def find_browser():
    """Return the path of an installed Chromium or Chrome, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def page_names(built=BUILT):
    """Return the pages that a reader can reach, as paths relative to the built book."""
    skipped = {"index.html", "search.html", "genindex.html", "py-modindex.html"}
    names = sorted(str(path.relative_to(built)) for path in built.rglob("*.html"))
    return [name for name in names if name not in skipped and not name.startswith("_")]


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without writing a line for each request."""

    def log_message(self, *_):
        pass


class PatientServer(ThreadingHTTPServer):
    """Lets a page's many requests queue up where a busy machine is slow to answer."""

    request_queue_size = 128


@contextmanager
def serve(folder):
    """Serve a folder on a free local port while the block runs; yield its address."""
    handler = partial(QuietHandler, directory=str(folder))
    with PatientServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def chromium():
    """Run a headless browser while the block runs; yield it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
        yield browser
        browser.close()


def new_page(browser, theme="light", **options):
    """Return an empty page in a context of its own that prefers one theme."""
    context = browser.new_context(color_scheme=theme, **options)
    context.set_default_timeout(90_000)  # milliseconds, for busy machines
    context.add_init_script(f"localStorage.mode = localStorage.theme = '{theme}'")
    return context.new_page()


def visit(page, url):
    """Go to `url`, wait for MathJax, and scroll to the end and back so that lazy pictures load."""
    page.goto(url, wait_until="load")
    page.evaluate("() => window.MathJax?.startup?.promise.then(() => null)")
    page.evaluate("() => window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for_load_state("networkidle")
    page.evaluate("() => window.scrollTo(0, 0)")


def photograph(built, out, width):
    """Write one PNG for each page and theme into `out`, named page.theme.png."""
    out.mkdir(parents=True, exist_ok=True)
    with serve(built) as address, chromium() as browser:
        for name in page_names(built):
            for theme in THEMES:
                viewport = {"width": width, "height": 1000}
                page = new_page(browser, theme, viewport=viewport)
                visit(page, f"{address}/{name}")
                file = out / f"{name.removesuffix('.html').replace('/', '-')}.{theme}.png"
                page.screenshot(path=file, full_page=True, animations="disabled")
                print(file)
                page.context.close()


def main():
    """Return the exit status: 2 when there is no browser or no book."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="FOLDER")
    parser.add_argument("--built", type=Path, default=BUILT, help="folder of the built book")
    parser.add_argument("--width", type=int, default=1280, help="of the window, in pixels")
    options = parser.parse_args()
    if find_browser() is None:
        parser.error(f"no browser: install one of {', '.join(BROWSERS)}")
    if not page_names(options.built):
        parser.error(f"no pages in {options.built}: run `make book` first")
    photograph(options.built, options.out, options.width)
    return 0


if __name__ == "__main__":
    sys.exit(main())
