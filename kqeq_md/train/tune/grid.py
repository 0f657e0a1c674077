"""The grid of a search: values of each hyperparameter around the configured one, in order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kqeq_md.errors import ConfigError
from kqeq_md.train.config import HARDNESS, Config
from kqeq_md.train.tune_config import SEARCHED

Grid = dict[str, tuple[float, ...]]
"""Values by name, in the order in which neighbours are alike."""

Point = dict[str, float]
"""One value by name."""

CUTOFF_STEPS = (-1.5, -1.0, -0.5, 0.5, 1.0, 1.5)
SIGMA_STEPS = (-0.2, -0.1, 0.1, 0.2)
"""Angstrom, from the configured value."""

LEAST_CUTOFF, LEAST_SIGMA = 2.5, 0.2
"""Angstrom. Less is tried only where [tune] asks for it."""

RADIAL_SCALES = (1.5, 2.0, 2.5, 3.0, 4.0, 0.0)
"""Angstrom; 0, no scaling, stands beside the largest, which scales least."""

N_MAX_STEPS, L_MAX_STEPS = (-2, 2, 4), (-2, -1, 1, 2)
LEAST_N_MAX, MOST_N_MAX, LEAST_L_MAX, MOST_L_MAX = 2, 12, 1, 8
ZETA = (2.0, 3.0)
HARDNESSES = (0.0, 2.0, 5.0, 10.0, 20.0, 40.0)
PRIOR_FACTORS = (0.1, 0.3, 3.0, 10.0)


def grid_of(config: Config) -> Grid:
    """The values that a search tries: those of [tune], else the usual ones, always with the configured value.

    Priors are searched where `fit.regularisation` is "given" (else every fit chooses them itself), the hardness where
    it is one number for all elements and not fitted.

    Raises:
        ConfigError: [tune] names what is not searched here, or nothing is left to search.
    """
    usual, grid = _usual(config), {}
    for name in SEARCHED:
        if (reason := _not_searched(config, name)) is not None:
            if name in config.tune:
                raise ConfigError(f"`tune.{name}` must be left out {reason}, got {config.tune[name]}")
            continue
        values = {*config.tune.get(name, usual[name]), value_of(config, name)}
        if len(values) > 1:
            grid[name] = tuple(sorted(values, key=lambda v: float("inf") if name == "radial_scale" and v == 0 else v))
            for value in values:
                with_values(config, {name: value})
    if not grid:
        raise ConfigError("`tune` must leave something to search, got one value for everything")
    return grid


def value_of(config: Config, name: str) -> float:
    """The configured value."""
    if name == "hardness":
        given = config.charges.hardness
        assert not isinstance(given, dict)
        return HARDNESS[config.charges.model] if given is None else given
    return float(getattr(getattr(config, SEARCHED[name].table), name))


def with_values(config: Config, point: Point) -> Config:
    """The configuration with other values.

    Raises:
        ConfigError: values that do not go together.
    """
    for name, value in point.items():
        searched = SEARCHED[name]
        table = replace(getattr(config, searched.table), **{name: int(value) if searched.whole else value})
        config = replace(config, **{searched.table: table})
    return config


def start_of(grid: Grid, config: Config) -> Point:
    """The configured values of everything that is searched."""
    return {name: value_of(config, name) for name in grid}


def spread_points(grid: Grid, count: int, seed: int) -> list[Point]:
    """Random points of the grid; every value of a hyperparameter comes as often as its others (Latin hypercube).

    McKay, Beckman, Conover, Technometrics 21, 239 (1979), doi:10.2307/1268522.
    """
    generator = np.random.default_rng([seed, 4])
    columns = {name: generator.permutation(np.arange(count) * len(values) // count) for name, values in grid.items()}
    return [{name: grid[name][column[k]] for name, column in columns.items()} for k in range(count)]


def _not_searched(config: Config, name: str) -> str | None:
    """Why not; None if it is."""
    if name.startswith("prior_") and config.fit.regularisation != "given":
        return 'where `fit.regularisation` is "held_out", which finds priors in every fit'
    if name == "prior_reference_charge" and not config.charges.learns_reference:
        return "where reference charges are not learned"
    if name == "hardness" and "hardness" in config.fit.physical:
        return "where `fit.physical` fits it"
    if name == "hardness" and isinstance(config.charges.hardness, dict):
        return "where `charges.hardness` is a table of elements"
    return None


def _usual(config: Config) -> dict[str, list[float]]:
    soap, fit = config.descriptor, config.fit
    priors = {name: getattr(fit, name) for name in SEARCHED if name.startswith("prior_")}
    shortest = max(LEAST_CUTOFF, soap.cutoff_width)

    def around(value: float, steps: tuple[float, ...], low: float, high: float) -> list[float]:
        return [near for step in steps if low <= (near := round(value + step, 6)) <= high]

    return {
        "radial_scale": list(RADIAL_SCALES),
        "sigma": around(soap.sigma, SIGMA_STEPS, LEAST_SIGMA, 5.0),
        "cutoff": around(soap.cutoff, CUTOFF_STEPS, shortest, 30.0),
        "n_max": around(soap.n_max, N_MAX_STEPS, LEAST_N_MAX, MOST_N_MAX),
        "l_max": around(soap.l_max, L_MAX_STEPS, LEAST_L_MAX, MOST_L_MAX),
        "zeta": list(ZETA),
        "hardness": list(HARDNESSES),
        **{name: [value * factor for factor in PRIOR_FACTORS] for name, value in priors.items()},
    }
