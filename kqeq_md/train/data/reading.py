"""Labelled structures from extended XYZ."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import iread

from kqeq_md.elements import ATOMIC_NUMBERS, symbol_of
from kqeq_md.errors import ConfigError, KqeqError
from kqeq_md.neighbours.half_list import SHORTEST_DISTANCE, find_pairs
from kqeq_md.train.data.config import Data, Group, Keys
from kqeq_md.train.data.findings import charge_sums
from kqeq_md.train.data.labels import Frame, frame_of
from kqeq_md.train.data.plausible import check_units, unit_doubts
from kqeq_md.train.data.unit_system import Units, factors

log = logging.getLogger("kqeq_md")


def read_frames(
    files: Sequence[str | Path],
    keys: Keys,
    fragments: str | None = None,
    labelled: bool = True,
    units: Units | None = None,
    field_term: bool = True,
) -> list[Frame]:
    """All frames of the files, in order.

    Args:
        files: extended XYZ.
        keys: names of labels.
        fragments: name of the array with molecule numbers, if they are wanted.
        labelled: refuse a set without any labels.
        units: of the files; by default eV and Angstrom.
        field_term: whether energies hold -mu.F.

    Raises:
        ConfigError: a file that is absent, unreadable or empty, a label that is not finite or has a wrong shape, or
            a set in which no frame has any label of these names.
    """
    units = units or Units()
    frames = [frame for _, frame in _frames(files, keys, units, fragments, field_term)]
    doubts = [*unit_doubts(frames, units), *(finding.message for finding in charge_sums(frames))]
    for doubt in doubts:
        log.warning("%s", doubt)
    _refuse_overlaps(frames)
    if labelled:
        _refuse_unlabelled(frames, files, keys)
    return frames


def read_set(data: Data, which: str = "train") -> list[Frame]:
    """The training or the test frames of a configuration, with the weights of their groups.

    Args:
        data: [data] with the paths of files.
        which: "train" or "test"; only the training frames have to fill all groups.

    Raises:
        ConfigError: as `read_frames`; distances, forces or energies that fit other units than the declared ones; a
            frame in two groups, a group without frames.
    """
    files = data.train if which == "train" else data.test
    read = list(_frames(files, data.keys, data.units, None, data.field_term))
    frames = [frame for _, frame in read]
    _refuse_unlabelled(frames, files, data.keys)
    if which == "train":
        _refuse_unused_keys(read, data.keys)
    if data.check_units:
        check_units(frames, data.units)
    _refuse_overlaps(frames)
    return _grouped(read, data.groups, fill=which == "train")


def species_of(frames: Sequence[Frame]) -> tuple[str, ...]:
    """Symbols of all elements in the frames, by atomic number."""
    numbers = np.unique(np.concatenate([frame.structure.numbers for frame in frames]))
    return tuple(sorted((symbol_of(int(z)) for z in numbers), key=ATOMIC_NUMBERS.__getitem__))


Tagged = tuple[dict[str, Any], Frame]
"""What stands in the second line of a frame, with its file under "", and the frame."""


def _frames(
    files: Sequence[str | Path], keys: Keys, units: Units, fragments: str | None, field_term: bool
) -> Iterator[Tagged]:
    scale = factors(units)
    for file in files:
        for index, atoms in enumerate(_read(file)):
            place = f"{file}, frame {index}"
            try:
                yield {**atoms.info, "": str(file)}, frame_of(atoms, keys, scale, fragments, field_term, place)
            except KqeqError as error:
                raise ConfigError(f"{place}: {error}") from None


def _read(file: str | Path) -> Iterator[Atoms]:
    if not Path(file).is_file():  # before ASE takes "-" for standard input and "@" for a slice
        raise ConfigError(f"data file {file} does not exist")
    count = 0
    try:
        for atoms in iread(Path(file), index=":", format="extxyz"):
            yield atoms
            count += 1
    except KqeqError:
        raise
    except Exception as error:  # ASE's reader raises whatever its parser meets
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"data file {file} is no extended XYZ after {count} frames: {reason}") from None
    if not count:
        raise ConfigError(f"data file {file} holds no frames")
    log.info("read %s: %d frames", file, count)


def _refuse_unlabelled(frames: Sequence[Frame], files: Sequence[str | Path], keys: Keys) -> None:
    if all(f.energy is None and f.forces is None and f.charges is None and f.dipole is None for f in frames):
        raise ConfigError(
            f"no frame of {', '.join(map(str, files))} has a label named {keys.energy}, {keys.forces}, "
            f"{keys.charges} or {keys.dipole}: set the names in [data.keys]"
        )


def _refuse_unused_keys(read: Sequence[Tagged], keys: Keys) -> None:
    """A name that somebody has set, and that no frame has, is a typing error."""
    for entry in fields(Keys):
        name = getattr(keys, entry.name)
        if name == entry.default or any(name in info or _has(frame, entry.name) for info, frame in read):
            continue
        raise ConfigError(f"`data.keys.{entry.name}`: no training frame has {name!r}")


def _has(frame: Frame, label: str) -> bool:
    """Whether a frame has a label; what is no label stands in its second line."""
    return getattr(frame, label, None) is not None


def _refuse_overlaps(frames: Sequence[Frame]) -> None:
    for frame in frames:
        try:
            find_pairs(frame.structure, 2.0 * SHORTEST_DISTANCE)
        except KqeqError as error:
            raise ConfigError(f"{frame.place}: {error}") from None


def _grouped(read: Sequence[Tagged], groups: Sequence[Group], fill: bool) -> list[Frame]:
    """Frames with the weight and the name of their group."""
    out, filled = [], set()
    for info, frame in read:
        mine = [index for index, group in enumerate(groups) if _in_group(group, info)]
        if len(mine) > 1:
            titles = " and ".join(groups[index].title for index in mine)
            raise ConfigError(f"{frame.place}: a frame must be in one group of `data.groups` at most, got {titles}")
        filled.update(mine)
        out.append(replace(frame, weight=groups[mine[0]].weight, group=groups[mine[0]].title) if mine else frame)
    empty = [group.title for index, group in enumerate(groups) if index not in filled]
    if fill and empty:
        raise ConfigError(f"`data.groups`: no training frame is in the group {empty[0]}")
    return out


def _in_group(group: Group, info: dict[str, Any]) -> bool:
    """Globs count from the right, as in `pathlib`: "bulk/*.xyz" holds for any folder that the configuration lies in."""
    if group.key:
        return group.key in info and str(info[group.key]) == group.value
    return any(Path(info[""]).match(pattern) for pattern in group.files)
