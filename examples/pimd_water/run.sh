model=$(kqeq models water)
steps=${STEPS:-2000}   # of 0.5 fs with 16 beads; classical nuclei run four times as far

# classical nuclei: the same input with one bead
sed -e "s/nbeads='16'/nbeads='1'/" -e "s/prefix='quantum'/prefix='classical'/" \
    -e "s/<batch_size> 16/<batch_size> 1/" -e "s/>2000</>$((4 * steps))</" input.xml > classical.xml
i-pi classical.xml > classical.log &
kqeq-ipi -m "$model" -t start.xyz -u -a water_pimd --charge 1 --threads 1
wait

# quantum nuclei: two drivers share the 16 beads; more cores, more drivers
sed "s/>2000</>$steps</" input.xml > quantum.xml
i-pi quantum.xml > quantum.log &
for driver in 1 2; do
    kqeq-ipi -m "$model" -t start.xyz -u -a water_pimd --charge 1 --threads 1 &
done
# one driver instead, with <batch_size> 16 </batch_size> in input.xml:
#   kqeq-ipi -m "$model" -t start.xyz -u -a water_pimd --charge 1 --threads 2
wait
python plot.py
