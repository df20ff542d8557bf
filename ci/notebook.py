#!/usr/bin/env python3
"""Runs the cells of examples/notebook/votes.ipynb and writes what they print and draw into it; needs no Jupyter.

.venv/bin/python ci/notebook.py
"""

import base64
import contextlib
import io
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "notebook" / "votes.ipynb"


def run(notebook: dict) -> dict:
    """Runs all cells in one namespace, which is returned; their outputs are those of this run."""
    names = {"__name__": "__main__"}
    for number, cell in enumerate((each for each in notebook["cells"] if each["cell_type"] == "code"), 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {number}", "exec"), names)
        cell["execution_count"], cell["outputs"] = number, []
        if printed.getvalue():
            text = printed.getvalue().splitlines(keepends=True)
            cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": text})
        for figure in map(plt.figure, plt.get_fignums()):
            picture = io.BytesIO()
            figure.savefig(picture, dpi=80)
            data = {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": ["<Figure>"]}
            cell["outputs"].append({"output_type": "display_data", "data": data, "metadata": {}})
        plt.close("all")
    return names


if __name__ == "__main__":
    read = json.loads(NOTEBOOK.read_text())
    run(read)
    NOTEBOOK.write_text(json.dumps(read, indent=1, ensure_ascii=False) + "\n")
