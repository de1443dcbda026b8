"""Tutorials are followed from top to bottom, in a copy of the project; their output must be the real output.

Of a tutorial's code blocks, those with `title="path"` are files: a new one, or (language `diff`) a change to one.
`sh` blocks are run, `text` blocks are lines their output must hold (`…` = anything; a changed number is a finding),
`console` blocks are shown only: they start servers. All changes are made before anything runs, so that kernels are
compiled once for all tutorials; a test of their own shows that none of them needs another.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.compiled import cache_dir
from pipelines.settings import ROOT

FOLDER = ROOT / "docs" / "tutorials"
TUTORIALS = sorted(file.stem for file in FOLDER.glob("*.md"))
LINES = {
    "add-a-model": 300
}  # a family is a label, parameters, a view, a model family and five catalogues: more than a page
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """Hold a code block. path: the file it is, None if it is run or shown; before: the prose since the last block."""

    language: str
    path: str | None
    text: str
    before: str


def blocks(name: str) -> list[Block]:
    text, at, found = (FOLDER / f"{name}.md").read_text(), 0, []
    for match in BLOCK.finditer(text):
        found.append(Block(match[1], match[2], match[3], text[at : match.start()]))
        at = match.end()
    return found


def edits(name: str) -> list[Block]:
    return [block for block in blocks(name) if block.path is not None]


def changed(old: str | None, block: Block) -> str:
    """Return the file after a block. A change shows the lines around it, which must be there exactly once."""
    if block.language != "diff":
        assert old is None, f"{block.path} exists; show the change as a diff"
        return block.text
    assert old is not None, f"{block.path} is not there"
    for hunk in re.split(r"^@@.*\n", block.text, flags=re.MULTILINE):
        lines = hunk.splitlines(keepends=True)
        assert all(line[0] in " +-" for line in lines), f"{block.path}: a line of the change starts with none of ' +-'"
        before = "".join(line[1:] for line in lines if line[0] != "+")
        assert old.count(before) == 1, f"{block.path} holds {old.count(before)} times:\n{before}"
        old = old.replace(before, "".join(line[1:] for line in lines if line[0] != "-"))
    return old


def tracked() -> list[str]:
    """Return the files of the project; outside a git checkout, all of its source folders."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return [path for path in done.stdout.splitlines() if (ROOT / path).is_file()]
    folders = ("bellwether", "benchmarks", "docs", "flows", "mlflow", "pipelines", "serving", "tests")
    inside = [file for folder in folders for file in (ROOT / folder).rglob("*") if "__pycache__" not in file.parts]
    return [str(file.relative_to(ROOT)) for file in [*ROOT.glob("*"), *inside] if file.is_file()]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Iterator[Path]:
    """Yield a copy of the project with the changes of all tutorials."""
    root = tmp_path_factory.mktemp("tutorial") / "bellwether"
    for path in tracked():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, root / path)
    for name in TUTORIALS:
        for block in edits(name):
            file = root / block.path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(changed(file.read_text() if file.exists() else None, block))
    yield root
    shutil.rmtree(root)


def typed(script: str, root: Path) -> subprocess.CompletedProcess[str]:
    """Run a block as in an activated environment, in the copy."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("BELLWETHER_", "PYTEST_")) and k != "CI"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    mine = {"PATH": path, "PYTHONPATH": str(root), "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    mine["BELLWETHER_KERNEL_CACHE"] = str(cache_dir())  # what the change does not touch is compiled already
    return subprocess.run(["bash", "-eu", "-o", "pipefail", "-c", script], cwd=root, env=outside | mine, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240)  # fmt: skip


def plain(text: str) -> str:
    """Return the text without table frames, with single blanks."""
    return re.sub(r"[│┃ \t]+", " ", text).strip()


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_can_be_followed_and_its_output_is_real(name, copy):
    output = ""
    for block in blocks(name):
        if block.language == "sh":
            fails = block.before.rstrip().endswith("(exit code 1):")
            done = typed(block.text, copy)
            output = plain(done.stdout)
            assert done.returncode == int(fails), f"{block.text}\n{done.stdout[-4000:]}"
        elif block.language == "text" and block.path is None:
            for line in filter(None, map(plain, block.text.splitlines())):
                wanted = ".*".join(map(re.escape, line.split("…")))
                assert re.search(wanted, output), f"not seen: {line}\n{output[-4000:]}"


def test_the_code_of_tutorials_is_in_our_style(copy):
    files = {block.path for name in TUTORIALS for block in edits(name) if block.path.endswith(".py")}
    for words in (["check"], ["format", "--check"]):
        done = typed(shlex.join(["ruff", *words, "--no-cache", *sorted(files)]), copy)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_needs_no_other_one(name):
    files: dict[str, str] = {}
    for block in edits(name):
        there = ROOT / block.path
        old = files.get(block.path, there.read_text() if there.exists() else None)
        files[block.path] = changed(old, block)


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_starts_with_what_one_has_at_the_end_and_names_every_file_before_it_is_shown(name):
    text = (FOLDER / f"{name}.md").read_text()
    assert "At the end" in text[:600]
    assert 60 <= len(text.splitlines()) <= LINES.get(name, 150)
    for block in edits(name):
        assert f"`{block.path}`" in block.before, block.path
