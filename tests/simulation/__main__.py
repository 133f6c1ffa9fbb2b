"""``just simulate``: some seeds, and the whole story of those that break a promise."""

import argparse
import sys
from random import SystemRandom

from simulation.seeds import run


def main() -> int:
    """Run the seeds that were asked for; 1 where one of them broke a promise."""
    parser = argparse.ArgumentParser(prog="just simulate", description=__doc__)
    parser.add_argument("--seed", type=int, help="the first seed; drawn where none is named")
    parser.add_argument("--seeds", type=int, help="how many; 1 where a seed is named, else 1,000")
    asked = parser.parse_args()
    first = SystemRandom().randrange(10**9) if asked.seed is None else asked.seed
    many = asked.seeds or (1000 if asked.seed is None else 1)
    print(f"Seeds {first} to {first + many - 1}")
    broken = [seed for seed in range(first, first + many) if run(seed).broken]
    for seed in broken[:3] or ([first] if many == 1 else []):
        print(run(seed, logs=True).story())
    print(f"{many} seeds, {len(broken)} of them broke a promise{': ' if broken else ''}{str(broken[:20])[1:-1]}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
