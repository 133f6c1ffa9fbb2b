"""Two thousand worlds in virtual time, and proof that a fault in our code would be seen and replays."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from simulation.mutants import MUTANTS, mutated
from simulation.seeds import KINDS, run

BLOCKS, SEEDS = 8, 250
_ENOUGH = 250


@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_promise_is_kept_whatever_goes_wrong(block: int) -> None:
    """Processes die, stop and lose sight of servers; afterwards nothing is lost, doubled, oversold or out of order."""
    happened: Counter[str] = Counter()

    for seed in range(block * SEEDS, (block + 1) * SEEDS):
        came_of_it = run(seed)
        if came_of_it.broken:
            pytest.fail(run(seed, logs=True).story(), pytrace=False)
        happened.update(came_of_it.happened)

    assert all(happened[kind] for kind in KINDS), happened


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_fault_in_our_own_code_is_found(mutant: str) -> None:
    """Some seed breaks a promise, tells which, and how to see it again; without the mutant it breaks none."""
    with mutated(mutant):
        found = next((came for seed in range(_ENOUGH) if (came := run(seed)).broken), None)
        assert found is not None
        again = run(found.seed, logs=True)

    assert again.broken == found.broken
    assert f"just simulate --seed {found.seed}" in again.story()
    assert found.broken[0] in again.story()
    assert not run(found.seed).broken


def test_a_seed_replays_in_another_process() -> None:
    """The same steps at the same instants, whatever Python makes of its hashes; another seed is another story."""
    seeds = (3, 14, 49)
    code = f"from simulation.seeds import run; print(*(run(seed).digest for seed in {seeds}))"
    told = []
    for hashes in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONHASHSEED": hashes}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
        told.append(done.stdout.split())

    here = [run(seed).digest for seed in seeds]
    assert [here, here] == told
    assert len(set(here)) == len(seeds)
