"""What a machine with a card is set up from, and the benchmark of it, which runs without one."""

import re
from importlib.metadata import requires

import yaml
from bentoml._internal.bento.build_config import BentoBuildConfig

from benchmarks import gpu
from benchmarks.gpu_home import TINY
from benchmarks.gpu_wheels import PRESENT, lacking
from pipelines.settings import ROOT, Settings

GPU = ROOT / "deploy" / "gpu"


def locked(name):
    """Package → version of a lock file."""
    lines = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / name).read_text(), re.MULTILINE)
    return dict(lines)


def test_every_cuda_library_of_torch_is_pinned_on_top_of_the_lock_of_a_cpu():
    gpu, cpu = locked("requirements-gpu.lock"), locked("requirements.lock")
    assert {name: gpu.get(name) for name in cpu} == cpu
    assert {"nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cuda-runtime", "triton"} <= gpu.keys() - cpu.keys()
    for wanted in requires("torch") or ():  # a CPU build names none
        if found := re.match(r"(nvidia[\w-]*|triton)==([\d.]+)", wanted):
            assert gpu[found[1]] == found[2]
    assert "onnxruntime-gpu" not in gpu


def test_the_bento_is_one_and_takes_the_locked_libraries():
    with (GPU / "models.yaml").open() as file:
        config = BentoBuildConfig.from_yaml(file)
    assert config.service == "serving.service.model_service:ModelService"
    assert config.python.requirements_txt == "requirements-gpu.lock"
    assert all((ROOT / path.strip("/")).exists() for path in config.include)


def test_the_compose_file_reserves_one_nvidia_card_and_names_settings_and_files_that_exist():
    (service,) = yaml.safe_load((GPU / "compose.yaml").read_text())["services"].values()
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert (GPU / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    for name, value in service["environment"].items():
        default = re.fullmatch(rf"\$\{{{name}:-(.*)\}}", value)[1]
        field = name.removeprefix("BELLWETHER_").lower()
        assert getattr(Settings(**{field: default}), field) is not None


def test_the_image_is_made_by_make_as_every_other_and_runs_as_no_root():
    text = (GPU / "Containerfile").read_text()
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    words = [line.split(None, 1) for line in lines if line.strip()]
    assert [word for word, _ in words][:1] == ["FROM"]
    assert ":" in words[0][1]
    assert not words[0][1].endswith("latest")
    assert ["USER", "1000"] in words
    assert ["RUN", "make setup GPU=1"] in words
    makefile = (ROOT / "Makefile").read_text()
    assert "requirements-gpu.lock" in makefile


def test_the_benchmark_starts_the_service_over_http_and_measures_everything_without_a_card(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "count_cards", lambda: 0)
    found = gpu.measure(tmp_path / "home", "0123456", TINY)
    text = "\n".join(found.lines)
    assert found.faults == []
    assert text.startswith("Not measured on a card. These figures are a CPU's")
    assert len(re.findall(r"^\| (?:predictor|pattern) \w+ \| cpu \|", text, re.MULTILINE)) == 4
    for part in ("both, two arms", "Break-even: ", "Swap under load: ", "Out of memory: ", "| cpu | fp32 | 36 × 1 |"):
        assert part in text, part


def test_what_a_bare_machine_lacks_is_named_with_its_locked_version():
    named = lacking(PRESENT, "3.12")
    assert {one.partition("==")[0] for one in named} > {"bentoml", "pydantic-settings", "sqlalchemy", "starlette"}
    assert not {"torch", "numpy", "onnxruntime"} & {one.partition("==")[0] for one in named}
    assert lacking([*PRESENT, *named], "3.12") == []
