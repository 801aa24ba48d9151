"""Quality against network evaluations, for every sampler and time grid, from the shipped weights.

python benchmarks/sampling.py             make what the records lack, then print and draw
python benchmarks/sampling.py --made      print and draw what the records hold

The records are those of the ablations `sampling` and `sampling_final`. A cut run goes on where it
stopped. At 1 ms a call and image the sweep takes 17 minutes, and the finals an hour and 22 minutes,
half of it for the slow reference.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from mnistlib import ablations, pace

PICTURE = Path("runs") / "sampling" / "sampling.png"


def main():
    """Run the two ablations and show their results as one table and one plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--made", action="store_true", help="run nothing")
    if not parser.parse_args().made:
        for name in ("sampling", "sampling_final"):
            for _ in tqdm(ablations.run(name), name, disable=None):
                pass
    sweep, final = (ablations.read_record(name)["rows"] for name in ("sampling", "sampling_final"))
    print(pace.table(sweep), pace.final_table(final), sep="\n\n")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    pace.curves(sweep).savefig(PICTURE, dpi=150, facecolor="white")
    print(f"\nthe plot: {PICTURE}")


if __name__ == "__main__":
    main()
