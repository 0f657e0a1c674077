"""Which frames a trial holds out: whole compositions, and stretches of trajectories, not single frames.

Neighbours in a trajectory are nearly alike. A model that has seen one of them knows the other, and the error on frames
drawn at random tells how well it interpolates, whatever its hyperparameters. Here all frames of one composition, in all
charge states, are held out together; a composition with more than a fold's share of the frames is cut into stretches of
consecutive frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kqeq_md.errors import ConfigError
from kqeq_md.train.data import Frame, species_of

FOLDS = 3
STRETCHES = 5
"""Per fold, of a composition that is cut."""

FEWEST_FRAMES = 15
"""Less tells nothing: five frames in each fold."""


def choose_frames(frames: Sequence[Frame], most: int, seed: int) -> list[Frame]:
    """A random part of the frames, in their order, with every element that they have.

    Args:
        frames: of the training set.
        most: how many; a few more where elements are rare.
        seed: of the choice.
    """
    order = np.random.default_rng([seed, 2]).permutation(len(frames))
    chosen = list(order[:most])
    known = set(species_of([frames[i] for i in chosen]))
    for index in order[most:]:
        if new := set(species_of([frames[index]])) - known:
            chosen.append(index)
            known |= new
    return [frames[i] for i in sorted(chosen)]


def folds_of(frames: Sequence[Frame], seed: int) -> list[list[Frame]]:
    """Frames that are held out together, FOLDS times.

    A frame is in one fold, or in none if its elements are not in the frames outside of its fold.

    Args:
        frames: of a trial.
        seed: of the order in which groups of one size are dealt out.

    Raises:
        ConfigError: too few frames.
    """
    if len(frames) < FEWEST_FRAMES:
        raise ConfigError(f"`data.train` must hold at least {FEWEST_FRAMES} frames to tune with, got {len(frames)}")
    groups = _groups(frames)
    order = np.random.default_rng([seed, 3]).permutation(len(groups))
    folds: list[list[int]] = [[] for _ in range(FOLDS)]
    for group in sorted((groups[g] for g in order), key=len, reverse=True):  # a stable sort: ties stay shuffled
        min(folds, key=len).extend(group)
    found = [_known_outside(frames, sorted(fold)) for fold in folds]
    if not all(found):
        raise ConfigError("`data.train` must hold every element in frames of several compositions, or many frames")
    return found


def rest_of(frames: Sequence[Frame], fold: Sequence[Frame]) -> list[Frame]:
    """The frames outside of a fold."""
    places = {frame.place for frame in fold}
    return [frame for frame in frames if frame.place not in places]


def _groups(frames: Sequence[Frame]) -> list[list[int]]:
    compositions: dict[tuple[int, ...], list[int]] = {}
    for index, frame in enumerate(frames):
        compositions.setdefault(tuple(sorted(frame.structure.numbers.tolist())), []).append(index)
    out: list[list[int]] = []
    for members in compositions.values():
        parts = STRETCHES * FOLDS if len(members) * FOLDS > len(frames) else 1
        out += [part.tolist() for part in np.array_split(members, parts) if len(part)]
    return out


def _known_outside(frames: Sequence[Frame], fold: Sequence[int]) -> list[Frame]:
    inside = set(fold)
    rest = [frame for index, frame in enumerate(frames) if index not in inside]
    known = set(species_of(rest)) if rest else set()
    return [frames[index] for index in fold if set(species_of([frames[index]])) <= known]
