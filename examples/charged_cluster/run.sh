# (NaCl)16 with an electron more, as it is, and with one less; then GFN2-xTB, which the model learned, beside it.
set -e
model=$(kqeq models nacl)
for charge in -1 0 1; do
    lmp -in in.cluster -var model "$model" -var charge "$charge" -log "log_$charge.lammps" > "lammps_$charge.out"
done
python plot.py
