model=$(python -c "from kqeq_md.models import NACL; print(NACL)")
i-pi input.xml > i-pi.log &
# two drivers work for the four replicas; four at most have something to do
for driver in 1 2; do
    kqeq-ipi -m "$model" -t start.xyz -u -a nacl_remd --threads 1 &
done
wait
