"""`lmp` and `kqeq-lmp`: two ways to the same run, and what happens where one of them is closed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kqeq_md.lammps_plugin import build
from kqeq_md.machine.programs import environment, libpython

NO_PAIRS = {"pair_style": "pair_style zero 5", "pair_coeff": "pair_coeff * *"}

needs_libpython = pytest.mark.skipif(libpython() is None, reason="`lmp` needs a shared libpython")


@needs_libpython
def test_kqeq_lmp_does_what_lmp_does(here: Any) -> None:
    here.data(here.solid())
    script = here.script("velocity all create 300 1\nfix 1 all nve\nthermo 1\nrun 5")
    steps = []
    for name in ("lmp", "kqeq-lmp"):
        log = here.run(script, name=name).split("Per MPI rank")[1]
        steps.append(log[log.index("Step") : log.index("Loop time")])
    assert steps[0] == steps[1]
    failed = [here.lammps("units metal\nnonsense\n", name=name) for name in ("lmp", "kqeq-lmp")]
    assert failed[0].stdout == failed[1].stdout
    assert [answer.returncode for answer in failed] == [1, 1]


def test_python_without_a_shared_library_is_sent_to_kqeq_lmp(here: Any) -> None:
    """A static Python says so in sysconfig; here sitecustomize says it."""
    here.data(here.solid())
    lie = "import sysconfig\nsysconfig.get_config_vars()['INSTSONAME'] = 'libpython3.11.a'\n"
    (here.folder / "sitecustomize.py").write_text(lie)
    env = environment() | {"PYTHONPATH": str(here.folder)}
    answer = here.lammps(here.script("run 0"), name="lmp", env=env)
    assert answer.returncode == 1
    assert "ERROR: pair_style kqeq: this Python has no shared libpython: run the same" in answer.stdout
    assert "kqeq-lmp" in answer.stdout
    assert here.lammps(here.script("run 0"), name="kqeq-lmp", env=env).returncode == 0


@needs_libpython
def test_missing_compiler_warns_and_spares_other_scripts(here: Any) -> None:
    here.data(here.solid())
    env = environment() | {"XDG_CACHE_HOME": str(here.folder), "CXX": "/no/such/compiler"}
    answer = here.lammps(here.script("run 0", **NO_PAIRS), env=env)
    assert answer.returncode == 0
    warning = "pair_style kqeq is not available: no C++ compiler: `/no/such/compiler` does not run; install"
    assert warning in answer.stderr
    answer = here.lammps(here.script("run 0"), env=env)
    assert answer.returncode != 0
    assert "Unrecognized pair style 'kqeq'" in answer.stdout
    # what was compiled before still serves
    assert here.lammps(here.script("run 0"), env=environment() | {"CXX": "/no/such/compiler"}).returncode == 0


def test_plugin_of_another_lammps_is_not_loaded(here: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here.data(here.solid())
    with monkeypatch.context() as patch:
        patch.setattr(build, "_identity", lambda _: "stable_1Jan2030 abc")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        foreign = build.built_plugin().parent
    answer = here.lammps(here.script("run 0"), env=environment() | {"LAMMPS_PLUGIN_PATH": str(foreign)})
    assert answer.returncode == 0
    assert 'its plugin was built for LAMMPS "stable_1Jan2030 abc", this is "' in answer.stderr
