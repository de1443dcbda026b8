"""The seam through which the parts of a stage are computed: order, errors, files that travel, one type of CPU."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pipelines import cpu
from pipelines.errors import BlockedError, MixedCpu, NotEnoughData
from pipelines.models.base import Dataset
from pipelines.models.validator import VALIDATOR
from pipelines.settings import load_params
from pipelines.training import elsewhere
from pipelines.training.elsewhere import Done, check_cpu, compute, packed
from pipelines.training.side_by_side import Job, in_order, side_by_side
from pipelines.training.walk import FINAL, fit_part, jobs_of, join, out_of_fold, plan_walk

JOBS = [Job(f"part {number}", number) for number in range(5)]
PARAMS = load_params()


def times(workspace: Path, factor: int, number: int) -> int:
    return factor * number


def refuse(workspace: Path, least: int, number: int) -> int:
    if number >= least:
        raise NotEnoughData(f"part {number}")
    return number


def copy(workspace: Path, name: str, argument: str) -> int:
    print(f"copies {argument}")
    out = workspace / "out" / name
    out.mkdir(parents=True)
    (out / "copy").write_bytes((workspace / argument).read_bytes())
    return len(argument)


@pytest.mark.parametrize("each", [in_order, side_by_side])
def test_results_are_in_the_order_of_the_jobs_and_the_first_failure_is_raised(each):
    assert each(times, JOBS, 3) == [0, 3, 6, 9, 12]
    with pytest.raises(NotEnoughData, match="part 2"):
        each(refuse, JOBS, 2)


def test_a_part_returns_what_it_wrote_and_printed_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(elsewhere.tempfile, "tempdir", str(tmp_path))
    done = compute(copy, "AAA", "in/file", {"in/file": b"content", "in/other": b""}, Path("out"))
    assert done == Done(7, ("copies in/file",), {"out/AAA/copy": b"content"}, cpu.numeric_cpu())
    with pytest.raises(FileNotFoundError):
        compute(copy, "AAA", "in/file", {}, Path("out"))
    assert list(tmp_path.iterdir()) == []
    elsewhere.unpack(done.files, tmp_path)
    assert packed(tmp_path, [Path("out"), Path("absent")]) == done.files


def test_parts_of_two_types_of_cpu_are_refused_with_both_named():
    done = [Done(0, (), {}, "one-12345678")] * 4
    check_cpu(JOBS[:4], done, "one-12345678")
    with pytest.raises(
        MixedCpu, match=r"MIXED_CPU: part 4 on other-9.*rest on one-1.*BELLWETHER_DASK_URL=local"
    ) as found:
        check_cpu(JOBS, [*done, Done(0, (), {}, "other-9")], "one-12345678")
    assert isinstance(found.value, BlockedError)
    assert found.value.code == "MIXED_CPU"
    with pytest.raises(MixedCpu, match="MIXED_CPU"):  # all parts alike, on another type than the coordinator
        check_cpu(JOBS[:4], done, "other-9")


def test_the_type_names_the_cpu_and_what_changes_its_numbers(monkeypatch):
    found = cpu.numeric_cpu()
    assert found.startswith(f"{cpu.cpu_type()}-")
    assert found == cpu.numeric_cpu.__wrapped__()
    monkeypatch.setenv("NPY_DISABLE_CPU_FEATURES", "AVX512F")
    assert cpu.numeric_cpu.__wrapped__() != found


def market(n=600):
    rng = np.random.default_rng(6)
    rows, known = rng.normal(size=(n, 2)), 3600.0 * np.arange(n)
    y = (rng.random(n) < 1 / (1 + np.exp(-rows[:, 0]))).astype(float)
    extras = {"volatility": rng.normal(size=(n, 2)), "gross_bps": rows[:, 1], "cost_bps": np.ones(n),
              "target_cost_bps": np.ones(n), "atr": np.ones(n)}  # fmt: skip
    return Dataset(("a", "b"), partial(np.take, rows, axis=0), y, np.ones(n), np.ones(n), known, known + 3600.0,
                   np.arange(n), extras)  # fmt: skip


def test_parts_in_any_order_join_to_what_they_are_in_order():
    changes = {"validator": {"trees": 5, "depth": 2}, "splits": {"folds": 3, "calibration_stretches": 2}}
    params = PARAMS.model_copy(
        update={name: getattr(PARAMS, name).model_copy(update=update) for name, update in changes.items()}
    )
    walk = plan_walk(VALIDATOR, market(), params, 0.0, print, None)
    jobs = jobs_of(walk)
    assert [job.argument for job in jobs] == [1, 2, 3, FINAL]
    assert [job.name for job in jobs][2:] == ["validator fold 3", "validator final fit"]
    backwards = [fit_part(Path(), walk, job.argument) for job in reversed(jobs)]
    final, *folds = backwards
    one, two = join(VALIDATOR, folds[::-1]), out_of_fold(VALIDATOR, market(), params, 0.0, print)
    assert one.p.tobytes() == two.p.tobytes()
    assert one.loss.tobytes() == two.loss.tobytes()
    assert (one.fold == two.fold).all()
    assert one.half_lives == two.half_lives
    again = fit_part(Path(), walk, FINAL)
    assert again.export.files == final.export.files
    assert again.pool_p.tobytes() == final.pool_p.tobytes()
