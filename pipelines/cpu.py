"""What this machine's CPU computes: two of one type give equal bytes, given the same release and packages."""

import hashlib
import os
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

from pipelines.compiled import cpu_type

# what leaves out instructions that the CPU has
CODE_CHOICES = ("NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES", "OPENBLAS_CORETYPE", "NUMBA_CPU_NAME",
                "NUMBA_CPU_FEATURES")  # fmt: skip


# whose arithmetic a fit or an evidence figure rests on
NUMERIC = ("numpy", "numba", "llvmlite", "scipy", "pandas", "scikit-learn", "xgboost", "torch", "onnxruntime")


@cache
def code_digest() -> str:
    """Return a digest of the sources of this package and the versions of NUMERIC: other ones may compute otherwise."""
    here = Path(__file__).parent
    digest = hashlib.sha256(" ".join(f"{name} {version(name)}" for name in NUMERIC).encode())
    for source in sorted(here.rglob("*.py")):
        digest.update(source.relative_to(here).as_posix().encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:8]


@cache
def numeric_cpu() -> str:
    """Return the CPU's name and a digest of all that changes what it computes, such as `skylake-avx512-1f0c9a2e`.

    LLVM, BLAS and NumPy choose their code by the instructions that a CPU has, and virtual machines of one CPU may be
    given fewer of them: the name alone does not say.
    """
    import llvmlite.binding

    left_out = [f"{name}={os.environ[name]}" for name in CODE_CHOICES if os.environ.get(name)]
    facts = [platform.machine(), llvmlite.binding.get_host_cpu_features().flatten(), *left_out]
    return f"{cpu_type()}-{hashlib.sha256(' '.join(facts).encode()).hexdigest()[:8]}"
