"""Tiny notebooks and batch files for the tests of the sweep."""

import nbformat

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
RECORDING = """import sys; sys.path[:0] = [".", ".."]
from lib import results
from lib.metrics import score
run = results.start("NAME", parameters=dict(x=x))
run.record("square", score.exact(x * x, "items"))"""


def notebook(folder, name, *cells, parameters="x = 1", kernel=KERNEL):
    """Write notebooks/<name>.ipynb with a parameters cell (none for None) and code cells."""
    document = nbformat.v4.new_notebook(metadata={"kernelspec": kernel} if kernel else {})
    if parameters is not None:
        document.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    document.cells += [nbformat.v4.new_code_cell(cell.replace("NAME", name)) for cell in cells]
    path = folder / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(document, path)
    return path


def batch_file(folder, text, name="tiny"):
    """Write notebooks/batches/<name>.yaml."""
    path = folder / "notebooks" / "batches" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
