"""DVC's own commands in the root of a clone, as its users type them, after `bellwether data restore`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from support import small_project

from bellwether.operations import dvc_command

# one process for all of them: each start of DVC takes a second and more
TYPED = """
import sys
from dvc.cli import main
for line in sys.argv[1:]:
    print(f"$ {line}", flush=True)
    print("exit", main(line.split()), flush=True)
"""
AS_TYPED = "import sys; from bellwether.operations.dvc_command import main; sys.exit(main())"  # what `dvc` calls
AFTER = ("status", "dag", "repro", "pull", "push", "metrics show --json", "params diff", "plots show", "exp show",
         "status --json")  # fmt: skip


def typed(root, *lines):
    """Return line → what DVC printed and its exit code, of lines typed after `dvc`."""
    done = small_project.run(root, "-c", TYPED, *lines)
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    parts = [part.partition("\n")[::2] for part in done.stdout.split("$ ")[1:]]
    return {line: (text.rpartition("exit ")[0], int(text.rpartition("exit ")[2])) for line, text in parts}


def test_every_command_of_dvc_works_in_a_clone_once_its_data_are_restored(tmp_path):
    root = small_project.clone(tmp_path)
    for line in ("repro", "pull"):
        before = small_project.run(root, "-c", AS_TYPED, line)
        assert before.returncode > 0
        assert before.stderr.splitlines()[-1] == dvc_command.LACKS_DATA
    restored = small_project.run(root, "-m", "bellwether.cli.main", "data", "restore", "--json")
    assert restored.returncode == 0, restored.stderr
    assert json.loads(restored.stdout)["match"] == "as data.dvc says"
    assert small_project.git(root, "status", "--porcelain") == ""

    found = typed(root, *AFTER)
    assert {line: code for line, (_, code) in found.items()} == dict.fromkeys(AFTER, 0), found
    assert "evaluate@regime" in found["dag"][0]
    assert "Everything is up to date" in found["pull"][0]
    assert "files pushed" in found["push"][0]
    shown = json.loads(found["metrics show --json"][0])[""]["data"]["docs/results/dvc/regime.json"]["data"]
    evaluated = json.loads((root / "artifacts" / "evaluation" / "regime.json").read_text())
    assert shown["gain"] == evaluated["gain_over"]["constant"]["value"]
    assert "regime-saved" in (root / "dvc_plots" / "index.html").read_text()
    assert json.loads(found["status --json"][0]) == {}
    changed = small_project.git(root, "status", "--porcelain", "--untracked-files=all").split()
    # what `make lock` commits, and nothing else
    assert set(changed[1::2]) == {"dvc.lock", *(f"docs/results/dvc/{name}.json" for name in ("regime", "regime-saved"))}

    # as in a clone of that commit: what stages made is neither here nor in a remote, and nothing looks for it
    for made in ("features", "labels", "regime", "evaluation"):
        shutil.rmtree(root / "artifacts" / made)
    found = typed(root, "pull", "push", "status --json")
    assert {line: code for line, (_, code) in found.items()} == dict.fromkeys(found, 0), found
    assert set(json.loads(found["status --json"][0])) == {"features", "labels", "train@regime", "evaluate@regime"}


def test_dvc_of_this_environment_says_what_brings_the_data_and_nothing_more(tmp_path):
    installed = Path(sys.executable).with_name("dvc").read_text()
    assert "from bellwether.operations.dvc_command import main" in installed
    version = subprocess.run([Path(sys.executable).with_name("dvc"), "--version"], capture_output=True, text=True)
    assert (version.returncode, version.stderr) == (0, "")
    assert not dvc_command.lacks_data(tmp_path)  # a project of somebody else: their DVC is as it was
    (tmp_path / "data.dvc").touch()
    assert not dvc_command.lacks_data(tmp_path)
