"""How all kernels are compiled."""

JIT = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "arcp"}}
"""Arguments of `numba.njit`; of fast-math only the flags that leave NaN and infinity alone."""
