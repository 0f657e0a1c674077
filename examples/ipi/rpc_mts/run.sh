model=$(python -c "from kqeq_md.models import NACL; print(NACL)")
i-pi input.xml > i-pi.log &
kqeq-ipi -m "$model" -t start.xyz -u -a nacl_short --part short --threads 1 &
kqeq-ipi -m "$model" -t start.xyz -u -a nacl_charge --part charge --extras none --threads 1 &
wait
