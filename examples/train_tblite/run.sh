python make_data.py ${TRAJECTORIES:-10}   # of each of three kinds; writes train.xyz and test.xyz
kqeq train ammonia.toml -o ammonia.kqeq
kqeq eval ammonia.kqeq test.xyz
python plot.py
