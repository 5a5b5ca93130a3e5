"""Decides which runs of a batch are up to date, by hashing everything that could change their result.

A finished run leaves a state file with hashes of its notebook's code (not its outputs), the part of `lib` that the
code imports, parameters, requirements, machine and input data, and of the record it wrote. If all of these are equal
and the output is in place, the run is skipped.
"""

import ast
import contextlib
import functools
import hashlib
import json
import os
import platform
import re
from pathlib import Path

from lib import files, machine
from lib.batches import batch


def parts(run: batch.Run) -> dict[str, str]:
    """Hashes of everything that determines the result of `run` before it starts, by name."""
    cells = batch.code_cells(run.notebook)
    requirements = files.ROOT / "requirements.txt"
    found = {
        "notebook code": _digest(cells),
        "lib code": _digest([[str(path.relative_to(files.ROOT)), files.sha256(path)] for path in closure(cells)]),
        "parameters": _digest(run.parameters),
        "requirements": files.sha256(requirements) if requirements.exists() else "",
        "python": platform.python_version(),
        "machine": machine.identity(),
        "THIMBLE_DATA": _digest(os.environ.get("THIMBLE_DATA")),
    }
    if run.after_all:
        others = sorted(path for path in files.results().glob("*.json") if path.stem != run.name)
        found["records"] = _digest([[path.name, files.sha256(path)] for path in others])
    return found


def output(run: batch.Run) -> Path:
    """Path of the executed notebook of a finished run."""
    return files.report() / "notebooks" / f"{run.name}.ipynb"


def record(run: batch.Run) -> Path:
    """Path of the run's record, if its notebook makes one."""
    return files.results() / f"{run.name}.json"


def state(run: batch.Run) -> Path:
    """The state file; it is shared by all batches, as the record and the output are."""
    return files.cache() / "sweep" / "runs" / f"{run.name}.json"


def save(run: batch.Run, before: dict[str, str], hashes: dict) -> None:
    """Save that `run` has finished, after starting with the parts `before`; `hashes` as in `reason`."""
    written = record(run)
    origins = {}
    if written.exists():
        for item in json.loads(written.read_text(encoding="utf-8")).get("inputs", []):
            path = _local(item.get("origin"))
            if path is not None:
                origins[str(item["origin"])] = content(path, hashes)
    document = {"run": run.name, "parts": before, "inputs": origins}
    document["record"] = files.sha256(written) if written.exists() else None
    files.write_text(state(run), json.dumps(document, indent=1))


def reason(run: batch.Run, now: dict[str, str], hashes: dict) -> str | None:
    """Why `run` must run ("lib code changed"), or None if it is finished and `now`, its parts, are as they were.

    `hashes` caches the input files read by this sweep; pass the same dict to all calls.
    """
    try:
        known = json.loads(state(run).read_text(encoding="utf-8"))
        before, inputs, recorded = known["parts"], known["inputs"].items(), known["record"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "not finished before"
    for name in now:
        if before.get(name) != now[name]:
            return f"{name} changed"
    if not output(run).exists():
        return "output missing"
    if recorded != (files.sha256(record(run)) if record(run).exists() else None):
        return "record missing or changed"
    for origin, digest in inputs:
        path = _local(origin)
        if path is None or content(path, hashes) != digest:
            return f"input {origin} {'is gone' if path is None else 'changed'}"
    return None


def content(path: Path, hashes: dict) -> str:
    """Hash of a file, or of the names and contents in a folder; each file is read once per sweep."""
    members = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    found = []
    for member in members:
        status = member.stat()
        key = (str(member), status.st_size, status.st_mtime_ns)
        if key not in hashes:
            hashes[key] = files.sha256(member)
        found.append([str(member.relative_to(path)), hashes[key]])
    return _digest(found)


def closure(cells: list[str]) -> list[Path]:
    """Files of `lib` that code can reach: imported modules, theirs in turn, and data files beside them.

    Imports inside functions count, and where a module imports by name, all modules that it names in its tables. If
    code can't be parsed, or imports by names that can't be found, all of lib counts.
    """
    queue, found = [], set()
    for cell in cells:
        queue += _imports(_without_magics(cell), package="")
    while queue:
        for path in _resolve(queue.pop()):
            if path not in found:
                found.add(path)
                queue += _imports(path.read_text(encoding="utf-8"), package=_package(path))
    folders = {path.parent for path in found if path.parent != files.ROOT / "lib"}
    beside = {p for folder in folders for p in folder.rglob("[!.]*") if p.is_file() and "__pycache__" not in p.parts}
    return sorted(found | {p for p in beside if p.suffix not in (".py", ".so", ".o")})


def _imports(source: str, package: str) -> list[str]:
    return list(_read(source, package, files.ROOT))


@functools.lru_cache(maxsize=2048)  # a sweep asks about the same modules once a run
def _read(source: str, package: str, root: Path) -> tuple[str, ...]:
    """Dotted names under `lib` that `source`, a module of `package`, may import; `lib.**` for anything in lib."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ("lib.**",)
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    if any(_called(node) in ("import_module", "__import__") for node in ast.walk(tree)):
        names += _named(tree, package, root) or ["lib.**"]
    return tuple(name for name in names if name.split(".")[0] == "lib")


def _called(node) -> str:
    """The name of a variable, a function or an attribute; empty for other nodes."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _named(tree: ast.Module, package: str, root: Path) -> list[str]:
    """The modules that the tables of a module name, for one that imports by name: dotted names in full, or the names
    of modules beside it (`f"lib.quantizers.{name}"`, `f"{__name__}.{name}"`)."""
    tables = [node for node in ast.walk(tree) if isinstance(node, ast.Dict | ast.List | ast.Tuple | ast.Set)]
    texts = [part for table in tables for part in ast.walk(table) if isinstance(part, ast.Constant)]
    found = []
    for text in dict.fromkeys(text.value for text in texts if isinstance(text.value, str)):
        name = text if text.startswith("lib.") else f"{package}.{text}"
        place = root.joinpath(*name.split("."))
        if re.fullmatch(r"lib(\.\w+)+", name) and (place.is_dir() or place.with_suffix(".py").is_file()):
            found.append(name)
    return found


def _resolve(name: str) -> list[Path]:
    """The module of a dotted name and the packages around it; a last part that is no module is an object in one."""
    if name == "lib.**":
        return sorted((files.ROOT / "lib").rglob("*.py"))
    found, place = [], files.ROOT
    for part in name.split("."):
        if part == "*":
            return found + sorted(place.glob("*.py"))
        place = place / part
        found += [p for p in (place / "__init__.py", place.with_suffix(".py")) if p.is_file()]
    return found


def _package(path: Path) -> str:
    return ".".join(path.parent.relative_to(files.ROOT).parts)


def _without_magics(cell: str) -> str:
    """The cell's Python: where it does not parse, lines of IPython's `%` and `!` become `pass`."""
    with contextlib.suppress(SyntaxError):
        ast.parse(cell)  # a line may begin with the `%` of an expression that began above
        return cell
    lines = cell.splitlines()
    if lines and lines[0].startswith("%%"):
        lines[0] = "pass"
    marked = [(line, line.lstrip()) for line in lines]
    return "\n".join(line[: -len(bare)] + "pass" if bare[:1] in ("%", "!") else line for line, bare in marked)


def _local(origin) -> Path | None:
    """The file or folder that an input came from, or None where its origin is no local path (a Hub id, a package)."""
    if not origin:
        return None
    origin = os.path.expandvars(os.path.expanduser(str(origin)))
    places = [Path(origin)] if os.path.isabs(origin) else []
    places += [files.home() / origin, files.ROOT / origin]
    return next((place for place in places if place.exists()), None)


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
