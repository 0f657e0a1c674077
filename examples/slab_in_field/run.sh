# Slabs of 4, 6 and 8 layers of NaCl in a field along their normal, and the bulk beside them.
set -e
model=$(kqeq models nacl_split)
for layers in ${LAYERS:-4 6 8}; do
    lmp -in in.slab -var model "$model" -var layers "$layers" -log "log_$layers.lammps" > "lammps_$layers.out"
done
python plot.py
