"""The i-PI driver: `kqeq-ipi` answers i-PI's requests for forces over a socket."""

from kqeq_md.machine.threads import start_with_one_blas_thread

start_with_one_blas_thread()  # here, because the modules of this package import numpy
