model=$(kqeq models nacl)
i-pi input.xml > i-pi.log &
# dipole and Born effective charges are what driven dynamics needs; the field is i-PI's, so no --efield
kqeq-ipi -m "$model" -t start.xyz -u -a nacl_pulse --extras dipole,bec
wait
python plot.py
