"""Machine code is cached by content: never stale, and never compiled again for what did not change."""

import ast
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.kernel_project import CALL_KERNELS, project

from pipelines import compiled

__all__ = ["project"]


def kernel_results(root: Path) -> list[float]:
    """Return what the kernels compute in a process of their own."""
    mine = {
        "PYTHONPATH": str(root),
        "BELLWETHER_KERNEL_CACHE": str(root.parent / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",  # Python takes a file of the same size and second for the one it compiled
    }
    done = subprocess.run(
        [sys.executable, "-c", CALL_KERNELS],
        cwd=root,
        env=os.environ | mine,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [float(word) for word in done.stdout.split()]


def cached_files(root: Path) -> dict[str, int]:
    """Return file of machine code → when it was written."""
    return {str(f): f.stat().st_mtime_ns for f in (root.parent / "cache").rglob("*.nbc")}


def test_a_change_in_an_imported_kernel_is_noticed_and_only_what_depends_on_it_is_compiled_again(project):
    assert kernel_results(project) == [4.0, 0.5]
    before = cached_files(project)
    file = project / "pipelines" / "inner.py"
    file.write_text(file.read_text().replace("2.0 * x", "3.0 * x"))
    assert kernel_results(project) == [9.0, 0.5]
    after = cached_files(project)
    assert before.items() <= after.items()  # no earlier file was written again
    assert sorted(Path(f).name.split(".")[0] for f in after.keys() - before.keys()) == ["inner", "outer"]


def test_another_copy_of_the_project_compiles_nothing_again(project):
    kernel_results(project)
    before = cached_files(project)
    shutil.copytree(project, project.parent / "second")
    assert kernel_results(project.parent / "second") == [4.0, 0.5]
    assert cached_files(project) == before


def read_by_kernels(file: Path) -> set[str]:
    """Return the modules whose names a kernel of this file, or a constant next to it, uses."""
    tree = ast.parse(file.read_text())
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    source = {alias.asname or alias.name: str(node.module) for node in froms for alias in node.names}
    source |= {name: f"{module}.{name}" for name, module in source.items() if module == "pipelines"}
    parts: list[ast.AST] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and any(
            ast.unparse(each).startswith("kernel") for each in node.decorator_list
        ):
            parts += node.body
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            parts.append(node.value)
    return {source[n.id] for part in parts for n in ast.walk(part) if isinstance(n, ast.Name) and n.id in source}


def test_no_kernel_reads_the_files_that_its_cache_does_not_check():
    read = set().union(*map(read_by_kernels, compiled.kernel_sources()))
    assert "pipelines.contracts" in read
    assert read.isdisjoint({f"pipelines.{file.stem}" for file in compiled.EXCLUDED_SOURCES})


def test_a_change_of_parameters_refusals_or_families_compiles_nothing_again():
    modules = ("settings", "params", "family_params", "errors", "families")
    files = {compiled._ROOT / "pipelines" / f"{name}.py" for name in modules}
    assert all(file.is_file() for file in files)
    for source in compiled.kernel_sources():
        assert files.isdisjoint(compiled.sources_of(source)), source


def test_threads_that_call_a_kernel_first_share_one_dispatcher_and_nogil_is_passed_on():
    kernel = compiled.kernel(nogil=True)(lambda x: x + 1)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: id(kernel.compiled), range(64)))
    assert len(set(found)) == 1
    assert kernel.compiled.targetoptions["nogil"] is True
    assert compiled.kernel(lambda x: x).compiled.targetoptions["nogil"] is False
