"""Every kernel of the product as the plain Python it was compiled from."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from pipelines.compiled import Kernel

PRODUCT = ("pipelines", "serving", "fold_")  # generated folds are modules of their own


@contextmanager
def plain_python() -> Iterator[None]:
    """Replace each compiled function by its source function, in every module that holds it."""
    modules = [module for name, module in sys.modules.items() if name.startswith(PRODUCT)]
    compiled = [(m, name, f) for m in modules for name, f in vars(m).items() if isinstance(f, Kernel)]
    for module, name, function in compiled:
        setattr(module, name, function.py_func)
    try:
        with np.errstate(all="ignore"):  # missing values divide by 0, 64-bit random numbers wrap around
            yield
    finally:
        for module, name, function in compiled:
            setattr(module, name, function)
