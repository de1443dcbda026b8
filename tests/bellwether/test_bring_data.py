"""A run brings `data/` of its clone first: once, and only where it may; where it cannot, it says why and goes on."""

import io

import pytest
from rich.console import Console

from bellwether.cli.run import bring_data
from bellwether.operations import restore_data
from pipelines.errors import StateError
from pipelines.settings import Settings


@pytest.fixture
def clone(tmp_path):
    """Return the root of a clone without data/."""
    root = tmp_path / "clone"
    (root / ".dvc").mkdir(parents=True)
    for name in ("data.dvc", "params.yaml", ".dvc/config"):
        (root / name).touch()
    return root


def of(root):
    return Settings(home=root / "artifacts", params_file=root / "params.yaml")


def test_data_are_missing_in_a_clone_until_they_are_there(clone):
    assert restore_data.is_missing(of(clone), clone)
    (clone / "data").mkdir()
    assert not restore_data.is_missing(of(clone), clone)


def test_nothing_is_brought_for_other_parameters_or_outside_a_clone(clone, tmp_path):
    other = tmp_path / "params.yaml"
    other.touch()
    assert not restore_data.is_missing(Settings(home=tmp_path, params_file=other), clone)
    (clone / ".dvc" / "config").unlink()
    assert not restore_data.is_missing(of(clone), clone)


def test_where_they_cannot_be_brought_the_reason_is_one_line_and_the_run_goes_on(monkeypatch):
    def refuse(_settings):
        raise StateError("params.yaml simulates another universe than data.dvc describes")

    monkeypatch.setattr(restore_data, "restore", refuse)
    printed = io.StringIO()
    bring_data(Console(file=printed, width=80))
    assert printed.getvalue().splitlines()[-1] == (
        "data/ of this clone could not be restored, so DVC's commands do not work in it: "
        "params.yaml simulates another universe than data.dvc describes"
    )
