"""Who imports whom: packages from those below them only, modules in no circle; imports inside functions count."""

import graphlib
from pathlib import Path

import grimp
import pytest
from importlinter import cli

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("lib", cache_dir=None)


def circle(graph) -> list[str] | None:
    """The modules of one circle, None where there is none."""
    ahead = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        graphlib.TopologicalSorter(ahead).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def test_packages_keep_their_order():
    assert cli.lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == cli.EXIT_STATUS_SUCCESS


def test_no_module_imports_itself_through_others(graph):
    assert circle(graph) is None


def test_a_circle_is_seen(graph):
    graph.add_import(importer="lib.files", imported="lib.benchmark")
    assert set(circle(graph)) >= {"lib.files", "lib.benchmark"}
