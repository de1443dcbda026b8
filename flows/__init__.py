"""The commands and flows of one machine.

Each process computes on one thread, unless the environment says otherwise, and so does what it starts. All sums here
are small: BLAS shares out even those of three numbers, and on a busy machine its threads spin while they wait for each
other (fits of a Hawkes process on two busy cores took twenty-five times the processor time). Said here because numpy
reads it once, when it is imported.
"""

import os

import pipelines  # says how often garbage is looked for, before anything large is loaded

os.environ.setdefault("OMP_NUM_THREADS", "1")
assert pipelines
