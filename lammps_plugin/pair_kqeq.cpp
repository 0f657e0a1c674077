// SPDX-License-Identifier: GPL-2.0-or-later
//
// kqeqplugin.so: pair_style kqeq for LAMMPS, compiled on the user's machine by build.py against the headers of the
// installed LAMMPS. This file derives from LAMMPS classes and is under LAMMPS' licence. The physics is in Python:
// compute() hands the owned atoms and the box to kqeq_md.lammps_plugin.pair and adds up what comes back.
// What users see of it is described in pair_kqeq.md.

#include "python_host.h"

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "fix.h"
#include "force.h"
#include "input.h"
#include "lammps.h"
#include "memory.h"
#include "modify.h"
#include "neighbor.h"
#include "pair.h"
#include "update.h"
#include "utils.h"
#include "variable.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

using namespace LAMMPS_NS;

namespace {

// ---- the pair style ----------------------------------------------------------------------------------------

struct Keyword {
  const char *name, *values;    // as in the message that lists all keywords
  int count;
  std::function<void(char **)> read;
};

struct FieldPart {
  std::string variable;    // empty: a number
  double value;            // V/Angstrom
  int index;               // of the variable
};

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
  int pack_reverse_comm(int, int, double *) override;
  void unpack_reverse_comm(int, int *, double *) override;
  void *extract(const char *, int &) override;
  void *extract_peratom(const char *, int &) override;

 private:
  void forget_settings();
  std::vector<Keyword> keywords();
  double number(const char *word) { return utils::numeric(FLERR, word, false, lmp); }
  void read_fragments(const std::string &kind);
  void read_elements(int narg, char **arg);
  double energy_unit();
  void refuse_what_is_ignored();
  void refuse_what_counts_twice();
  void refuse_fixes(const char *begin, const std::string &instead);
  void find_variables();
  void describe_field();
  void describe_box();
  void describe_atoms();
  void describe_ghosts();
  void name_atoms();
  void count_atoms();
  void unwrap(int i, double *out) const;
  void make_room_for_born_charges();
  void make_room_for_measure();
  void tally();
  void offer_communication();
  bool fails(int (*function)(KqeqCall *));
  void open();
  [[noreturn]] void refuse(const std::string &why) { error->all(FLERR, "pair_style kqeq: " + why); }
  [[noreturn]] void refuse_alone(const std::string &why)
  {
    // other ranks may be waiting for this one in the middle of a sum: only error->one ends them
    if (comm->nprocs == 1) refuse(why);
    // what LAMMPS prints may be lost when MPI ends all at once: mpirun gets this line, and time to pass it on
    fprintf(stderr, "ERROR on proc %d: pair_style kqeq: %s\n", comm->me, why.c_str());
    fflush(stderr);
    usleep(200000);
    error->one(FLERR, "pair_style kqeq: " + why);
  }
  void warn(const std::string &why)
  {
    if (comm->me == 0) error->warning(FLERR, "pair_style kqeq: " + why);
  }

  KqeqCall call{};
  std::set<std::string> given;    // keywords
  std::string charges, action;
  FieldPart field[3];
  std::vector<bool> in_model;    // by type
  std::vector<int> rows, type;
  std::vector<double> x, unwrapped;
  std::vector<int64_t> ids, molecule;
  bigint n_total = 0, id_sum = 0;    // of the model's atoms on all ranks
  double *values = nullptr;    // what is on its way between ranks, width numbers for each atom
  int width = 0;
  bool warned_of_bonds = false, warned_of_number = false;
  double **born = nullptr;
  int born_rows = 0, born_flag = 0;    // the flag is raised by fix pair when it wants them
  double *measure = nullptr;
  int measure_rows = 0, measure_flag = 0;
};

PairKqeq::PairKqeq(LAMMPS *lmp) : Pair(lmp)
{
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  single_enable = 0;
  no_virial_fdotr_compute = 1;    // the virial comes with the energy
  centroidstressflag = CENTROID_NOTAVAIL;
  comm_forward = comm_reverse = 3;    // the largest width
  nextra = 7;
  pvector = call.parts;
  call.pair = this;
  offer_communication();
}

PairKqeq::~PairKqeq()
{
  // a host Python that is already shutting down has no table left to clear
  if (Python::table.close && Python::alive()) Python::table.close(&call);
  memory->destroy(born);
  memory->destroy(measure);
  if (allocated) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }
}

// ---- the input script: pair_style, pair_coeff ----

std::vector<Keyword> PairKqeq::keywords()
{
  return {
      {"charge", "Q", 1, [this](char **arg) { call.charge = number(arg[0]); }},
      {"field", "Ex Ey Ez", 3,
       [this](char **arg) {
         for (int a = 0; a < 3; a++) {
           const bool varies = utils::strmatch(arg[a], "^v_");
           field[a] = varies ? FieldPart{arg[a] + 2, 0.0, -1} : FieldPart{"", number(arg[a]), -1};
         }
       }},
      {"charges", "qeq|fragments|split", 1,
       [this](char **arg) {
         charges = arg[0];
         call.charges = charges.c_str();
       }},
      {"fragments", "molecule", 1, [this](char **arg) { read_fragments(arg[0]); }},
      {"accuracy", "A", 1, [this](char **arg) { call.accuracy = number(arg[0]); }},
      {"tolerance", "T", 1, [this](char **arg) { call.tolerance = number(arg[0]); }},
      {"threads", "N", 1, [this](char **arg) { call.threads = number(arg[0]); }},
      {"extrapolation", "warn|stop|off", 1,
       [this](char **arg) {
         action = arg[0];
         call.action = action.c_str();
       }},
  };
}

void PairKqeq::read_fragments(const std::string &kind)
{
  if (kind != "molecule") refuse("keyword `fragments` must be followed by `molecule`, got `" + kind + "`");
  call.by_molecule = 1;
}

void PairKqeq::forget_settings()
{
  given.clear();
  call.charges = nullptr;
  action = "warn";
  call.action = action.c_str();
  call.by_molecule = 0;
  call.charge = 0.0;
  std::fill(field, field + 3, FieldPart{"", 0.0, -1});
  call.accuracy = call.tolerance = call.threads = std::numeric_limits<double>::quiet_NaN();
  // a pair_coeff has to follow: it is there that they reach the potential
  for (int i = 1; allocated && i <= atom->ntypes; i++) std::fill(setflag[i], setflag[i] + atom->ntypes + 1, 0);
}

void PairKqeq::settings(int narg, char **arg)
{
  forget_settings();
  const std::vector<Keyword> all = keywords();
  int iarg = 0;
  while (iarg < narg) {
    const std::string name = arg[iarg++];
    const auto found = std::find_if(all.begin(), all.end(), [&](const Keyword &word) { return name == word.name; });
    if (found == all.end()) {
      std::string known;
      for (const Keyword &word : all) known += (known.empty() ? "" : ", ") + std::string(word.name) + " " + word.values;
      refuse("unknown keyword `" + name + "`, the keywords are: " + known);
    }
    if (!given.insert(name).second) refuse("keyword `" + name + "` is given twice");
    if (narg - iarg < found->count)
      refuse("keyword `" + name + "` needs " + std::to_string(found->count) + " value(s), " + name + " " +
             found->values + ", got " + std::to_string(narg - iarg));
    found->read(arg + iarg);
    iarg += found->count;
  }
  try {
    Python::start();
  } catch (const std::runtime_error &problem) {
    refuse(problem.what());
  }
}

double PairKqeq::energy_unit()
{
  if (strcmp(update->unit_style, "metal") == 0) return 1.0;
  if (strcmp(update->unit_style, "real") == 0)
    return utils::get_conversion_factor(utils::ENERGY, utils::METAL2REAL);
  refuse(std::string("needs `units metal` or `units real`, got `units ") + update->unit_style + "`");
}

void PairKqeq::read_elements(int narg, char **arg)
{
  if (narg < 3)    // that it starts with * * is LAMMPS' own rule for one_coeff
    refuse("the coefficients are: pair_coeff * * MODEL.kqeq ELEMENT ..., one element (or NULL) per atom type");
  const int n = atom->ntypes;
  if (narg - 3 != n)
    refuse("pair_coeff needs one element (or NULL) per atom type: " + std::to_string(n) + " types, got " +
           std::to_string(narg - 3) + " element(s)");
  in_model.assign(n + 1, false);
  for (int i = 1; i <= n; i++) in_model[i] = strcmp(arg[2 + i], "NULL") != 0;
  if (std::count(in_model.begin(), in_model.end(), true) == 0)
    refuse("pair_coeff must name an element for at least one atom type, got NULL for all");
  call.model = arg[2];
  call.elements = arg + 3;
  call.n_types = n;
}

void PairKqeq::coeff(int narg, char **arg)
{
  read_elements(narg, arg);
  if (call.by_molecule && !atom->molecule_flag)
    refuse("`fragments molecule` needs atoms with molecule ids: use `atom_style full`");
  call.energy_unit = energy_unit();
  describe_box();
  open();
  if (!call.has_charges && (given.count("charge") || given.count("field")))
    refuse(std::string(arg[2]) + " has no charges: remove the keywords `charge` and `field`");
  if (!call.has_charges)
    utils::logmesg(lmp, "pair_style kqeq: {} has no charges: short range only, atoms keep the charges they have\n", arg[2]);
  const int n = atom->ntypes;
  if (!allocated) {
    memory->create(setflag, n + 1, n + 1, "pair:setflag");
    memory->create(cutsq, n + 1, n + 1, "pair:cutsq");
    allocated = 1;
  }
  for (int i = 1; i <= n; i++)
    for (int j = 1; j <= n; j++) setflag[i][j] = i <= j && in_model[i] && in_model[j];
}

// ---- the start of a run ----

void PairKqeq::init_style()
{
  refuse_what_is_ignored();
  if (call.has_charges) refuse_what_counts_twice();
  find_variables();
  call.starts_run = 1;
  // no neighbour list is requested: the core finds its own pairs among atoms and ghosts within the cutoff
  describe_box();
  describe_atoms();
  if (fails(Python::table.reach)) refuse_alone(call.message);
}

// what a script may ask for and would not get
void PairKqeq::refuse_what_is_ignored()
{
  // comm_modify group leaves no other trace than this protected member
  struct Borders : Comm {
    static int group(Comm *comm) { return comm->*(&Borders::bordergroup); }
  };
  if (domain->dimension != 3) refuse("needs `dimension 3`");
  if (!force->newton_pair) refuse("needs `newton on`");
  if (comm->nprocs > 1 && !atom->tag_enable) refuse("needs atom ids on several ranks: remove `atom_modify id no`");
  if (force->pair_match("^hybrid$", 0))
    refuse("acts on all pairs of atoms: use `hybrid/overlay` instead of `hybrid`");
  if (neighbor->nex_type || neighbor->nex_group || neighbor->nex_mol)
    refuse("`neigh_modify exclude` is not available: all atoms interact");
  if (Borders::group(comm)) refuse("`comm_modify group` is not available: all atoms interact");
  if (domain->triclinic_general && given.count("field"))
    refuse("`field` is along LAMMPS' own axes, which a general triclinic box turns: use a restricted triclinic box");
  const auto is_one = [](double factor) { return factor == 1.0; };
  const bool is_whole = std::all_of(force->special_lj + 1, force->special_lj + 4, is_one) &&
      std::all_of(force->special_coul + 1, force->special_coul + 4, is_one);
  if ((atom->nbonds > 0 || atom->molecular == Atom::TEMPLATE) && !is_whole && !warned_of_bonds) {
    warned_of_bonds = true;
    warn("special_bonds is not applied: all pairs of atoms interact; write `special_bonds lj/coul 1 1 1`");
  }
}

// all electrostatics is in this pair style: what would add to it, or change charges that it doesn't know of
void PairKqeq::refuse_what_counts_twice()
{
  if (!atom->q_flag) refuse("needs atoms with charges: use `atom_style charge` (or full)");
  if (force->dielectric != 1.0) refuse("knows no `dielectric` but 1: the charges themselves screen fields");
  if (force->kspace) refuse("sums all electrostatics itself: remove `kspace_style`");
  if (force->pair_match("kqeq", 1, 1) != force->pair_match("kqeq", 1, 2))
    refuse("can stand only once in hybrid/overlay");
  for (const char *begin : {"^qeq", "^acks2", "^qtpie"})
    refuse_fixes(begin, "equilibrates the charges itself, for a total charge with `pair_style kqeq charge Q`");
  refuse_fixes("^efield",
               "answers no other field than that of `pair_style kqeq field Ex Ey Ez` (V/Angstrom, or v_name)");
}

void PairKqeq::refuse_fixes(const char *begin, const std::string &instead)
{
  for (const Fix *fix : modify->get_fix_by_style(begin))
    refuse(instead + ": remove `fix " + fix->id + " ... " + fix->style + "`");
}

void PairKqeq::find_variables()
{
  for (FieldPart &part : field) {
    if (part.variable.empty()) continue;
    part.index = input->variable->find(part.variable.c_str());
    if (part.index < 0) refuse("variable `" + part.variable + "` of `field` does not exist");
    if (!input->variable->equalstyle(part.index))
      refuse("variable `" + part.variable + "` of `field` must be of equal style");
  }
}

// ---- a step ----

void PairKqeq::compute(int eflag, int vflag)
{
  ev_init(eflag, vflag);
  if (vflag_atom || cvflag_atom)
    refuse("stress per atom is not available (compute stress/atom, heat/flux and the like)");
  describe_field();
  describe_box();
  describe_atoms();
  describe_ghosts();
  call.want_virial = vflag_global != 0;
  if (born_flag) make_room_for_born_charges();
  call.born = born_flag ? born[0] : nullptr;    // of a rank without atoms too: all ranks solve for them together
  if (measure_flag) make_room_for_measure();
  call.measure = measure_flag ? measure : nullptr;
  call.all_failed = 0;
  if (fails(Python::table.compute)) {
    if (call.all_failed) refuse(call.message);
    refuse_alone(call.message);
  }
  tally();
  if (call.has_charges) call.forward(this, atom->q, 1);
  call.starts_run = call.other_atoms = 0;
}

void PairKqeq::describe_field()
{
  const bool varies = std::any_of(field, field + 3, [](const FieldPart &part) { return !part.variable.empty(); });
  if (varies) modify->clearstep_compute();
  for (int a = 0; a < 3; a++) {
    const FieldPart &part = field[a];
    call.field[a] = part.variable.empty() ? part.value : input->variable->compute_equal(part.index);
  }
  if (varies) modify->addstep_compute(update->ntimestep + 1);    // of computes that the variables refer to
}

void PairKqeq::describe_box()
{
  const double vectors[9] = {domain->xprd, 0.0, 0.0, domain->xy, domain->yprd, 0.0,
                             domain->xz, domain->yz, domain->zprd};
  std::copy(vectors, vectors + 9, call.cell);
  std::copy(domain->periodicity, domain->periodicity + 3, call.periodic);
}

void PairKqeq::describe_atoms()
{
  rows.clear();
  for (int i = 0; i < atom->nlocal; i++)
    if (in_model[atom->type[i]]) rows.push_back(i);
  // LAMMPS re-sorts its atoms in space; by id the input of one rank is the same whatever it did
  if (atom->tag_enable && comm->nprocs == 1)
    std::sort(rows.begin(), rows.end(), [tag = atom->tag](int i, int j) { return tag[i] < tag[j]; });
  const size_t n = rows.size();
  type.resize(n);
  unwrapped.resize(3 * n);
  molecule.resize(call.by_molecule ? n : 0);
  for (size_t k = 0; k < n; k++) {
    type[k] = atom->type[rows[k]];
    unwrap(rows[k], &unwrapped[3 * k]);
    if (call.by_molecule) molecule[k] = atom->molecule[rows[k]];
  }
  call.n_atoms = static_cast<int>(n);
  call.n_local = atom->nlocal;
  call.rank = comm->me;
  call.ranks = comm->nprocs;
  call.type = type.data();
  call.unwrapped = unwrapped.data();
  call.f = atom->nlocal ? atom->f[0] : nullptr;
  call.q = atom->q;
  call.eatom = eflag_atom ? eatom : nullptr;
  call.molecule = molecule.data();
  name_atoms();
  count_atoms();
}

// one rank has images of its own instead
void PairKqeq::describe_ghosts()
{
  call.n_lammps = atom->nlocal + atom->nghost;
  if (call.ranks > 1) {
    for (int i = atom->nlocal; i < call.n_lammps; i++)
      if (in_model[atom->type[i]]) rows.push_back(i);
    x.clear();
    for (int i : rows) x.insert(x.end(), atom->x[i], atom->x[i] + 3);
  }
  name_atoms();
  call.x = x.data();
  // with cutoffs by type, another style's may be longer than ours
  const bool single = comm->mode == Comm::SINGLE;
  call.reach = single ? std::max(neighbor->cutneighmax, comm->cutghostuser) - neighbor->skin : call.cutoff;
  call.renewed = call.starts_run || neighbor->ago == 0;
}

void PairKqeq::name_atoms()
{
  ids.resize(rows.size());
  for (size_t k = 0; k < rows.size(); k++) ids[k] = atom->tag_enable ? atom->tag[rows[k]] : rows[k];
  call.n_all = static_cast<int>(rows.size());
  call.rows = rows.data();
  call.ids = ids.data();
}

// of an id: their sum tells one set of ids from another, on whichever ranks they are
bigint scrambled(int64_t id)
{
  auto bits = static_cast<uint32_t>(id);
  for (int round = 0; round < 2; round++) bits = (bits ^ bits >> 16) * 0x45d9f3bu;
  return bits;
}

void PairKqeq::count_atoms()
{
  const bigint n_before = n_total, ids_before = id_sum;
  bigint sums[2] = {call.n_atoms, 0};
  for (int64_t id : ids) sums[1] += scrambled(id);
  MPI_Allreduce(MPI_IN_PLACE, sums, 2, MPI_LMP_BIGINT, MPI_SUM, world);
  n_total = sums[0];
  id_sum = sums[1];
  if (n_total == 0) refuse("no atoms are left: none was created, or all were lost (a time step too long?)");
  call.other_atoms |= n_total != n_before || id_sum != ids_before;    // between runs too
  if (!call.starts_run && n_total != n_before && !warned_of_number) {
    warned_of_number = true;
    warn("the number of atoms changed from " + std::to_string(n_before) + " to " + std::to_string(n_total) +
         " during the run: the total charge stays as it was, on those that are there now");
  }
}

// without the image flags, dipoles would jump where LAMMPS wraps an atom; along open axes the flags mean nothing
void PairKqeq::unwrap(int i, double *out) const
{
  const imageint image = atom->image[i];
  const imageint cells[3] = {(image & IMGMASK) - IMGMAX, (image >> IMGBITS & IMGMASK) - IMGMAX,
                             (image >> IMG2BITS) - IMGMAX};
  std::copy(atom->x[i], atom->x[i] + 3, out);
  for (int a = 0; a < 3; a++)
    for (int b = 0; b < 3; b++)
      if (call.periodic[a]) out[b] += static_cast<double>(cells[a]) * call.cell[3 * a + b];
}

void PairKqeq::make_room_for_born_charges()
{
  if (atom->nmax > born_rows) {
    born_rows = atom->nmax;
    memory->destroy(born);
    memory->create(born, born_rows, 9, "pair:born");
  }
  if (atom->nlocal) std::fill(born[0], born[0] + 9 * atom->nlocal, 0.0);    // of types that the model leaves out
}

void PairKqeq::make_room_for_measure()
{
  if (atom->nmax > measure_rows) {
    measure_rows = atom->nmax;
    memory->destroy(measure);
    memory->create(measure, measure_rows, "pair:measure");
  }
  std::fill(measure, measure + atom->nlocal, 0.0);    // of types that the model leaves out
}

// LAMMPS adds up the ranks, and each of them has the result of all
void PairKqeq::tally()
{
  if (comm->me) {
    std::fill(call.parts, call.parts + 7, 0.0);
    return;
  }
  if (eflag_global) {
    eng_vdwl += call.parts[0];
    eng_coul += call.parts[1] + call.parts[2];
  }
  if (vflag_global)
    for (int k = 0; k < 6; k++) virial[k] += call.virial[k];
}

// errors are thrown here, in C++ frames: exceptions cannot cross Python's
bool PairKqeq::fails(int (*function)(KqeqCall *))
{
  const bool failed = function(&call) != 0;
  if (call.warning[0]) warn(call.warning);
  return failed;
}

void PairKqeq::open()
{
  const int failed = fails(Python::table.open);
  int all_failed = 0;
  MPI_Allreduce(&failed, &all_failed, 1, MPI_INT, MPI_MIN, world);
  if (all_failed) refuse(call.message);
  if (failed) refuse_alone(call.message);    // a file that one machine does not have
}

// ---- what other commands ask of a pair style: fix pair ----

void *PairKqeq::extract(const char *name, int &dimension)
{
  dimension = 0;
  if (strcmp(name, "born_charges_flag") == 0) return &born_flag;
  return strcmp(name, "extrapolation_flag") == 0 ? &measure_flag : nullptr;
}

void *PairKqeq::extract_peratom(const char *name, int &columns)
{
  // null: they were not computed in this step
  if (strcmp(name, "extrapolation") == 0) {
    columns = 0;
    return call.measure;
  }
  if (strcmp(name, "born_charges") != 0) return nullptr;
  columns = 9;
  return call.born ? born : nullptr;
}

// ---- communication: values of owners to their ghosts, what ghosts have gathered to their owners, sums of all ranks ----

// A blocking call would keep its core busy while it waits; where ranks share cores, others need it to come to an end.
void await(MPI_Request request)
{
  for (int done = 0; !done;) {
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    if (!done) sched_yield();
  }
}

// where the values of each rank begin
std::vector<int> starts_of(const int *counts, int ranks)
{
  std::vector<int> starts(ranks, 0);
  std::partial_sum(counts, counts + ranks - 1, starts.begin() + 1);
  return starts;
}

void PairKqeq::offer_communication()
{
  call.forward = [](void *pair, double *values, int width) {
    auto *self = static_cast<PairKqeq *>(pair);
    self->values = values;
    self->width = width;
    self->comm->forward_comm(self, width);
  };
  call.reverse = [](void *pair, double *values, int width) {
    auto *self = static_cast<PairKqeq *>(pair);
    self->values = values;
    self->width = width;
    self->comm->reverse_comm(self, width);
  };
  call.add = [](void *pair, double *values, int n) {
    MPI_Request sum;
    MPI_Iallreduce(MPI_IN_PLACE, values, n, MPI_DOUBLE, MPI_SUM, static_cast<PairKqeq *>(pair)->world, &sum);
    await(sum);
  };
  call.gather = [](void *pair, const double *values, int n, double *all) {
    auto *self = static_cast<PairKqeq *>(pair);
    std::vector<int> counts(self->comm->nprocs);
    MPI_Allgather(&n, 1, MPI_INT, counts.data(), 1, MPI_INT, self->world);
    const std::vector<int> starts = starts_of(counts.data(), self->comm->nprocs);
    MPI_Request rows;
    MPI_Iallgatherv(values, n, MPI_DOUBLE, all, counts.data(), starts.data(), MPI_DOUBLE, self->world, &rows);
    await(rows);
  };
  call.exchange = [](void *pair, const double *sent, double *received, const int *counts) {
    auto *self = static_cast<PairKqeq *>(pair);
    const int ranks = self->comm->nprocs;
    const std::vector<int> there = starts_of(counts, ranks), here = starts_of(counts + ranks, ranks);
    MPI_Request pieces;
    MPI_Ialltoallv(sent, counts, there.data(), MPI_DOUBLE, received, counts + ranks, here.data(), MPI_DOUBLE, self->world,
                   &pieces);
    await(pieces);
  };
}

int PairKqeq::pack_forward_comm(int n, int *list, double *buffer, int, int *)
{
  for (int k = 0; k < n; k++) buffer = std::copy_n(values + list[k] * width, width, buffer);
  return n * width;
}

void PairKqeq::unpack_forward_comm(int n, int first, double *buffer)
{
  std::copy_n(buffer, n * width, values + first * width);
}

int PairKqeq::pack_reverse_comm(int n, int first, double *buffer)
{
  std::copy_n(values + first * width, n * width, buffer);
  return n * width;
}

void PairKqeq::unpack_reverse_comm(int n, int *list, double *buffer)
{
  for (int k = 0; k < n; k++)
    for (int c = 0; c < width; c++) values[list[k] * width + c] += *buffer++;
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
