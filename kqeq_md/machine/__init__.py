"""The computer and what runs on it: threads, compiled code, files, terminals, programs installed beside."""
