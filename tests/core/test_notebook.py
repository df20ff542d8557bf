"""The notebook among the examples runs, and shows what it says."""

import importlib.util
import json

import matplotlib.pyplot as plt
import pytest
from documents import ROOT


@pytest.mark.filterwarnings("error")
def test_the_notebook_runs():
    spec = importlib.util.spec_from_file_location("notebook", ROOT / "ci" / "notebook.py")
    notebook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebook)
    committed = json.loads(notebook.NOTEBOOK.read_text())
    ran = json.loads(notebook.NOTEBOOK.read_text())
    last = {name: run["accuracy"][-1] for name, run in notebook.run(ran)["runs"].items()}
    plt.close("all")
    assert last["votes"] > 0.9 and last["votes, 3 of 8 hostile"] > 0.8 > last["mean, 3 of 8 hostile"]
    kinds = [[output["output_type"] for output in cell.get("outputs", [])] for cell in committed["cells"]]
    assert kinds == [[output["output_type"] for output in cell.get("outputs", [])] for cell in ran["cells"]]
    assert sum(kind.count("display_data") for kind in kinds) == 1
