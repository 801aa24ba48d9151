"""Draw the picture of the welcome page and the README: digits coming out of noise.

python scripts/first_look.py        writes book/static/first-look.png from the shipped `ddpm`
"""

from pathlib import Path

import torch

from mnistlib.data import generator_for, write_atomically
from mnistlib.plots import png, sheet
from mnistlib.recipes import train_or_load
from mnistlib.samplers import ddim, draw_noise
from mnistlib.schedules import uniform_times

TARGET = Path(__file__).resolve().parent.parent / "book" / "static" / "first-look.png"
ROWS, STEPS = 6, 50
SHOWN = (0, 14, 20, 25, 29, 33, 37, 41, 45, 50)  # how many of the steps are done in each column


def first_look():
    """Return rows of digits, columns from noise to clean: pixels (1, H, W), enlarged 3 times."""
    trained = train_or_load("ddpm", "read")
    x_T = draw_noise((ROWS, 1, 32, 32), generator=generator_for(4))
    states = [x_T]
    for step in ddim(trained.denoise, trained.schedule, x_T, uniform_times(1000, STEPS)):
        states.append(step.x_t)
    columns = torch.stack([states[i] for i in SHOWN], dim=1)  # (rows, columns, 1, 32, 32)
    small = sheet(columns.flatten(0, 1), columns=len(SHOWN))
    return small.repeat_interleave(3, dim=1).repeat_interleave(3, dim=2)


if __name__ == "__main__":
    write_atomically(TARGET, png(first_look()))
