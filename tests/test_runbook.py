"""The runbook matches the code: a section an alarm, a row a refusal code, and commands and settings that exist."""

import ast
import itertools
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import typer
from typer.main import get_command

from bellwether.cli.main import app
from pipelines.monitoring.triggers import TriggerReason
from pipelines.params import Params
from pipelines.settings import ROOT, Settings, load_params
from serving.risk.codes import REFUSALS, name_of

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
PAGES = {file.stem: file.read_text() for file in (ROOT / "docs").rglob("*.md")}
RAISERS = ("raise_alarm", "_alarm")
REASONS = set(get_args(get_type_hints(TriggerReason)["kind"]))  # an alarm a reason: `reason.kind`


def named(node: ast.expr) -> str:
    """Return the last name of `a.b.c` or `c`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def raised_in(source: str) -> set[str]:
    """Return the kinds of alarm a module raises, passes to a thread or queues in `_alarms`."""
    tree, kinds = ast.parse(source), set()
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    imported = {
        alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    passes_on = {  # functions that only hand on the kind they were given
        argument.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.Lambda)
        for argument in node.args.args
        if argument.arg == "kind"
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        handed = [i for i, argument in enumerate(node.args) if named(argument) in RAISERS]
        if named(node.func) in RAISERS:
            kind = node.args[0] if node.args else next(k.value for k in node.keywords if k.arg == "kind")
        elif handed and len(node.args) > handed[0] + 1:
            kind = node.args[handed[0] + 1]
        elif named(node.func) == "keep_alarm":  # of a condition that lasts: its own kind, or that of a reason
            own = constants.get(named(node.args[1]))
            kinds |= REASONS if own is None else {own}
            continue
        elif named(node.func) == "append" and named(node.func.value) == "_alarms":
            kind = node.args[0].elts[0]
        else:
            continue
        if isinstance(kind, ast.Constant):
            kinds.add(kind.value)
        elif isinstance(kind, ast.Name) and kind.id in constants:
            kinds.add(constants[kind.id])
        elif isinstance(kind, ast.Name) and kind.id in imported:
            kinds.add(getattr(import_module(imported[kind.id]), kind.id))
        elif isinstance(kind, ast.Attribute) and kind.attr == "kind":
            kinds |= REASONS
        else:
            assert named(kind) in passes_on, f"line {node.lineno}: which alarm is raised there cannot be read"
    return kinds


def sources() -> list[Path]:
    return [file for layer in ("pipelines", "serving", "flows", "bellwether") for file in (ROOT / layer).rglob("*.py")]


def sections(title: str) -> list[str]:
    body = RUNBOOK.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^### (.+)$", body, re.MULTILINE)


def commands(text: str) -> list[str]:
    """Return every command line in code, without comments and leading variables."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`((?:[A-Z_]+=\S+ )?bellwether [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in [*lines, *spans] if re.match(r"(\S*=\S+ )?(\.venv/bin/)?bellwether\b", line)]


def parse(line: str) -> None:
    """Fail if the command, one of its options or the number of its arguments is wrong."""
    words = list(itertools.dropwhile(lambda word: "=" in word, shlex.split(line, comments=True)))  # of its environment
    if len(words) == 1:
        return
    known = get_command(app).commands
    assert words[1] in known, line
    command, rest = known[words[1]], words[2:]
    while (inner := getattr(command, "commands", None)) is not None:  # `breaker list`, `data quarantine list`
        assert {*rest[:1]} & {*inner}, line
        command, rest = inner[rest[0]], rest[1:]
    given, left, _ = command.make_parser(typer.Context(command)).parse_args(rest)
    assert not left, f"{line}: takes no {left}"
    lacking = [p.name for p in command.params if p.required and not given.get(p.name)]
    assert not lacking, f"{line}: lacks {lacking}"


def test_every_alarm_the_code_raises_has_its_section_and_every_section_its_alarm():
    raised = set().union(*(raised_in(file.read_text()) for file in sources()))
    assert {title.strip("`") for title in sections("Alarms")} == raised


def test_every_alarm_has_a_line_on_when_to_clear_it():
    for section in RUNBOOK.split("\n## Alarms\n", 1)[1].split("\n## ", 1)[0].split("\n### ")[1:]:
        assert "\n- Clear: " in section, section.splitlines()[0]


@pytest.mark.parametrize(
    ("code", "kinds"),
    [
        ("store.raise_alarm('a', 'high', detail, at)", {"a"}),
        ("KIND = 'b'\nself._alarm(KIND, 'high', detail)", {"b"}),
        ("await to_thread(self._alarm, 'c', 'high', detail)", {"c"}),
        ("self._alarms.append(('e', 'high', detail))", {"e"}),
        ("store.raise_alarm(kind='d', severity='high', detail=detail, at=at)", {"d"}),
        ("lambda kind, severity, detail: store.raise_alarm(kind, severity, detail, at)", set()),
    ],
)
def test_alarms_are_found_in_whatever_form_they_are_raised(code, kinds):
    assert raised_in(code) == kinds


def test_an_alarm_whose_kind_nobody_can_read_is_a_failure():
    with pytest.raises(AssertionError, match="line 1"):
        raised_in("store.raise_alarm(f'{a}_down', 'high', detail, at)")


def test_the_table_of_refusals_is_the_catalogue_in_its_order():
    assert re.findall(r"^\| `([A-Z_]+)` \|", RUNBOOK, re.MULTILINE) == [name_of(bit) for bit in REFUSALS]


def test_every_setting_it_names_is_real():
    for text in PAGES.values():
        for path in re.findall(rf"`((?:{'|'.join(Params.model_fields)})\.[a-z_.]+)`", text):
            if path.endswith((".log", ".json")):  # a file, such as that of the service `models`
                continue
            found = load_params().model_dump()
            for key in path.split("."):
                assert key in found, path
                found = found[key]
        for name in re.findall(r"\bBELLWETHER_([A-Z_]+)\b", text):
            assert name.lower() in Settings.model_fields or name in ("KERNEL_CACHE",), name


@pytest.mark.parametrize("page", PAGES)
def test_every_command_it_shows_exists_with_its_options_and_arguments(page):
    for line in commands(PAGES[page]):
        parse(line)


@pytest.mark.parametrize(
    "line",
    [
        "bellwether dance",
        "bellwether retrain ONE TWO",
        "bellwether rollback",
        "bellwether status --loud",
        "bellwether breaker",
        "bellwether breaker break",
        "bellwether breaker reset --reason x",
    ],
)
def test_a_command_that_does_not_exist_is_noticed(line):
    with pytest.raises(
        (AssertionError, *typer.BadParameter.__bases__)
    ):  # click's UsageError, whichever package ships it
        parse(line)


def test_commands_are_found_in_blocks_and_in_spans():
    text = "run `bellwether up`\n```sh\nbellwether status   # now\nA_PORT=1 bellwether up\n```\n"
    assert commands(text) == ["bellwether status   # now", "A_PORT=1 bellwether up", "bellwether up"]
    assert len(commands(RUNBOOK)) > 30


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_or_to_a_heading(page):
    folder = next(file.parent for file in (ROOT / "docs").rglob(f"{page}.md"))
    anchors = {
        re.sub(r"[^\w\- ]", "", h).replace(" ", "-").lower() for h in re.findall(r"^#+ (.+)$", PAGES[page], re.M)
    }
    for target in re.findall(r"\]\(([^):]+)\)", PAGES[page]):
        path, _, heading = target.partition("#")
        assert (folder / path).exists() if path else heading in anchors, target
