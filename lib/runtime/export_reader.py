"""Our own engine as a reader of packed checkpoints, for certificates and for its speed beside other runtimes'.

Mode: "as written": it keeps keys and values in 16 bits and rounds the inputs of packed layers to 8 bits.
"""

import os
from pathlib import Path

from lib import machine
from lib.export import reader_script

INSTALL = ("make setup",)
MODES = ("as written",)
LIMIT = 0.02  # nats: KL that rounding a layer's inputs to 8 bits explains


def unread(file: Path | str) -> str | None:
    """What our engine does not open of a packed checkpoint; None if it opens it."""
    layout = reader_script.layout(file)
    return None if layout in (None, "compressed-tensors") else f"{layout}'s layout"


class Reader:
    """A packed checkpoint in the engine, for texts of up to `length` tokens."""

    def __init__(self, folder: Path):
        from lib import runtime  # compiles or loads the kernels, only in a process that reads

        self.runtime, self.weights = runtime, runtime.load(folder, embedding_bits=None)
        self.restart()

    def restart(self) -> None:
        """Begin a text: no token is behind."""
        self.batch = self.runtime.Batch(self.weights, 1)

    def read(self, ids: list[int], start: int):
        """Logits [count, vocabulary] of the tokens `ids`, which stand after those that were read."""
        return self.batch.extend({0: list(ids)}, last=False)


def main() -> None:
    """Answer as `reader_script` says."""
    os.environ["OMP_NUM_THREADS"] = str(reader_script.threads())
    version = f"thimble {machine.commit()['commit']}"
    reader_script.main_beside(lambda file, setting, threads: Reader(Path(file).parent), {MODES[0]: None}, version)


if __name__ == "__main__":
    main()
