"""Batch files: which notebooks run with which parameters, checked completely before anything runs.

    timeout: 900                  # seconds a notebook may take; an entry may have its own
    notebooks:
      - notebook: 00_start_here   # a file of the folder above the batch file's, without .ipynb
      - notebook: 50_benchmark
        parameters: {windows: 16}                          # the same for all runs of this entry
        grid: {method: [rtn, gptq], bits: [8, 4, 3, 2]}    # every combination: 8 runs
      - notebook: 50_benchmark
        runs: [{method: depth, blocks: 2}, {method: depth, blocks: 4}]   # listed one by one: 2 runs
        timeout: 1800
      - notebook: 60_report
        after: all                # waits for all entries above, and runs again when any record has changed

papermill runs the defaults when a parameter is misspelled; here names and types must match the notebook's cell
tagged `parameters`.
"""

import collections
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from lib import files
from lib.claims import literals

TIMEOUT = 900.0  # seconds
_ENTRY_KEYS = ("notebook", "parameters", "grid", "runs", "timeout", "after")


@dataclass(frozen=True)
class Run:
    """One notebook with the parameters given to it.

    everything: the given parameters with the defaults of the others. waits_for: how many runs, counted from the
    batch's first, must end before this one starts. after_all: whether it runs again when any record has changed.
    """

    notebook: Path
    parameters: dict = field(hash=False)
    everything: dict = field(default_factory=dict, hash=False)
    timeout: float = TIMEOUT
    after_all: bool = False
    waits_for: int = 0

    @property
    def name(self) -> str:
        """Name of the outputs and of the record: readable, safe in a file system, one per configuration."""
        parts = [f"{key}={_shown(value)}" for key, value in sorted(self.parameters.items())]
        name = "-".join([self.notebook.stem, *parts])
        # a value with other characters, or one that looks like another type, could name two configurations
        ambiguous = any(isinstance(value, str) and _literal(value) for value in self.parameters.values())
        if re.fullmatch(r"[\w.=+-]{1,120}", name, re.ASCII) and not ambiguous:
            return name
        digest = hashlib.sha256(json.dumps(self.parameters, sort_keys=True).encode()).hexdigest()[:8]
        return f"{re.sub(r'[^A-Za-z0-9_.=+-]+', '_', name)[:110]}-{digest}"

    @property
    def label(self) -> str:
        """A readable label: `50_benchmark method=gptq bits=3`."""
        return " ".join([self.notebook.stem, *(f"{key}={_shown(value)}" for key, value in self.parameters.items())])


def read(path: Path | str, model: str | None = None) -> list[Run]:
    """The runs of a batch file, in order; notebooks lie in the folder above the batch file's.

    model: replaces the parameter `model` of every notebook that has one: a name, a folder or a Hub id.

    Raises FileNotFoundError for a batch that is not there, ValueError listing every problem of one that is wrong.
    """
    path = Path(path).resolve()
    if not path.is_file():
        near = files.choices(path.name, (p.name for p in path.parent.glob("*.y*ml")))
        raise FileNotFoundError(f"batch {path.name} is not in {path.parent}; a YAML file is needed; {near}")
    content = _yaml(path)
    _known(content, ("timeout", "notebooks"), "the batch file")
    entries = content.get("notebooks")
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"notebooks={entries!r} in {path.name}; a list with an entry per notebook is needed; add one.")
    runs, problems = [], []
    given = {} if model is None else {"model": model}
    for number, entry in enumerate(entries, 1):
        try:
            timeout = _seconds(content.get("timeout", TIMEOUT))
            runs += _expand(entry, path.parent.parent, timeout, len(runs), given)
        except ValueError as error:
            what = entry.get("notebook") if isinstance(entry, dict) else entry
            problems.append(f"entry {number} ({what}): {error}")
    same = collections.defaultdict(list)
    for run in runs:
        same[json.dumps([run.notebook.stem, run.everything], sort_keys=True, default=str)].append(run.label)
    for labels in same.values():
        if len(labels) > 1:
            problems.append(f"{' and '.join(labels)} are the same configuration; one is allowed; remove the others.")
    if problems:
        raise ValueError(f"{path.name}: nothing was run.\n" + "\n".join(problems))
    return runs


def code_cells(notebook: Path) -> list[str]:
    """Sources of the code cells: what a notebook computes, without its outputs."""
    return [cell["source"] for cell in _document(notebook)["cells"] if cell.get("cell_type") == "code"]


def defaults(notebook: Path) -> dict:
    """Names and values of the cell tagged `parameters`; ValueError where it is missing or not made of literals."""
    document = _document(notebook)
    if "name" not in document.get("metadata", {}).get("kernelspec", {}):
        raise ValueError(f"{notebook.name} names no kernel; kernelspec metadata is needed; save it in Jupyter once.")
    tagged = [c for c in document["cells"] if "parameters" in c.get("metadata", {}).get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(
            f"{notebook.name} has {len(tagged)} cells tagged `parameters`; one is needed; tag it in Jupyter."
        )
    try:
        return literals(document)
    except (SyntaxError, ValueError, AttributeError) as error:
        raise ValueError(
            f"the parameters cell of {notebook.name} holds more than `name = literal` ({error}); "
            "numbers, texts, booleans, None and lists are allowed; move the rest to the next cell."
        ) from None


def _expand(entry, folder: Path, timeout: float, before: int, replaced: dict) -> list[Run]:
    """The runs of one entry, with the values of `replaced` in place of its own."""
    if not isinstance(entry, dict) or not isinstance(entry.get("notebook"), str):
        raise ValueError("it names no notebook; `- notebook: NAME` is needed; add the name of a file without .ipynb.")
    _known(entry, _ENTRY_KEYS, "this entry")
    if entry.get("after", "all") != "all":
        raise ValueError(f"after={entry['after']!r}; only `all` is allowed; order the entries for anything else.")
    notebook = folder / f"{entry['notebook']}.ipynb"
    available = {path.stem for path in folder.glob("*.ipynb")}
    if entry["notebook"] not in available:
        near = files.choices(entry["notebook"], available)
        raise ValueError(f"notebook {entry['notebook']!r} is not in {folder.name}/; an existing one is needed; {near}")
    allowed = defaults(notebook)
    waits = before if "after" in entry else 0
    seconds = _seconds(entry["timeout"]) if "timeout" in entry else timeout
    replaced = {name: value for name, value in replaced.items() if name in allowed}
    combinations = [given | replaced for given in _combinations(entry)]
    for given in combinations:
        for name, value in given.items():
            if name not in allowed:
                raise ValueError(f"parameter {name!r} is not in {notebook.name}; {files.choices(name, allowed)}")
            given[name] = _typed(name, value, allowed[name])
    return [Run(notebook, given, allowed | given, seconds, "after" in entry, waits) for given in combinations]


def _combinations(entry: dict) -> Iterator[dict]:
    """The parameter values of every run of an entry: shared ones, with each cell of the grid or each listed run."""
    shared, grid, runs = entry.get("parameters", {}), entry.get("grid", {}), entry.get("runs", [{}])
    if "grid" in entry and "runs" in entry:
        raise ValueError("it has both grid and runs; one is allowed; make two entries.")
    if not isinstance(shared, dict):
        raise ValueError("`parameters: {name: value}` is allowed; add the braces.")
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise ValueError("`grid: {name: [value, value]}` is allowed; add the brackets and a value at least.")
    if not isinstance(runs, list) or not runs or not all(isinstance(run, dict) for run in runs):
        raise ValueError("`runs: [{name: value}, {name: value}]` is allowed; add the brackets and a run at least.")
    for given in (dict(zip(grid, values)) for values in itertools.product(*grid.values())) if grid else runs:
        if twice := sorted(map(str, shared.keys() & given.keys())):
            raise ValueError(f"{', '.join(twice)} is given under parameters and again; once is allowed; remove one.")
        yield shared | given


def _typed(name: str, value, default):
    """`value` where its type fits the default's, an int becoming a float where one is expected."""
    if type(default) is float and type(value) is int:
        return float(value)
    sequence = isinstance(default, tuple | list) and isinstance(value, list)
    if default is None or type(value) is type(default) or sequence:
        try:
            json.dumps(value, allow_nan=False)
            return value
        except (TypeError, ValueError):
            pass
    hint = "quote it in YAML" if isinstance(default, str) else "correct the value"
    if type(default) is float and isinstance(value, str):
        hint = "YAML reads 1e-4 as text, so write 1.0e-4"
    kind = "plain value" if default is None else type(default).__name__
    raise ValueError(
        f"{name}={value!r} is a {type(value).__name__}; a {kind} is allowed, as its default {default!r} is; {hint}."
    )


def _yaml(path: Path) -> dict:
    """The mapping in a YAML file; duplicate keys are refused."""

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader, node):
        keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise ValueError(f"{path.name} gives {key!r} twice (line {line}); once is allowed; remove one.")
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is no YAML: {error}; lib/batches/batch.py shows the form.") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path.name} holds a {type(content).__name__}; a mapping with `notebooks:` is needed; add it."
        )
    return content


def _document(notebook: Path) -> dict:
    try:
        document = json.loads(notebook.read_text(encoding="utf-8"))
        document["cells"] = [cell | {"source": "".join(cell["source"])} for cell in document["cells"]]
        return document
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{notebook.name} is not a notebook of format 4; a valid one is needed; restore it.") from None


def _known(mapping: dict, allowed, where: str):
    for key in mapping:
        if key not in allowed:
            raise ValueError(f"{key!r} is no key of {where}; {files.choices(key, allowed)}")


def _seconds(value) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ValueError(f"timeout={value!r}; a positive number of seconds is allowed; correct it.")
    return float(value)


def _shown(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _literal(text: str) -> bool:
    """Whether a text, written without quotes, reads as a number, a boolean or null."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
