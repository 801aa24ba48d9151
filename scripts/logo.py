"""Draw the book's logo: a digit that emerges from noise, left to right. `python scripts/logo.py`"""

import random
from pathlib import Path

LOGO = Path(__file__).resolve().parent.parent / "book" / "static" / "logo.svg"
CELL = 10  # side of a pixel
DIGIT = [  # a 5 on a grid of 14 x 14 pixels
    "..............",
    "....########..",
    "....########..",
    "....##........",
    "....##........",
    "....#######...",
    "....########..",
    "..........###.",
    "...........##.",
    "...........##.",
    "..........###.",
    "...#########..",
    "...#######....",
    "..............",
]


def pixels(rng):
    """Yield (column, row, opacity); noise fades from the left to the right."""
    for row, line in enumerate(DIGIT):
        for column, mark in enumerate(line):
            noise = max(0.0, 1 - column / 8)
            ink = (1 - noise) * (mark == "#") + 0.7 * noise * rng.random() ** 2
            if ink > 0.05:
                yield column, row, ink


def svg(seed=5):
    """Return the drawing as SVG text, the same for the same seed."""
    squares = "\n".join(
        f'<rect x="{column * CELL}" y="{row * CELL}" width="{CELL - 1}" height="{CELL - 1}" '
        f'rx="2" opacity="{ink:.2f}"/>'
        for column, row, ink in pixels(random.Random(seed))
    )
    size = len(DIGIT) * CELL
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" '
        f'role="img" aria-label="A digit that emerges from noise" fill="#3b82c4">\n'
        f"{squares}\n</svg>\n"
    )


if __name__ == "__main__":
    LOGO.write_text(svg(), encoding="utf-8")
