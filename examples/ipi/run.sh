i-pi input.xml > i-pi.log &
kqeq-ipi -m nacl.kqeq -t init.xyz -u -a nacl_cluster --efield "0 0 0.05"
wait
