"""Progress bars: a widget in Jupyter, text in a terminal, none where `TQDM_DISABLE` is set (batch runs, tests)."""

import os


def bar(*args, **options):
    """`tqdm.auto.tqdm` with the same arguments; vanishes when done, unless `leave=True` is given.

    tqdm's notebook widget does not heed `TQDM_DISABLE` by itself and would leave an empty bar in executed notebooks.
    """
    from tqdm.auto import tqdm

    return tqdm(*args, **{"leave": False, "disable": bool(os.environ.get("TQDM_DISABLE"))} | options)
