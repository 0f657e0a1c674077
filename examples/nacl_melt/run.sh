# Molten NaCl: 216 ions melted in NVT, then NVE at about 1400 K. STEPS: those of each part; RANKS: of MPI.
set -e
steps=${STEPS:-1500}
mpirun -n "${RANKS:-1}" lmp -in in.melt -var model "$(kqeq models nacl)" -var cells 3 \
    -var nvt "$steps" -var nve "$steps" > lammps.out
python plot.py
