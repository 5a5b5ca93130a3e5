"""User-defined methods, scores and tasks: a Python file whose path is given in place of a built-in name.

    quantizers.by_name("mine/ternary.py")      importance.by_name("mine/my_score.py")      tasks.load("mine/riddles.py")

The file offers what every file of that family offers (CONTRIBUTING.md shows one of each). It is run as it is imported:
name only files that you trust.
"""

import functools
import importlib.util
import inspect
import os
from pathlib import Path
from types import ModuleType


def is_path(name: str) -> bool:
    """Whether `name` is the path of a Python file, and no name from a table."""
    return str(name).endswith(".py")


def load(path: Path | str, offers: str, *parameters: str) -> ModuleType:
    """The module in the file `path`, which must have `offers`: a function that takes `parameters`, or a value.

    Raises FileNotFoundError without the file and ValueError for one that lacks it, takes other arguments, or fails.
    """
    path = Path(path).expanduser()
    if not os.path.isfile(path):  # nor can a path with a NUL be one
        raise FileNotFoundError(f"{str(path)!r} is no file; the path of a Python file is allowed; look where it lies.")
    module = _run(path.resolve(), path.stat().st_mtime_ns)
    if not hasattr(module, offers):
        raise ValueError(f"{path} has no {offers}; such a file must define it; CONTRIBUTING.md shows an example.")
    if parameters:
        taken = inspect.signature(getattr(module, offers)).parameters
        free = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values())
        missing = [name for name in parameters if name not in taken and not free]
        if missing:
            raise ValueError(
                f"{offers} of {path} takes {', '.join(taken) or 'nothing'}; it must take {', '.join(parameters)}; "
                f"add {', '.join(missing)}."
            )
    return module


@functools.cache
def _run(path: Path, changed: int) -> ModuleType:
    """The file's module, made once for each version of the file."""
    spec = importlib.util.spec_from_file_location(f"thimble_extension_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path} can't be imported ({type(error).__name__}: {error}); mend it first.") from error
    return module
