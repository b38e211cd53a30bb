"""execute(): strict before a kernel starts, and what it leaves when a cell fails."""

import json

import papermill
import pytest

from irf_lib.files import RunError
from irf_lib.run.notebooks import execute, find_notebook, notebook_parameters

PARAMETERS = 'a: int = 1\nb: float = 0.5\nc: str = ""\nd: bool = False\ne: list = []\nf: dict = {}\n'


@pytest.fixture
def make(tmp_path, notebook, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *cells: notebook(tmp_path / "notebooks" / "01_data.ipynb", PARAMETERS, *cells)


def outputs(path):
    cells = json.loads(path.read_text())["cells"]
    return "".join(text for cell in cells for one in cell.get("outputs", []) for text in one.get("text", []))


def test_parameters_reach_the_notebook_and_it_runs_in_the_project(make, tmp_path):
    path = make("import os\nprint(a, b, c, d, e, f, os.getcwd(), os.environ.get('OMP_NUM_THREADS'))")
    given = {"a": 2, "b": 1, "c": "x", "d": True, "e": [1], "f": {"t": 300}}
    out = execute(path, tmp_path / "out" / "copy.ipynb", given, tmp_path)
    assert f"2 1 x True [1] {{'t': 300}} {tmp_path}" in outputs(out)
    assert [path.name for path in out.parent.iterdir()] == ["copy.ipynb"], "no partial copy is left"
    saved = json.loads(out.read_text())["metadata"]["papermill"]
    assert str(tmp_path) not in json.dumps(saved), "the copy names no folder of this machine"


def test_what_is_wrong_is_said_before_a_kernel_starts(make, tmp_path, monkeypatch, refused):
    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **__: pytest.fail("it was started"))
    for given, words in (
        ({"g": 1}, "01_data has no parameter 'g'; there are a, b, c, d, e, f"),
        ({"a": True}, "parameter a must be int, got True"),
        ({"f": [1]}, "parameter f must be dict, got [1]"),
    ):
        refused(words, execute, make("1"), tmp_path / "copy.ipynb", given, tmp_path)


def test_a_failing_cell_is_named_and_the_partial_copy_kept(make, tmp_path):
    path = make("print('so far')", "raise ValueError('no such thing')")
    (tmp_path / "copy.ipynb").write_text("an earlier run's")
    with pytest.raises(RunError, match=r"01_data failed in cell 3: ValueError: no such thing\n.* copy.partial.ipynb"):
        execute(path, tmp_path / "copy.ipynb", {}, tmp_path)
    assert "so far" in outputs(tmp_path / "copy.partial.ipynb")
    assert (tmp_path / "copy.ipynb").read_text() == "an earlier run's", "which is not replaced"
    with pytest.raises(RunError, match="01_data stopped: .*died.*memory"):
        execute(make("import os\nos._exit(1)"), tmp_path / "copy.ipynb", {}, tmp_path)


def test_a_notebook_is_found_by_number_name_or_path(make, tmp_path, refused):
    path = make("1")
    assert find_notebook(tmp_path, "01") == find_notebook(tmp_path, "01_data") == path
    assert find_notebook(tmp_path, str(path)) == path
    assert notebook_parameters(path)["f"] == ("dict", {})
    for name in ("1", "02", "notebooks", "missing.ipynb"):
        refused(f"there is no notebook {name}; there are 01_data", find_notebook, tmp_path, name)
