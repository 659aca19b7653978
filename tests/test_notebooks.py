"""The notebooks in docs/: they run from top to bottom, and are stored without outputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import numpy as np
import PIL.Image
import pytest

from change import ChangeDetector
from tests.conftest import REPOSITORY
from tests.test_docs import anchors

DOCS = REPOSITORY / "docs"
NOTEBOOKS = sorted(path.name for path in DOCS.glob("*.ipynb"))


def read(name: str) -> Any:
    return nbformat.read(DOCS / name, as_version=4)  # type: ignore[no-untyped-call]


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Run a notebook with the files of Jupyter and of the notebook in `folder`; return the outputs of all cells."""
    for variable in ("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read(name)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(DOCS)}}).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def results(outputs: list[dict[str, Any]], kind: str) -> list[str]:
    """Return the values that cells end with, in a format such as text/plain."""
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


def test_there_are_two() -> None:
    assert NOTEBOOKS == ["finetune.ipynb", "use.ipynb"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_without_outputs(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells and all(not cell.outputs and cell.execution_count is None for cell in cells)
    assert notebook.metadata["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_links(name: str) -> None:
    texts = [cell.source for cell in read(name).cells if cell.cell_type == "markdown"]
    targets = [target for text in texts for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    assert targets
    for target in targets:
        path, _, anchor = target.partition("#")
        assert (DOCS / path).is_file() and (not anchor or anchor in anchors(DOCS / path)), target


@pytest.mark.slow
def test_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The share, the polygons and the pictures are shown."""
    outputs = run("use.ipynb", tmp_path, monkeypatch)
    corners = [
        PIL.Image.open(REPOSITORY / "test_samples" / date / "0_0000.jpg").crop((0, 0, 512, 512)) for date in "AB"
    ]
    detector = ChangeDetector()
    share = (detector.predict(*corners) > detector.threshold).mean()
    texts = results(outputs, "text/plain")
    assert f"'{share:.1%} of the pixels changed'" in texts
    assert any(re.match(r"'[\d,]+ polygons, [\d,]+ m²; ", text) for text in texts)
    assert len(results(outputs, "image/png")) == 3
    (table,) = results(outputs, "text/html")
    assert table.count("<tr") == 6 and "area_m2" in table
    assert np.all([Path(path).is_file() for path in re.findall(r"'(\S+/changes/[\w.]+)'", " ".join(texts))])


@pytest.mark.rare
@pytest.mark.slow
def test_finetune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F1 on val rises from almost nothing."""
    texts = results(run("finetune.ipynb", tmp_path, monkeypatch), "text/plain")
    found = re.fullmatch(r"'F1 before: ([\d.]+)%, after: ([\d.]+)%'", texts[-1])
    assert found and float(found[1]) < 5 and float(found[2]) > 10
