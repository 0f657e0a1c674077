"""Input files that the documentation shows, the tests run and `kqeq demo` copies."""
