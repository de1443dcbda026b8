"""Which device the model service takes, and who predicts for the decision service: by setting, card and break-even."""

import os
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from pipelines.errors import NoDevice
from pipelines.settings import Settings
from serving.inference.device import VISIBLE, choose_device, count_cards, predicts_remotely, rows_a_close
from serving.inference.generation import write_generation
from serving.service.startup import CARD_LOST, end_service, require_device


def settings(tmp_path, **changes):
    return Settings(home=tmp_path, **changes)


@pytest.mark.parametrize(
    ("asked", "cards", "name", "index"),
    [
        ("cpu", 4, "cpu", None),
        ("cuda", 1, "cuda:0 fp32", 0),
        ("cuda:2", 3, "cuda:2 fp32", 2),
        ("cuda:MIG-8a4f/1/0", 1, "cuda:MIG-8a4f/1/0 fp32", 0),
        ("auto", 4, "cpu", None),
    ],
)
def test_a_device_is_named_by_card_or_mig_instance(tmp_path, monkeypatch, asked, cards, name, index):
    monkeypatch.setenv(VISIBLE, "0,1,2,3")
    found = choose_device(settings(tmp_path, device=asked), lambda: cards)
    assert (found.name, found.index) == (name, index)
    assert asked in found.why
    assert os.environ[VISIBLE] == (asked.removeprefix("cuda:") if "MIG" in asked else "0,1,2,3")


@pytest.mark.parametrize("asked", ["gpu", "cuda:", "cuda:-1", "cuda:MIG-", "cuda:one", "cpu:0", "CUDA"])
def test_what_names_no_device_is_refused(tmp_path, asked):
    with pytest.raises(ValidationError, match="device"):
        settings(tmp_path, device=asked)


def test_auto_takes_the_card_from_the_measured_break_even_on_and_says_why(tmp_path):
    measured = settings(tmp_path, device="auto", device_break_even_rows=3)
    assert choose_device(settings(tmp_path), lambda: 1).why.startswith("auto: no break-even is measured here")
    assert choose_device(measured, lambda: 1).why == "auto: 0 row(s) a close, a card is faster from 3"
    warm = {"data_hash": "d" * 32, "digest": "a" * 64, "path": str(tmp_path / "serving" / "warm" / "a")}
    named = {f"S{i}/USDT": warm for i in range(4)}
    write_generation(tmp_path / "serving", {}, named, datetime(2024, 1, 1, tzinfo=UTC))
    assert rows_a_close(measured) == 4
    found = choose_device(measured, lambda: 1)
    assert (found.name, found.why) == ("cuda:0 fp32", "auto: 4 row(s) a close, a card is faster from 3")
    without = choose_device(measured, lambda: 0)
    assert (without.name, without.why) == ("cpu", f"{found.why}, and there is no card")
    assert choose_device(settings(tmp_path, device_break_even_rows=5), lambda: 1).name == "cpu"


def test_a_card_that_was_named_and_is_not_there_ends_the_service_with_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(NoDevice, match=r"cuda:1 and the driver shows 1 card\(s\)"):
        choose_device(settings(tmp_path, device="cuda:1"), lambda: 1)
    monkeypatch.setenv("BELLWETHER_DEVICE", f"cuda:{count_cards()}")
    with pytest.raises(SystemExit, match="cannot start: BELLWETHER_DEVICE is cuda") as ended:
        require_device()
    assert len(str(ended.value).splitlines()) == 1
    monkeypatch.setenv("BELLWETHER_DEVICE", "cpu")
    require_device()


def test_with_a_card_the_model_service_predicts_unless_a_person_says_otherwise(tmp_path):
    assert not predicts_remotely(settings(tmp_path))
    assert predicts_remotely(settings(tmp_path, device="cuda"))
    assert not predicts_remotely(settings(tmp_path, device="cuda", models="local"))
    assert predicts_remotely(settings(tmp_path, models="remote"))


def test_a_lost_card_ends_the_process_at_once_with_a_status_of_its_own():
    child = os.fork()
    if child == 0:
        end_service("a CUDA error")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == CARD_LOST
