"""One file per question; predictions and maps in, numbers out.

Sums of batches (pure, on the device) become results on the host, so that every
example counts exactly once; or numbers of pairs do, in `summary`.
"""
