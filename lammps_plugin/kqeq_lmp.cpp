// SPDX-License-Identifier: GPL-2.0-or-later
//
// The main program of LAMMPS as a function, for `kqeq-lmp`: launcher.py calls it in a Python process. It does what
// `lmp` does step by step, so that every option, script, message and exit code is the same; LAMMPS' own library
// functions take the script by name only (no -in none, no standard input with its own rules), and print errors twice.
// Part of kqeqplugin.so, and under LAMMPS' licence as pair_kqeq.cpp is.

#include "exceptions.h"
#include "input.h"
#include "lammps.h"
#include "library.h"

#include <mpi.h>

#include <cstdio>
#include <cstdlib>
#include <exception>

using namespace LAMMPS_NS;

namespace {

void run(int argc, char **argv)
{
  auto *lammps = new LAMMPS(argc, argv, MPI_COMM_WORLD);
  lammps->input->file();
  delete lammps;
}

void finalize()
{
  lammps_kokkos_finalize();
  lammps_python_finalize();
  lammps_plugin_finalize();
}

[[noreturn]] void abort_all(MPI_Comm universe)
{
  finalize();
  MPI_Abort(universe, 1);
  std::exit(1);    // MPI_Abort is not declared as one that never returns
}

}    // namespace

// checked before kqeq_lmp: the layout of LAMMPS' classes must be that of the headers here
extern "C" const char *kqeq_lammps()
{
  return KQEQ_LAMMPS;
}

extern "C" int kqeq_lmp(int argc, char **argv)
{
  int status = 0;
  MPI_Init(&argc, &argv);
  try {
    run(argc, argv);
  } catch (const LAMMPSAbortException &error) {    // of some ranks
    abort_all(error.get_universe());
  } catch (const LAMMPSException &) {    // of all ranks; LAMMPS has printed it
    status = 1;
  } catch (const std::exception &error) {
    fprintf(stderr, "Exception: %s\n", error.what());
    abort_all(MPI_COMM_WORLD);
  }
  finalize();
  MPI_Barrier(MPI_COMM_WORLD);
  MPI_Finalize();
  return status;
}
