"""Plain functions on frames and arrays: no Prefect, no BentoML, no clock.

Whoever computes here loads half a million objects that stay, and Python's search for cycles would walk over them again
after every 700 new ones: an eighth of the time that loading takes. It searches after every 20,000.
"""

import gc

gc.set_threshold(20_000)
