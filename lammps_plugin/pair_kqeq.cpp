// SPDX-License-Identifier: GPL-2.0-or-later
//
// kqeqplugin.so: pair_style kqeq for LAMMPS, compiled on the user's machine by build.py against the headers of the
// installed LAMMPS. This file derives from LAMMPS classes and is under LAMMPS' licence. The physics is in Python:
// compute() hands the owned atoms and the box to kqeq_md.lammps_plugin.pair and adds up what comes back.

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "force.h"
#include "lammps.h"
#include "memory.h"
#include "modify.h"
#include "neighbor.h"
#include "pair.h"
#include "update.h"
#include "utils.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

using namespace LAMMPS_NS;

// ---- what C++ and Python share; pair.py repeats this layout and checks its size --------------------------------

extern "C" {
struct KqeqCall {
  void *pair;                     // which pair style this is: the key of pair.py's table
  const char *model;              // path of the model file
  const char *const *elements;    // element of each LAMMPS type, n_types strings
  double charge, field[3];        // e, V/Angstrom
  double accuracy, tolerance;     // of the Coulomb sum, eV/Angstrom; of the charges; NaN: the core's own default
  double threads;                 // how many work at once; NaN: as the environment or the scheduler says
  double cell[9];                 // lattice vectors as rows, Angstrom
  double *x, *f, *q, *eatom;      // LAMMPS' arrays of owned atoms; eatom is null when not wanted
  const int *type, *order;        // LAMMPS types; owned atoms in the order of their ids
  int n_types, n_atoms, periodic[3], want_virial;
  int has_charges;                // set by open: 0 for a model that is nothing but a short-range potential
  double cutoff, energy, virial[6];    // results: Angstrom, eV, eV (xx yy zz xy xz yz)
  char message[1024], warning[1024];   // one line each; empty when there is nothing to say
};

struct KqeqTable {
  int (*open)(KqeqCall *);       // read the model, set the cutoff; returns 0, or 1: failed, see message
  int (*compute)(KqeqCall *);    // add to f and eatom; set q, energy, virial
  int (*close)(KqeqCall *);
};
}

namespace {

KqeqTable table{};

// ---- Python in this process, without its headers: stable functions found by name -----------------------------

class Python {
 public:
  static void start();
  static bool alive() { return is_initialized && is_initialized(); }

 private:
  static void find();
  static void attach();
  template <class Function> static Function symbol(const char *name);

  static void *library;
  static int (*is_initialized)();
};

void *Python::library = nullptr;
int (*Python::is_initialized)() = nullptr;

template <class Function> Function Python::symbol(const char *name)
{
  void *address = dlsym(library, name);
  if (!address)
    throw std::runtime_error(std::string("libpython has no ") + name +
                             ": run the same command line with `kqeq-lmp` instead of `lmp`");
  return reinterpret_cast<Function>(address);
}

void Python::find()
{
  library = RTLD_DEFAULT;
  if (!dlsym(library, "Py_IsInitialized")) {    // else Python is the host of this process
    const char *path = getenv("KQEQ_LIBPYTHON");
    if (!path || !*path)
      throw std::runtime_error(
          "this Python has no shared libpython: run the same command line with `kqeq-lmp` instead of `lmp`");
    // global: Python's own extension modules look up their symbols in it
    library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (!library) throw std::runtime_error(dlerror());
  }
  is_initialized = symbol<int (*)()>("Py_IsInitialized");
}

void Python::attach()
{
  auto import = symbol<void *(*) (const char *)>("PyImport_ImportModule");
  auto call = symbol<void *(*) (void *, const char *, const char *, ...)>("PyObject_CallMethod");
  auto release = symbol<void (*)(void *)>("Py_DecRef");
  void *module = import("kqeq_md.lammps_plugin.pair");
  void *result = nullptr;
  if (module)
    result = call(module, "attach", "KK", reinterpret_cast<unsigned long long>(&table),
                  static_cast<unsigned long long>(sizeof(KqeqCall)));
  if (!result) symbol<void (*)()>("PyErr_Print")();
  release(result);
  release(module);
  if (!result) throw std::runtime_error("cannot start Python, see the message above");
}

void Python::start()
{
  if (table.compute) return;
  find();
  if (is_initialized()) {
    int state = symbol<int (*)()>("PyGILState_Ensure")();
    auto restore = symbol<void (*)(int)>("PyGILState_Release");
    try {
      attach();
    } catch (...) {
      restore(state);
      throw;
    }
    restore(state);
    return;
  }
  // the program's path tells Python which virtual environment it belongs to
  if (const char *program = getenv("KQEQ_PYTHON")) {
    auto decode = symbol<wchar_t *(*) (const char *, size_t *)>("Py_DecodeLocale");
    symbol<void (*)(const wchar_t *)>("Py_SetProgramName")(decode(program, nullptr));
  }
  symbol<void (*)(int)>("Py_InitializeEx")(0);    // 0: Ctrl-C stays LAMMPS'
  attach();
  symbol<void *(*) ()>("PyEval_SaveThread")();    // callbacks take the lock when they need it
}

// ---- the pair style ----------------------------------------------------------------------------------------

class PairKqeq : public Pair {
 public:
  explicit PairKqeq(LAMMPS *lmp);
  ~PairKqeq() override;
  void settings(int, char **) override;
  void coeff(int, char **) override;
  void init_style() override;
  double init_one(int, int) override { return call.cutoff; }
  void compute(int, int) override;
  int pack_forward_comm(int, int *, double *, int, int *) override;
  void unpack_forward_comm(int, int, double *) override;

 private:
  void allocate();
  void read_numbers(const char *keyword, int iarg, int narg, char **arg, int count, double *out);
  void describe_atoms();
  void describe_box();
  void ask(int (*function)(KqeqCall *));
  [[noreturn]] void refuse(const std::string &why) { error->all(FLERR, "pair_style kqeq: " + why); }

  KqeqCall call{};
  std::vector<int> order;
};

PairKqeq::PairKqeq(LAMMPS *lmp) : Pair(lmp)
{
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  single_enable = 0;
  no_virial_fdotr_compute = 1;    // the virial comes with the energy
  centroidstressflag = CENTROID_NOTAVAIL;
  comm_forward = 1;
  call.pair = this;
}

PairKqeq::~PairKqeq()
{
  // a host Python that is already shutting down has no table left to clear
  if (table.close && Python::alive()) table.close(&call);
  if (allocated) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }
}

void PairKqeq::read_numbers(const char *keyword, int iarg, int narg, char **arg, int count, double *out)
{
  if (iarg + count >= narg)
    refuse(std::string("keyword `") + keyword + "` needs " + std::to_string(count) + " number(s), got " +
           std::to_string(narg - iarg - 1));
  for (int k = 0; k < count; k++) out[k] = utils::numeric(FLERR, arg[iarg + 1 + k], false, lmp);
}

void PairKqeq::settings(int narg, char **arg)
{
  if (comm->nprocs > 1)
    refuse("runs on one MPI rank in this version, got " + std::to_string(comm->nprocs) + " ranks");
  call.charge = 0.0;
  call.accuracy = call.tolerance = call.threads = std::numeric_limits<double>::quiet_NaN();
  std::fill(call.field, call.field + 3, 0.0);
  struct Keyword {
    double *values;
    int count;
  };
  const std::map<std::string, Keyword> keywords = {
      {"charge", {&call.charge, 1}},
      {"field", {call.field, 3}},
      {"accuracy", {&call.accuracy, 1}},
      {"tolerance", {&call.tolerance, 1}},
      {"threads", {&call.threads, 1}},
  };
  std::set<std::string> seen;
  int iarg = 0;
  while (iarg < narg) {
    const std::string keyword = arg[iarg];
    const auto found = keywords.find(keyword);
    if (found == keywords.end())
      refuse("unknown keyword `" + keyword +
             "`, the keywords are: charge Q, field Ex Ey Ez, accuracy A, tolerance T, threads N");
    if (!seen.insert(keyword).second) refuse("keyword `" + keyword + "` is given twice");
    const Keyword read = found->second;
    read_numbers(arg[iarg], iarg, narg, arg, read.count, read.values);
    iarg += 1 + read.count;
  }
  try {
    Python::start();
  } catch (const std::runtime_error &problem) {
    refuse(problem.what());
  }
}

void PairKqeq::allocate()
{
  const int n = atom->ntypes + 1;
  memory->create(setflag, n, n, "pair:setflag");
  memory->create(cutsq, n, n, "pair:cutsq");
  for (int i = 0; i < n; i++) std::fill(setflag[i], setflag[i] + n, 0);
  allocated = 1;
}

void PairKqeq::coeff(int narg, char **arg)
{
  if (!allocated) allocate();
  if (narg < 3)    // that it starts with * * is LAMMPS' own rule for one_coeff
    refuse("the coefficients are: pair_coeff * * MODEL.kqeq ELEMENT ..., one element per atom type");
  if (narg - 3 != atom->ntypes)
    refuse("pair_coeff needs one element per atom type: " + std::to_string(atom->ntypes) + " types, got " +
           std::to_string(narg - 3) + " element(s)");
  call.model = arg[2];
  call.elements = arg + 3;
  call.n_types = atom->ntypes;
  describe_box();
  ask(table.open);
  const bool answers_nothing = !call.has_charges && (call.charge != 0.0 || call.field[0] != 0.0 ||
                                                     call.field[1] != 0.0 || call.field[2] != 0.0);
  if (answers_nothing)
    refuse(std::string(arg[2]) + " has no charges: remove the keywords `charge` and `field`");
  if (!call.has_charges)
    utils::logmesg(lmp, "pair_style kqeq: {} has no charges: short range only, atoms keep the charges they have\n", arg[2]);
  for (int i = 1; i <= atom->ntypes; i++)
    for (int j = i; j <= atom->ntypes; j++) setflag[i][j] = 1;
}

void PairKqeq::init_style()
{
  if (strcmp(update->unit_style, "metal") != 0)
    refuse(std::string("needs `units metal`; `units ") + update->unit_style + "` is not available in this version");
  if (force->pair_match("^hybrid$", 0))
    refuse("acts on all pairs of atoms: use `hybrid/overlay` instead of `hybrid`");
  if (!call.has_charges) return;
  if (!atom->q_flag) refuse("needs atoms with charges: use `atom_style charge` (or full)");
  // all electrostatics is in this pair style: what would count it twice, or move charges it does not know of, is refused
  if (force->kspace) refuse("sums all electrostatics itself: remove `kspace_style`");
  if (force->pair_match("kqeq", 1, 1) != force->pair_match("kqeq", 1, 2)) refuse("can stand only once in hybrid/overlay");
  if (!modify->get_fix_by_style("^qeq").empty())
    refuse("equilibrates the charges itself: remove `fix qeq/...`");
  if (!modify->get_fix_by_style("^efield").empty())
    refuse("answers a field only through its keyword `field Ex Ey Ez`: remove `fix efield`");
  // no neighbour list is requested: the core finds its own pairs among the owned atoms of the single rank
}

void PairKqeq::describe_atoms()
{
  const int n = atom->nlocal;
  order.resize(n);
  std::iota(order.begin(), order.end(), 0);
  // LAMMPS re-sorts its atoms in space; by id the input is the same whatever it did
  if (atom->tag_enable)
    std::sort(order.begin(), order.end(), [tag = atom->tag](int i, int j) { return tag[i] < tag[j]; });
  call.n_atoms = n;
  call.order = order.data();
  call.type = atom->type;
  call.x = n ? atom->x[0] : nullptr;
  call.f = n ? atom->f[0] : nullptr;
  call.q = atom->q;
  call.eatom = eflag_atom ? eatom : nullptr;
}

void PairKqeq::describe_box()
{
  const double rows[9] = {domain->xprd, 0.0, 0.0, domain->xy, domain->yprd, 0.0,
                          domain->xz, domain->yz, domain->zprd};
  std::copy(rows, rows + 9, call.cell);
  std::copy(domain->periodicity, domain->periodicity + 3, call.periodic);
}

void PairKqeq::compute(int eflag, int vflag)
{
  ev_init(eflag, vflag);
  if (vflag_atom || cvflag_atom)
    refuse("stress per atom is not available (compute stress/atom, heat/flux and the like)");
  if (neighbor->exclude) refuse("`neigh_modify exclude` is not available: all atoms interact");
  describe_atoms();
  describe_box();
  call.want_virial = vflag_global != 0;
  ask(table.compute);
  if (eflag_global) eng_vdwl += call.energy;
  if (vflag_global)
    for (int k = 0; k < 6; k++) virial[k] += call.virial[k];
  if (call.has_charges) comm->forward_comm(this);
}

void PairKqeq::ask(int (*function)(KqeqCall *))
{
  const bool failed = function(&call) != 0;
  if (call.warning[0]) error->warning(FLERR, std::string("pair_style kqeq: ") + call.warning);
  if (failed) refuse(call.message);    // thrown here, in a C++ frame: exceptions cannot cross Python's
}

int PairKqeq::pack_forward_comm(int n, int *list, double *buffer, int, int *)
{
  for (int k = 0; k < n; k++) buffer[k] = atom->q[list[k]];
  return n;
}

void PairKqeq::unpack_forward_comm(int n, int first, double *buffer)
{
  std::copy(buffer, buffer + n, atom->q + first);
}

Pair *create(LAMMPS *lmp) { return new PairKqeq(lmp); }

// lammpsplugin.h is not among the installed headers; this is its struct
struct Plugin {
  const char *version, *style, *name, *info, *author;
  Pair *(*creator)(LAMMPS *);
  void *handle;
};

}    // namespace

extern "C" void lammpsplugin_init(void *lmp, void *handle, void *register_plugin)
{
  // before any member of a LAMMPS class is touched: their layout changes even between updates of one version
  const std::string here = std::string(LAMMPS::git_descriptor()) + " " + LAMMPS::git_commit();
  if (here != KQEQ_LAMMPS) {
    fprintf(stderr, "WARNING: pair_style kqeq is not available: its plugin was built for LAMMPS \"%s\", this is \"%s\"\n",
            KQEQ_LAMMPS, here.c_str());
    return;
  }
  Plugin plugin{static_cast<LAMMPS *>(lmp)->version, "pair", "kqeq", "kQEq machine-learned charges and energies",
                "kqeq_md", create, handle};
  reinterpret_cast<void (*)(Plugin *, void *)>(register_plugin)(&plugin, lmp);
}
