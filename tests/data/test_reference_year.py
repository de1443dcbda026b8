"""The committed year: equal bytes on the CPU type it was made on, elsewhere 1,000 sampled bars within 1e-9."""

from hashlib import sha256

import numpy as np
import pytest
import yaml

from pipelines.contracts import CLOSE, OPEN_TIME
from pipelines.data.data_version import DataVersion, write_manifest
from pipelines.data.reference_year import (
    DESCRIPTION,
    EQUAL,
    SAME_MARKET,
    SAMPLE,
    compare,
    cpu_type,
    holds_sample,
    write_pointer,
)
from pipelines.data.schemas import read_bars, to_matrix
from pipelines.data.simulator.market import simulate
from pipelines.errors import UnreadableFile
from pipelines.settings import ROOT, load_params


def pointer_made_on(folder, cpu, **about):
    file = folder / "data.dvc"
    file.write_text(yaml.safe_dump({"outs": [{"md5": "0123.dir"}], "meta": {"cpu": cpu, **about}}))
    return file


@pytest.fixture(scope="module")
def sample():
    return to_matrix(read_bars(SAMPLE))


def test_the_committed_pointer_names_the_cpu_type_it_was_made_on():
    assert yaml.safe_load((ROOT / "data.dvc").read_text())["meta"]["cpu"].startswith("x86_64 ")
    assert cpu_type().split()[0] in ("x86_64", "aarch64", "arm64")


def test_the_sample_is_a_thousand_bars_of_the_simulated_year(sample):
    assert len(sample) == 1000
    spec = load_params().simulator.model_copy(
        update={"history_days": 10, "live_days": 0, "drift_after_live_days": None}
    )
    bars = simulate(spec, tape=False).bars
    inside = sample[sample[:, OPEN_TIME] <= bars[-1, OPEN_TIME]]
    assert len(inside) > 10
    at = np.searchsorted(bars[:, OPEN_TIME], inside[:, OPEN_TIME])
    np.testing.assert_allclose(bars[at], inside, rtol=1e-9)


def test_the_same_hash_is_the_committed_year_on_any_cpu(sample, tmp_path):
    assert compare("0123.dir", {"SIM/USDT": sample}, pointer_made_on(tmp_path, "x86_64 AVX2")) == EQUAL


def test_another_hash_is_another_market_on_the_cpu_type_it_was_made_on(sample, tmp_path):
    assert compare("4567.dir", {"SIM/USDT": sample}, pointer_made_on(tmp_path, cpu_type())) is None


def test_on_another_cpu_type_the_sampled_bars_decide(sample, tmp_path):
    pointer = pointer_made_on(tmp_path, "riscv64")
    rounded, moved = sample.copy(), sample.copy()
    rounded[:, CLOSE] *= 1.0 + 1e-12
    moved[500, CLOSE] *= 1.0 + 1e-7
    assert compare("4567.dir", {"SIM/USDT": rounded}, pointer) == SAME_MARKET
    assert compare("4567.dir", {"SIM/USDT": moved}, pointer) is None
    assert compare("4567.dir", {"SIM/USDT": sample[:-1]}, pointer) is None
    assert not holds_sample(sample[:0])


def test_a_universe_is_the_committed_one_if_its_symbols_are_and_the_first_has_the_sampled_bars(sample, tmp_path):
    pointer = pointer_made_on(tmp_path, "riscv64", symbols={"SIM/USDT": "a", "SIMB/USDT": "b"})
    assert compare("4567.dir", {"SIM/USDT": sample, "SIMB/USDT": sample[:9]}, pointer) == SAME_MARKET
    assert compare("4567.dir", {"SIM/USDT": sample}, pointer) is None
    assert compare("4567.dir", {"SIM/USDT": sample[:9], "SIMB/USDT": sample}, pointer) is None


def test_a_pointer_is_made_from_a_data_version_with_cpu_type_and_symbols(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data.dvc").write_text(yaml.safe_dump({"outs": [{"md5": "0123.dir", "path": "data"}]}))
    for name in ("a", "b", "c"):
        (tmp_path / "data" / name).write_bytes(name.encode())
    facts = {"timeframe": "1m", "first": "2024-01-01", "last": "2024-01-02"}
    markets = {"A/USD": facts | {"files": ["a", "b"]}, "B/USD": facts | {"files": ["c"]}}
    write_manifest(tmp_path / "data", DataVersion(markets))
    write_pointer(tmp_path, tmp_path / "made.dvc")
    assert yaml.safe_load((tmp_path / "made.dvc").read_text()) == {
        "outs": [{"md5": "0123.dir", "path": "data"}],
        "desc": DESCRIPTION,
        "meta": {"cpu": cpu_type(), "symbols": {"A/USD": sha256(b"ab").hexdigest(), "B/USD": sha256(b"c").hexdigest()}},
    }


def test_without_a_pointer_nothing_is_compared_and_a_broken_one_is_refused(sample, tmp_path):
    assert compare("0123.dir", {"SIM/USDT": sample}, tmp_path / "data.dvc") is None
    (tmp_path / "data.dvc").write_text("outs: []\n")
    with pytest.raises(UnreadableFile, match="git checkout"):
        compare("0123.dir", {"SIM/USDT": sample}, tmp_path / "data.dvc")


def test_cpu_types_are_named_by_the_widest_vectors_in_use(monkeypatch):
    found: list[str] = []
    monkeypatch.setattr(np, "show_config", lambda mode: {"SIMD Extensions": {"found": found}})
    assert len(cpu_type().split()) == 1
    found.append("X86_V3")
    assert cpu_type().endswith(" AVX2")
    found.append("X86_V4")
    assert cpu_type().endswith(" AVX-512")
