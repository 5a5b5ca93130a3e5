"""Progress bars: a widget in Jupyter, text in a terminal, none where THIMBLE_QUIET is set (batch runs, tests)."""

import os

from tqdm.auto import tqdm


def bar(*args, **options):
    """`tqdm.auto.tqdm` with the same arguments; vanishes when done, unless `leave=True` is given.

    Executed notebooks would otherwise keep an empty bar for each one that vanished.
    """
    return tqdm(*args, **{"leave": False, "disable": bool(os.environ.get("THIMBLE_QUIET"))} | options)
