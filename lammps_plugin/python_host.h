// SPDX-License-Identifier: MIT
//
// What the C++ side of pair_style kqeq knows of the Python side: one struct that goes there and back, a table of
// functions, and the interpreter that runs them.

#pragma once

#include <cstdint>

// ---- what both sides share; pair.py repeats this layout and checks its size ----

extern "C" {
struct KqeqCall {
  void *pair;                     // which pair style this is: the key of pair.py's table
  const char *model;              // path of the model file
  const char *const *elements;    // element of each LAMMPS type, n_types strings; NULL: not of the model
  const char *charges;            // how charge flows; null: as the model was trained
  const char *action;             // about atoms that extrapolate: warn, stop or off
  double charge, field[3];        // e, V/Angstrom
  double accuracy, tolerance;     // of the Coulomb sum, LAMMPS' force units; of the charges; NaN: the core's default
  double threads;                 // how many work at once; NaN: as the environment or the scheduler says
  double energy_unit;             // LAMMPS' unit of energy is 1 eV / energy_unit
  double cell[9];                 // lattice vectors as rows, Angstrom
  const double *x, *unwrapped;    // the model's atoms and ghosts, (n_all, 3); its atoms by image flags, (n_atoms, 3); Angstrom
  const int *type, *rows;         // LAMMPS types of the model's atoms; where they and their ghosts stand in LAMMPS' arrays
  const int64_t *ids;             // of the model's atoms and ghosts
  const int64_t *molecule;        // molecule ids of the model's atoms, where fragments are these
  double *f, *q, *eatom;          // LAMMPS' arrays of n_local atoms; eatom is null when not wanted
  double *born;                   // (n_local, 9), e; null when not wanted
  double *measure;                // of extrapolation, n_local; null when not wanted
  int n_types, n_atoms, n_all, n_local, n_lammps, periodic[3];
  int rank, ranks;     // of MPI
  int renewed;         // whether ranks have other atoms than in the step before
  int by_molecule;     // fragments are molecule ids
  int starts_run;      // the first step of a run
  int other_atoms;     // all ranks together don't have the atoms of the step before
  int want_virial;
  int has_charges;     // set by open: 0 for a model that is nothing but a short-range potential
  int all_failed;      // set by compute with its failure: that of all ranks together
  double cutoff;       // set by reach, Angstrom
  double reach;        // within which all neighbours of an atom are known, Angstrom
  double parts[7];     // energies of short range, charges and field; dipole x y z, e Angstrom; solver iterations
  double virial[6];    // xx yy zz xy xz yz; energies and virial are in LAMMPS' unit
  char message[1024], warning[1024];   // one line each; empty when there is nothing to say
  // communication: all ranks call together
  void (*forward)(void *pair, double *values, int width);    // (n_lammps, width): ghosts' rows from their owners'
  void (*reverse)(void *pair, double *values, int width);    // ghosts' rows added to their owners'
  void (*add)(void *pair, double *values, int n);            // the sum over all ranks in their place
  void (*gather)(void *pair, const double *values, int n, double *all);    // of all ranks, one after the other
  // a piece to each rank and one from each; counts: of the doubles sent to all ranks, then of those that they send
  void (*exchange)(void *pair, const double *sent, double *received, const int *counts);
};

struct KqeqTable {
  int (*open)(KqeqCall *);       // read the model; returns 0, or 1: failed, see message
  int (*reach)(KqeqCall *);      // at the start of a run: set the cutoff
  int (*compute)(KqeqCall *);    // add to f and eatom; set q, born, parts, virial
  int (*close)(KqeqCall *);
};
}

// ---- Python in this process, without its headers: stable functions found by name ----

class Python {
 public:
  static void start();    // fills the table; throws std::runtime_error
  static bool alive() { return is_initialized && is_initialized(); }

  static KqeqTable table;

 private:
  static void find();
  static void attach();
  template <class Function> static Function symbol(const char *name);

  static void *library;
  static int (*is_initialized)();
};
