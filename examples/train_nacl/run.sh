kqeq train nacl.toml -o my_nacl.kqeq
kqeq eval my_nacl.kqeq test.xyz bulk_test.xyz
