model=$(python -c "from kqeq_md.models import NACL; print(NACL)")
i-pi input.xml > i-pi.log &
# two drivers share the 8 beads; more cores, more drivers
for driver in 1 2; do
    kqeq-ipi -m "$model" -t start.xyz -u -a nacl_pimd --threads 1 &
done
# one driver instead, with <batch_size> 8 </batch_size> in input.xml:
#   kqeq-ipi -m "$model" -t start.xyz -u -a nacl_pimd --threads 2
wait
