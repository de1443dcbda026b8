"""A small project with three kernels, and the code that calls them."""

import shutil

import pytest

from pipelines import compiled

FILES = {
    "pipelines/inner.py": "from pipelines.compiled import kernel\n\n@kernel\ndef twice(x):\n    return 2.0 * x\n",
    "pipelines/outer.py": (
        "from pipelines.compiled import kernel\nfrom pipelines import (\n    inner,\n)\n"
        "from pipelines.inner import twice\n\n@kernel\ndef four_times(x):\n    return twice(twice(x))\n"
    ),
    "pipelines/other.py": "from pipelines.compiled import kernel\n\n@kernel\ndef half(x):\n    return 0.5 * x\n",
}
CALL_KERNELS = (
    "from pipelines.outer import four_times; from pipelines.other import half; print(four_times(1.0), half(1.0))"
)


@pytest.fixture
def project(tmp_path):
    """Return the root of a copy of the project, whose kernels are not compiled yet."""
    root = tmp_path / "first"
    (root / "pipelines").mkdir(parents=True)
    for name, text in FILES.items():
        (root / name).write_text(text)
    shutil.copy(compiled.__file__, root / "pipelines" / "compiled.py")
    return root
