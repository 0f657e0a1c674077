"""Spoils the shipped models in many ways, loads and evaluates each: python load_mutated.py COUNT SEED

Works in the folder it is started in. Prints what came out as JSON: how often for each kind, the longest time and the
memory; and before each file its number, so that the last line names what ended the process.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from mutations import Mutated, mutated

from kqeq_md import Potential, Structure
from kqeq_md.errors import KqeqError
from kqeq_md.model import Model, load_model
from kqeq_md.models import SHIPPED
from kqeq_md.reference import deviations
from kqeq_md.train.report.description import describe

PLACES = 2.6 * np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0.1]])


def main(count: int, seed: int) -> int:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # of names that stand twice, where such files are made
    random = np.random.default_rng(seed)
    originals = [(path.read_bytes(), answer(load_model(path))) for path in SHIPPED.values()]
    for path in SHIPPED.values():
        deviations(Potential(path))  # compiles what there is to compile, before the clock runs
    counts: dict[str, Counter[str]] = {}
    longest, before = 0.0, memory()
    signal.signal(signal.SIGALRM, too_long)
    for number in range(count):
        original, wanted = originals[number % len(originals)]
        spoiled = mutated(original, random)
        sys.stdout.write(f"{number} {spoiled.kind}\n")
        sys.stdout.flush()
        faulthandler.dump_traceback_later(60, exit=True)  # for what never returns to Python
        signal.alarm(20)
        start = time.process_time()
        outcome = outcome_of(spoiled, wanted)
        longest = max(longest, time.process_time() - start)
        signal.alarm(0)
        if outcome.startswith("FAULT"):
            Path(f"fault_{number}.kqeq").write_bytes(spoiled.content)
            sys.stdout.write(f"{number} {outcome}\n")
        counts.setdefault(spoiled.kind, Counter())[outcome.partition(":")[0]] += 1
    faulthandler.cancel_dump_traceback_later()
    result = {"counts": counts, "seconds": longest, "megabytes": memory() - before}
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


def too_long(*_: object) -> None:
    raise TimeoutError("20 s")


def memory() -> float:
    """The most that this process has held, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def answer(model: Model) -> Any:
    """Energy, charges and forces of four atoms of the model's elements."""
    numbers = np.resize(model.numbers, len(PLACES))
    return Potential(model).compute(Structure(numbers, PLACES), want=("forces",))


def outcome_of(spoiled: Mutated, wanted: Any) -> str:
    """ "refused", "same answer", "other answer" (of a file that somebody made) or FAULT."""
    path = Path("spoiled.kqeq")
    path.write_bytes(spoiled.content)
    try:
        model = load_model(path)
        got = answer(model)
        if spoiled.signed:
            describe(model)
            deviations(Potential(model))
    except KqeqError as error:
        return "FAULT: more than one line" if "\n" in str(error) else "refused"
    except BaseException as error:
        return f"FAULT: {type(error).__name__} {error}"
    if not np.isfinite(got.energy) or not np.isfinite(got.forces).all():
        return "FAULT: not finite"
    same = got.energy == wanted.energy and all(
        np.array_equal(getattr(got, name), getattr(wanted, name)) for name in ("charges", "forces")
    )
    if same:
        return "same answer"
    return "other answer" if spoiled.signed else "FAULT: another answer"


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
