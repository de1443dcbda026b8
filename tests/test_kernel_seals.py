"""Machine code is unpickled only from a private folder and only if its seal matches; the rest is compiled again."""

import os
import pickle
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numba
import pytest
from support.kernel_project import CALL_KERNELS, project

from bellwether.operations import doctor
from pipelines import compiled

__all__ = ["project"]


class Planted:
    """Leaves a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def warnings_of_a_process(root, cache=None):
    """Call the kernels in a process of their own, check their results, and return what it writes to standard error."""
    mine = {"PYTHONPATH": str(root), "BELLWETHER_KERNEL_CACHE": str(cache or root.parent / "cache"),
            "TMPDIR": str(root.parent)}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", CALL_KERNELS],
        cwd=root,
        env=os.environ | mine,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [float(word) for word in done.stdout.split()] == [4.0, 0.5]
    return done.stderr


def test_files_cut_short_swapped_or_unsealed_are_compiled_again_and_logged_once(project, tmp_path):
    cache, trace = project.parent / "cache", tmp_path / "trace"
    assert warnings_of_a_process(project) == ""
    [inner] = cache.glob("inner_*/*.nbi")
    [outer] = cache.glob("outer_*/*.nbc")
    [other] = cache.glob("other_*/*.nbi")
    inner.write_bytes(inner.read_bytes()[:40])
    outer.write_bytes(b"")
    other.write_bytes(pickle.dumps(numba.__version__) + pickle.dumps(Planted(trace)))
    assert len(compiled.invalid_files(cache)) == 3
    warned = warnings_of_a_process(project)
    assert warned.count("\n") == 1, warned
    assert "do not match their seal" in warned
    assert not trace.exists()
    assert compiled.invalid_files(cache) == []
    assert warnings_of_a_process(project) == ""  # everything is cached again
    assert {stat.S_IMODE(path.stat().st_mode) for path in cache.rglob("*.nb*")} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (cache, inner.parent, outer.parent)} == {0o700}

    (cache / compiled.SEALS).unlink()  # as in a cache of an earlier release, or one a user brings along
    other.write_bytes(pickle.dumps(numba.__version__) + pickle.dumps(Planted(trace)))
    assert "do not match their seal" in warnings_of_a_process(project)
    assert not trace.exists()
    assert compiled.invalid_files(cache) == []


def test_a_folder_others_may_write_is_not_used_and_the_process_removes_its_temporary_one(project):
    cache, trace = project.parent / "cache", project.parent / "trace"
    warnings_of_a_process(project)
    [other] = cache.glob("other_*/*.nbi")
    before = other.stat().st_mtime_ns
    cache.chmod(0o777)
    warned = warnings_of_a_process(project)
    assert "others may write in the kernel cache" in warned
    assert "make setup" in warned
    assert other.stat().st_mtime_ns == before
    assert not trace.exists()
    assert list(project.parent.glob("bellwether-kernels-*")) == []


def test_a_cache_that_cannot_be_written_costs_no_result(project):
    (project.parent / "cache" / compiled.SEALS).mkdir(parents=True)
    assert "cannot be stored" in warnings_of_a_process(project)
    assert "no folder" in warnings_of_a_process(project, cache=project / "pipelines" / "inner.py")


# ---- seals, without a kernel


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "kernels"
    monkeypatch.setenv("BELLWETHER_KERNEL_CACHE", str(folder))
    assert compiled.prepare() is None
    for name in ("a/one.nbi", "a/one.1.nbc", "b/two.nbi"):
        compiled.seal(folder, name, name.encode())
    return folder


def test_only_a_whole_cache_counts_as_warm_and_setup_repairs_it(cache):
    assert not compiled.kernels_are_warm()
    compiled.mark_warm()
    assert compiled.kernels_are_warm()
    (cache / "a" / "one.1.nbc").write_bytes(b"a/one.1")
    assert not compiled.kernels_are_warm()
    assert "1 files" in compiled.prepare()
    assert not (cache / "a" / "one.1.nbc").exists()
    assert compiled.invalid_files(cache) == []
    assert not compiled.kernels_are_warm()  # until it is compiled again
    compiled.mark_warm()
    assert compiled.kernels_are_warm()
    (cache / compiled.SEALS).unlink()
    assert not compiled.kernels_are_warm()


def test_setup_deletes_what_others_could_have_written(cache):
    compiled.mark_warm()
    cache.chmod(0o770)
    assert not compiled.kernels_are_warm()
    assert "closed to them" in compiled.prepare()
    assert list(cache.rglob("*.nb?")) == []
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_a_folder_open_to_all_on_purpose_or_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("BELLWETHER_KERNEL_CACHE", str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    with pytest.raises(PermissionError, match="a folder of your own"):
        compiled.prepare()
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o1777
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    (tmp_path / "shared").chmod(0o700)
    with pytest.raises(PermissionError, match="belongs to another user"):
        compiled.prepare()


@pytest.mark.parametrize("bits", [0o666, 0o620])
def test_a_file_others_may_write_a_link_and_one_in_such_a_folder_are_not_read(cache, bits):
    assert compiled.read_sealed(cache, "b/two.nbi") == b"b/two.nbi"
    (cache / "b" / "two.nbi").chmod(bits)
    assert compiled.read_sealed(cache, "b/two.nbi") is None
    (cache / "a").chmod(0o777)
    assert compiled.read_sealed(cache, "a/one.nbi") is None
    (cache / "a").chmod(0o700)
    (cache / "a" / "one.nbi").rename(cache / "a" / "elsewhere")
    (cache / "a" / "one.nbi").symlink_to(cache / "a" / "elsewhere")
    assert compiled.read_sealed(cache, "a/one.nbi") is None


def test_a_list_of_seals_cut_in_a_line_loses_that_line_and_takes_the_next(cache):
    seals = cache / compiled.SEALS
    seals.write_bytes(seals.read_bytes()[:-5])
    assert compiled.read_sealed(cache, "b/two.nbi") is None
    assert compiled.read_sealed(cache, "a/one.nbi") == b"a/one.nbi"
    compiled.seal(cache, "b/two.nbi", b"again")
    assert compiled.read_sealed(cache, "b/two.nbi") == b"again"
    assert compiled.invalid_files(cache) == []


def test_many_writers_at_once_lose_no_seal(cache):
    def write(number):
        for at in range(20):
            compiled.seal(cache, f"c{number}/{at}.nbi", f"{number} {at}".encode())

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiled.invalid_files(cache) == []
    assert all(compiled.read_sealed(cache, f"c{n}/{at}.nbi") for n in range(4) for at in range(20))


def test_doctor_distinguishes_an_open_a_damaged_and_a_cold_cache_and_names_make_setup_for_each(cache):
    assert "not compiled" in doctor.kernels().detail
    compiled.mark_warm()
    assert doctor.kernels().state == "ok"
    (cache / "b" / "two.nbi").write_bytes(b"")
    assert "1 files do not match their seal, b/two.nbi first" in doctor.kernels().detail
    cache.chmod(0o720)
    assert "others may write" in doctor.kernels().detail
    assert doctor.kernels().remedy == "make setup"
