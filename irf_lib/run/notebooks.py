"""One notebook through papermill, strictly: what is wrong with its parameters is said before a kernel starts."""

import ast
import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import InputError, RunError, one_line, printable, read_json, write_json

TYPES = {"int": int, "float": (int, float), "str": str, "bool": bool, "list": list, "dict": dict}


def find_notebook(root: Path, name: str) -> Path:
    """The notebook of this number or name: 05, 05_score_and_detect, or a path. Raises InputError if there is none."""
    there = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    found = [path for path in there if name in (path.stem, path.stem[:2])] or [Path(name)]
    if found[0].suffix != ".ipynb" or not found[0].is_file():
        raise InputError(f"there is no notebook {printable(name)}; there are {', '.join(path.stem for path in there)}.")
    return found[0]


def notebook_parameters(path: Path) -> dict[str, tuple[str, Any]]:
    """The parameters in a notebook's cell of that tag: name -> (annotated type, default)."""
    cells = [cell for cell in read_json(path)["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    lines = [line for cell in cells for line in ast.parse("".join(cell["source"])).body]
    known = [(line.target, line.annotation, line.value) for line in lines if isinstance(line, ast.AnnAssign)]
    return {name.id: (ast.unparse(kind), ast.literal_eval(value)) for name, kind, value in known}


def check_parameters(path: Path, parameters: Mapping[str, Any]) -> None:
    """Raise InputError for a parameter that the notebook does not have, or of another type."""
    known = notebook_parameters(path)
    for name, value in parameters.items():
        if name not in known:
            raise InputError(f"{path.stem} has no parameter {name!r}; there are {', '.join(known) or 'none'}.")
        kind = known[name][0]
        if kind in TYPES and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "bool")):
            raise InputError(f"{path.stem}: parameter {name} must be {kind}, got {value!r}.")


def execute(path: Path, out: Path, parameters: Mapping[str, Any], root: Path) -> Path:
    """Execute a notebook in the project's folder ``root``; ``out`` appears once it ran to its end.

    Raises InputError for wrong parameters, before a kernel starts. Raises RunError for a failing cell, a kernel that
    died, and a copy that cannot be written; what ran is then in <out>.partial.ipynb."""
    check_parameters(path, parameters)
    # jsonschema would compile a grammar for internationalised URLs, for 3 s; a notebook's schema has none of them.
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    path, out = Path(os.path.abspath(path)), Path(os.path.abspath(out))
    partial = out.with_suffix(".partial.ipynb")
    # Encrypted loopback sockets: nobody else on a shared machine reads them, and the kernel does not warn.
    options = {"progress_bar": False, "config": Config({"KernelManager": {"transport_encryption": "auto"}})}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.chdir(root):  # papermill resolves paths against the working directory
            names = os.path.relpath(path), os.path.relpath(partial)  # executed copies name no folder of this machine
            papermill.execute_notebook(*names, dict(parameters), cwd=".", kernel_name="python3", **options)
        copy = read_json(partial)
        for outputs in (cell["outputs"] for cell in copy["cells"] if "outputs" in cell):  # without ended progress bars
            outputs[:] = [one for one in outputs if "%|" not in "".join(one.get("data", {}).get("text/plain", ""))]
        write_json(out, copy)
        partial.unlink()
    except (PapermillExecutionError, DeadKernelError, OSError) as error:
        if isinstance(error, PapermillExecutionError):
            said = f"failed in cell {error.exec_count}: {error.ename}: {error.evalue}"
        else:  # a dead kernel most often for want of memory; a full disk, or a folder without permission
            said = f"stopped: {one_line(error)}; see to the memory, the disk and the folder's permissions"
        raise RunError(f"{path.stem} {said}\nWhat ran is in {printable(os.path.relpath(partial))}") from None
    return out
