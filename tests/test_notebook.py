"""python eval.py notebook: the notebook is valid and runs from top to bottom in a fresh kernel."""

import json
import shutil

import pytest

import eval as evaluation
from conftest import run_main
from data import DataError


@pytest.fixture
def runs(smoke, tmp_path):
    """Copies of the smoke runs of a script with one model and of one with several."""
    return [shutil.copytree(smoke(name)[0], tmp_path / name) for name in ("mathieu", "vaegan")]


def test_the_notebook_runs_from_top_to_bottom_and_holds_the_report(runs):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    path = evaluation.notebook(runs)
    assert path == runs[0] / "notebook.ipynb"
    book = nbformat.read(path, 4)
    nbformat.validate(book)
    folder = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(book, timeout=300, resources=folder).execute()
    text = "\n".join(cell.source for cell in book.cells)
    figures = sum(len(list(run.glob("figures/*.png"))) for run in runs)
    assert text.count("data:image/png;base64,") == text.count("Your analysis") == figures
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    assert not any("run_command(main)" in cell or "Command line" in cell for cell in code)
    for run in runs:
        summary = json.loads((run / "results.json").read_text())["summary"]
        shown = [cell.outputs[0]["data"]["text/plain"] for cell in book.cells
                 if cell.cell_type == "code" and cell.outputs]
        assert any(all(label in output for label in summary) for output in shown)


def test_a_folder_without_a_finished_run_is_refused(tmp_path, runs):
    with pytest.raises(DataError, match="finished run"):
        evaluation.notebook([tmp_path / "none"])
    (runs[0] / "report.html").unlink()
    with pytest.raises(DataError, match="finished run"):
        evaluation.notebook(runs)
    assert not (runs[0] / "notebook.ipynb").exists()
    assert run_main(evaluation, "notebook", tmp_path / "none") == 2
