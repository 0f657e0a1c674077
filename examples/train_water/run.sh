kqeq train water.toml -o water.kqeq
kqeq eval water.kqeq test.xyz bulk_test.xyz --response
