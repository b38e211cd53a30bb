"""The notebooks as they are committed: skeleton, parameters, small cells and prose."""

import ast
import re
import statistics
from pathlib import Path

import nbformat
import pytest
from papermill.inspection import inspect_notebook

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = {path.stem: nbformat.read(path, as_version=4).cells for path in sorted(FOLDER.glob("*.ipynb"))}
COMMON = {"preset", "data", "category", "seed", "test", "settings", "reading", "out", "device"}
each_notebook = pytest.mark.parametrize("name", NOTEBOOKS)


def sources(name, kind):
    return [cell.source for cell in NOTEBOOKS[name] if cell.cell_type == kind]


def trees(name):
    return [ast.parse(source) for source in sources(name, "code")]


def shows_something(source):
    """Whether a cell prints, displays or saves a figure, or ends in an expression that is displayed."""
    last = ast.parse(source).body[-1]
    return isinstance(last, ast.Expr) or bool(re.search(r"\b(print|display|save_figure)\(", source))


def test_numbered_once_and_in_order():
    assert [name[:2] for name in NOTEBOOKS] == [f"{i:02d}" for i in range(16)]


@each_notebook
def test_skeleton(name):
    prose, code = sources(name, "markdown"), sources(name, "code")
    title = prose[0].splitlines()[0]
    assert title.startswith("# ") and title.endswith("?"), "the title is the question"
    rows = [row for row in ("Paper", "Reads", "Writes", "Time") if re.search(rf"^\| {row} \| .+ \|$", prose[0], re.M)]
    assert rows == ["Paper", "Reads", "Writes", "Time"]
    headings = [line for text in prose for line in text.splitlines() if line.startswith("## ")]
    assert headings[:2] == ["## You will", "## The idea"]
    assert headings[-2:] == ["## Checks", "## What you should see"]
    assert 3 <= prose[1].count("\n- ") <= 5
    for part in ("does not show", "**Exercises.**", "<details><summary>", "**Next:**"):
        assert part in prose[-1], part
    assert f'Run.open("{name}"' in code[1] and "run.print_header()" in code[1], "the set-up cell follows the parameters"
    assert code[-1].splitlines()[-1] == "run.finish()"


def test_what_is_read_is_written():
    rows = {name: dict(re.findall(r"^\| (Reads|Writes) \| (.+) \|$", sources(name, "markdown")[0], re.M))
            for name in NOTEBOOKS}  # fmt: skip
    written = {file for row in rows.values() for file in re.findall(r"`([\w/.*]+\.\w+)`", row["Writes"])}
    written.add("peers.csv")  # by make peers
    for name, row in rows.items():
        missing = set(re.findall(r"`([\w.*]+\.(?:csv|npz|safetensors))`", row["Reads"])) - written
        assert not missing, f"{name} reads what no notebook writes: {missing}"


@each_notebook
def test_parameters_are_commented_literals(name):
    tagged = [cell.source for cell in NOTEBOOKS[name] if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == sources(name, "code")[:1], "the first code cell is the one with the parameters"
    names = set()
    for statement in ast.parse(tagged[0]).body:
        assert isinstance(statement, ast.AnnAssign), "every parameter is annotated"
        ast.literal_eval(statement.value)  # raises if anything is derived
        names.add(statement.target.id)
    assert all("#" in line for line in tagged[0].splitlines() if not line.startswith("seed")), "and explained"
    assert {"preset", "out", "device"} <= names
    if {"category", "seed"} <= names:
        assert names >= COMMON, "a notebook that reads one detector has all the common parameters"
    # papermill's own parser must see them all: a line that it cannot read is a parameter that cannot be set.
    assert set(inspect_notebook(FOLDER / f"{name}.ipynb")) == names


@each_notebook
def test_cells_are_small_and_explained(name):
    code = sources(name, "code")
    lengths = [len(source.splitlines()) for source in code]
    figures = [i for i, source in enumerate(code) if source.splitlines()[-1].startswith("run.save_figure(")]
    steps = [length for i, length in enumerate(lengths) if i >= 2 and i not in figures]  # a figure takes its lines
    assert max(lengths) <= 25 and statistics.median(steps) <= 12, lengths
    steps = [source for i, source in enumerate(code) if i >= 2 and i not in figures]
    assert sum(map(len, sources(name, "markdown"))) >= 0.75 * sum(map(len, steps)), "more prose"
    for word in ("!pip", "/home/", "/work/", "for job in", "run.jobs"):
        assert word not in "".join(code), word


@each_notebook
def test_read_it_stands_under_an_output(name):
    cells = NOTEBOOKS[name]
    for before, cell in zip(cells, cells[1:], strict=False):
        if cell.cell_type == "markdown" and cell.source.startswith("Read it"):
            assert before.cell_type == "code" and shows_something(before.source), cell.source
            assert len(cell.source.split("\n\n")[0].split()) <= 42, f"more than 40 words: {cell.source}"
        if before.cell_type == "code" and "run.save_figure(" in before.source:
            assert before.source.splitlines()[-1].startswith("run.save_figure("), "a figure cell ends in save_figure"
            assert cell.cell_type == "markdown" and cell.source.startswith("Read it:"), "a figure is read"


def test_definitions_are_short_and_stand_once():
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = [node for name in NOTEBOOKS for tree in trees(name) for node in ast.walk(tree) if isinstance(node, kinds)]
    assert len({node.name for node in found}) == len(found), "no definition stands in two notebooks"
    long = [node.name for node in found if node.end_lineno - node.lineno > 14]
    assert not long, f"what is longer belongs into the library: {long}"
