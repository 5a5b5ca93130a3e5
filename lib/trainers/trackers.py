"""Programs that follow trainings from elsewhere: Weights & Biases, MLflow, trackio and others that accelerate knows.

    with trackers.following(["trackio"], project="distillation", settings={"bits": 2}) as followers:
        quantization_aware.train_(student, ..., followers=followers)

A follower is anything with `log(values, step=...)`: numbers by name after each step. None of these programs is needed
by this project; each is installed by whoever wants it.
"""

import contextlib
from collections.abc import Iterator, Sequence

from lib import files


def names() -> list[str]:
    """The trackers that can be asked for."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS  # 0.5 s, only where somebody asks

    return sorted(LOGGER_TYPE_TO_CLASS)


def check(asked: Sequence[str]) -> None:
    """Raise ValueError for a tracker that is unknown or not installed, saying what installs it."""
    from accelerate.tracking import get_available_trackers  # as above

    for name in asked:
        if name not in names():
            raise ValueError(f"{name!r} is no tracker; {files.choices(name, names())}")
        if name not in get_available_trackers():
            raise ValueError(f"the tracker {name!r} is not installed; run `pip install {name}`, or leave it out.")


@contextlib.contextmanager
def following(asked: Sequence[str], *, project: str, settings: dict, folder=None) -> Iterator[list]:
    """Context with the started trackers `asked`, which are told the `settings` at once and closed at its end.

    project: what the runs are filed under. folder: where trackers that write files put these, None for the cache.
    Raises ValueError as `check` does.
    """
    check(asked)
    if not asked:
        yield []
        return
    from accelerate import PartialState, tracking  # as above

    PartialState()  # of several processes the first one tells
    place = files.cache() / "trackers" if folder is None else folder
    with contextlib.ExitStack() as stack:
        started = []
        for name in asked:
            kind = tracking.LOGGER_TYPE_TO_CLASS[name]
            made = kind(project, logging_dir=str(place)) if kind.requires_logging_directory else kind(project)
            if hasattr(made, "start"):
                made.start()
            stack.callback(made.finish)
            made.store_init_configuration({key: _plain(value) for key, value in settings.items()})
            started.append(made)
        yield started


def _plain(value):
    """A number or a text as it is, all else as text: trackers take no more."""
    return value if isinstance(value, str | int | float | bool) else str(value)
