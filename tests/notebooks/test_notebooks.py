"""Notebooks run from a clean kernel, and are committed without what a run leaves in them."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra [test]")
nbclient = pytest.importorskip("nbclient", reason="needs the extra [test]")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
# What each prints, and how many pictures it shows.
EXPECTED = {
    "01_quickstart.ipynb": (("full_sum_loss:", "ms/step"), 3),
    "02_fsa_loss.ipynb": (("stays in a state: 0.7", "shapes for 6 batches"), 2),
}


def test_all_notebooks_are_tested():
    assert {path.name for path in FOLDER.glob("*.ipynb")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_committed_clean(name):
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("name", EXPECTED)
def test_it_runs(name, monkeypatch, tmp_path):
    notebook = nbformat.read(FOLDER / name, as_version=4)
    # The kernel is another process: it must find this checkout, not an installed one, and as many
    # devices as a user has.
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    client = nbclient.NotebookClient(
        notebook,
        timeout=240,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    text = "".join(
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stdout"
    )
    texts, pictures = EXPECTED[name]
    for expected in texts:
        assert expected in text
    images = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(images) == pictures
