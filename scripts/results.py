"""Write the table of measured results into the README, from the records inside the weights.

python scripts/results.py
"""

import re
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from mnistlib.ablations import read_record
from mnistlib.captions import FINE
from mnistlib.data import write_atomically
from mnistlib.obedience import KINDS
from mnistlib.pace import final_table
from mnistlib.recipes import train_or_load

NAMES = ("digit_features", "ddpm", "vae", "latent_classifier")
README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- end of results -->)", re.DOTALL)


def gigaflop(trained):
    """Return the cost of one forward pass of one image, in units of 10^9 operations."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        trained.model(torch.zeros(1, *trained.shape), torch.ones(1, dtype=torch.int64))
    return counter.get_total_flops() / 1e9


def table():
    """Return the results as Markdown."""
    eye, ddpm, vae, reader = (train_or_load(name, "read") for name in NAMES)
    e, d, v, r = (trained.record["metrics"] for trained in (eye, ddpm, vae, reader))
    free, guided, prompt = read_record("drawing")["rows"]
    rows = [
        ("network", "training", "result"),
        ("---", "---", "---"),
        (
            "`digit_features`: reads digits; its features are the yardstick",
            training(eye),
            f"{e['test_accuracy']:.2%} of the {e['floor_digits']:,} test digits right",
        ),
        (
            f"`ddpm`: draws digits; {size(ddpm)}",
            training(ddpm),
            f"Frechet distance of {drawn(d)}",
        ),
        (
            f"`vae`: pictures to 4x8x8 latents and back; {millions(vae)} million weights",
            training(vae),
            f"the {v['images']:,} test digits, there and back: "
            f"**{v['times_floor']:.2f} times the real floor**",
        ),
        (
            f"`latent_classifier`: reads noisy latents; {millions(reader)} million weights",
            training(reader),
            ", ".join(
                f"{share:.1%} right at t = {time}"
                for time, share in list(zip(r["times"], r["accuracy"], strict=True))[:10:3]
            ),
        ),
        class_row("latent", "draws the digit that is asked for, as latents"),
        class_row("ddpm_class", "draws the digit that is asked for, in pixels", start="ddpm"),
        scene_row("rgb_vae"),
        prompt_row("text_to_image"),
    ]
    return (
        "\n".join(f"| {' | '.join(row)} |" for row in rows)
        + f"""

The real floor is the distance of the {e["floor_digits"]:,} real test digits to the 60,000; on these
features it is {e["floor"]:.4f}. Quality against network calls, of 5,000 samples of the network
`ddpm` each: a line names the sampler and its time grid, and has a number for each of two seeds.
The reference is the sampler that is called `ddpm` too, with 250 calls.

```
{final_table(read_record("sampling_final")["rows"])}
```

Speed: `latent` draws and decodes {free["pictures"]} digits of {free["steps"]} steps in
**{free["fastest"]} s** on two CPU threads after loading, guided in {guided["fastest"]} s, and
`text_to_image` draws one prompt in {prompt["fastest"]} s.

The records of the ablations, with the command that repeats each,
are in [book/records](book/records).
"""
    )


def class_row(name, does, start=None):
    """Return the row of a model that is told a class, and began as another where that is named."""
    trained = train_or_load(name, "read")
    m = trained.record["metrics"]
    guided = max(m["guided"].items(), key=lambda item: item[1]["accuracy"])
    return (
        f"`{name}`: {does}; {size(trained)}",
        training(trained, start),
        f"{drawn(m)}; **{m['accuracy']:.2%}** are read as asked for; guided, {guided[0]}: "
        f"{guided[1]['accuracy']:.2%} of {guided[1]['samples']:,}, at "
        f"{guided[1]['times_floor']:.1f} times the floor",
    )


def scene_row(name):
    """Return the row of an autoencoder of coloured scenes."""
    trained = train_or_load(name, "read")
    m = trained.record["metrics"]
    shares = "; ".join(
        f"{kind}: **{m[kind]['read']['asked']['share']:.2%}** "
        f"(before: {m[kind]['painted']['asked']['share']:.2%})"
        for kind in ("one digit, seen", "two digits, seen")
    )
    return (
        f"`{name}`: coloured scenes to 4x8x8 latents and back; {millions(trained)} million weights",
        training(trained),
        f"digits, inks, and paper or places all read rightly off "
        f"{m['one digit, seen']['read']['asked']['of']:,} scenes, there and back: {shares}",
    )


def prompt_row(name):
    """Return the row of a model that reads prompts."""
    trained = train_or_load(name, "read")
    m = trained.record["metrics"]
    shares = "; ".join(f"{kind}: **{m[kind]['asked']['share']:.2%}**" for kind in KINDS)
    seen, unseen = (m[kind] for kind in KINDS if kind.startswith("one"))
    fine = "; ".join(
        f"{part} **{seen[part]['share']:.1%}** and **{unseen[part]['share']:.1%}**" for part in FINE
    )
    return (
        f"`{name}`: draws what a sentence says; {millions(trained)} million weights",
        training(trained),
        f"digits, inks, and paper or places all as {trained.settings.judged:,} random prompts "
        f"of a kind ask ({m['sampler']}, scale {m['scale']:g}): {shares}. Of one digit, where "
        f"named, seen and held out: {fine}",
    )


def drawn(metrics):
    """Return how far samples are from the training digits."""
    return (
        f"{metrics['samples']:,} samples to the 60,000 training digits: "
        f"**{metrics['times_floor']:.1f} times the real floor** ({metrics['sampler']})"
    )


def size(trained):
    """Return what a network weighs and costs."""
    return f"{millions(trained)} million weights, {gigaflop(trained):.2f} GFLOP a call"


def millions(trained):
    """Return the number of weights, in millions."""
    return f"{trained.record['parameters'] / 1e6:.1f}"


def training(trained, start=None):
    """Return how long a training took, and on what, without that of another that it began as."""
    r = trained.record
    cost = r.get if start else trained.spent
    images, minutes = cost("images_seen"), cost("seconds") / 60
    threads = f"{r['threads']} thread" + "s" * (int(r["threads"]) > 1)
    device = f"{threads} of a CPU" if r["device"] == "cpu" else r["device"]
    if start:
        device += f", from earlier weights of `{start}`"
    elif "started_from" in r:  # each part may have had another number of threads
        device = f"a {r['device'].upper()}, in parts"
    return f"{images:,} images in {minutes:.0f} minutes on {device}"


def renewed(text):
    """Return a README with its block of results made anew."""
    return BLOCK.sub(lambda _: table(), text)


if __name__ == "__main__":
    write_atomically(README, renewed(README.read_text(encoding="utf-8")).encode())
