"""The documents lead somewhere: links and anchors exist, and ARCHITECTURE's table names real paths and symbols."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from benchmarks import results
from pipelines.settings import ROOT

PAGES = sorted(
    page
    for page in ROOT.rglob("*.md")
    if not {".venv", "artifacts", "node_modules"} & set(page.relative_to(ROOT).parts)
    and not any(part.startswith(".") for part in page.relative_to(ROOT).parts)
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))


def prose(page):
    """The page without fenced code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """Anchors of the headings as GitHub makes them: lower case, hyphens for spaces, -1, -2 … for repeated ones."""
    seen, found = Counter(), set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        slug = (
            re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).strip().replace(" ", "-")
        )
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def broken_links(page):
    """Relative links of the page whose file or anchor does not exist."""
    broken = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def section(title):
    """The lines of one section of ARCHITECTURE.md."""
    return ARCHITECTURE.split(f"## {title}", 1)[1].split("\n## ", 1)[0]


def python_names(file):
    """Functions, classes and assigned names of a module, and those of its classes as `Class.name`."""
    names = set()

    def add(body, prefix):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                add(node.body, f"{prefix}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets:
                names.update(
                    prefix + each.id for each in ast.walk(target) if isinstance(each, ast.Name)
                ) if target else None

    add(ast.parse(file.read_text()).body, "")
    return names


def has_symbol(file, symbol):
    """True if a Python file defines the symbol or a YAML file has the dotted key."""
    if file.suffix == ".py":
        return symbol in python_names(file)
    value = yaml.safe_load(file.read_text())
    for key in symbol.split("."):
        if not isinstance(value, dict) or key not in value:
            return False
        value = value[key]
    return True


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    assert broken_links(page) == []


def test_a_missing_file_and_a_missing_heading_are_found(tmp_path):
    (tmp_path / "other.md").write_text("# Some `code`, here\n\n## Twice\n\n## Twice\n")
    page = tmp_path / "page.md"
    page.write_text("[a](other.md#some-code-here) [b](other.md#twice-1) [c](other.md#thrice) [d](gone.md) [e](#no)\n")
    assert broken_links(page) == ["other.md#thrice", "gone.md", "#no"]


def test_every_path_and_symbol_of_the_table_of_changes_exists():
    table = section("Where do I change …")
    named = re.findall(r"`([\w./-]+\.(?:py|yaml))(?::([\w.]+))?`", table)
    assert len(named) > 40
    missing = [
        f"{path}:{symbol}"
        for path, symbol in named
        if not (ROOT / path).is_file() or (symbol and not has_symbol(ROOT / path, symbol))
    ]
    assert missing == []


def test_a_symbol_that_is_not_there_is_found():
    assert has_symbol(ROOT / "serving" / "risk" / "breakers.py", "BREAKERS")
    assert has_symbol(ROOT / "serving" / "state" / "symbols.py", "Symbol.validate_new")
    assert not has_symbol(ROOT / "serving" / "state" / "symbols.py", "validate_new")
    assert has_symbol(ROOT / "params.yaml", "risk.kelly_cap")
    assert not has_symbol(ROOT / "params.yaml", "risk.kelly_cap.value")


def test_the_tests_named_next_to_the_laws_exist():
    named = re.findall(r"`(tests[\w/.]*)`", section("Laws and the tests that hold them"))
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_tree_names_folders_that_exist_and_every_folder_of_the_product():
    tree = section("The tree")
    top = re.findall(r"^([a-z]+)/", tree, re.MULTILINE)
    assert [name for name in top if not (ROOT / name).is_dir()] == []
    for package in ("bellwether", "flows", "serving", "pipelines"):
        folders = {p.parent.name for p in (ROOT / package).glob("*/__init__.py")} - {"migrations"}
        part = tree.split(f"\n{package}/", 1)[1].split("\n```", 1)[0]
        assert [name for name in folders if f"  {name}/" not in part] == [], package


def test_architecture_is_read_in_ten_minutes():
    assert len(ARCHITECTURE.splitlines()) <= 170


def test_every_decision_has_context_choice_and_cost_and_is_in_the_index():
    index = (ROOT / "docs" / "decisions" / "README.md").read_text()
    assert [page.name[:4] for page in DECISIONS] == [f"{n:04d}" for n in range(1, len(DECISIONS) + 1)]
    for page in DECISIONS:
        headings = re.findall(r"^## (\w+)$", page.read_text(), re.MULTILINE)
        assert headings == ["Context", "Choice", "Cost"], page.name
        assert f"]({page.name})" in index, page.name


def test_every_row_id_that_code_or_pages_cite_is_in_the_specification():
    rows = set(re.findall(r"^\| ([A-Z]\d{1,2}) \|", (ROOT / "docs" / "specification.md").read_text(), re.MULTILINE))
    letters = "".join(sorted({row[0] for row in rows}))
    cited = {}
    for folder in ("bellwether", "flows", "serving", "pipelines", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            words = " ".join(re.findall(r"#[^\n]*|\"\"\".*?\"\"\"", file.read_text(), re.DOTALL))
            for row in re.findall(rf"\b[{letters}]\d{{1,2}}\b", words):
                cited.setdefault(row, str(file.relative_to(ROOT)))
    for page in PAGES:
        for row in re.findall(rf"\b[{letters}]\d{{1,2}}\b", prose(page)):
            cited.setdefault(row, str(page.relative_to(ROOT)))
    assert {row: where for row, where in cited.items() if row not in rows} == {}


def test_pages_use_the_words_of_the_glossary_and_not_those_it_replaced():
    found = [
        f"{page.relative_to(ROOT)}: {word}"
        for page in PAGES
        for word in re.findall(r"\b(?:told|said|heard|nought|anew|whoever)\b", page.read_text())
    ]
    assert len(found) < 15, found


def test_the_glossary_has_one_line_a_term():
    rows = [line for line in (ROOT / "docs" / "glossary.md").read_text().splitlines() if line.startswith("| ")]
    terms = [row.split("|")[1].strip() for row in rows if not row.startswith("| term")]
    assert len(terms) > 60
    assert len(set(terms)) == len(terms)


def test_results_lie_in_their_own_folder():
    assert {page.name for page in (ROOT / "docs").glob("*.md")} == {
        "glossary.md", "health.md", "runbook.md", "scale.md", "security.md", "specification.md", "tour.md",
    }  # fmt: skip
    assert Path(ROOT / "docs" / "results" / "faults.md").is_file()


def sentences_of(writer):
    """Literal text of `page` in a benchmark that writes a page: headings, and the fixed parts of its paragraphs."""
    tree = ast.parse((ROOT / "benchmarks" / f"{writer}.py").read_text())
    page = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "page")
    nodes = (node for statement in page.body[1:] for node in ast.walk(statement))  # without the docstring
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [text for text in (" ".join(text.split()) for text in texts) if len(text) > 30]


@pytest.mark.parametrize(
    "writer",
    ["columns", "exits", "fusion", "portfolio", "signals", "simulator_edge", "store", "stress", "tail_risk",
     "thresholds"],
)  # fmt: skip
def test_a_measured_page_has_the_words_of_its_writer(writer):
    page = " ".join((ROOT / "docs" / "results" / f"{writer.replace('_', '-')}.md").read_text().split())
    missing = [text for text in sentences_of(writer) if text not in page]
    assert missing == []


def test_the_page_of_faults_has_the_words_of_its_writer():
    page = (ROOT / "docs" / "results" / "faults.md").read_text()
    assert all(text in page for text in (results.MATRIX, results.ENDPOINTS, results.UPGRADE))
    assert results.INTRODUCTION.format(parts=" ".join(results.PARTS)) in page
