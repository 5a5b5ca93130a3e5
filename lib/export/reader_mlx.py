"""mlx-lm as a reader of checkpoints in MLX's layout, in AWQ's, and of plain ones: on Linux it runs on the processor.

Mode: "float32": weights stay packed, and what is computed with them is float32. Of AWQ's layout it makes its own, whose
biases it rounds to half precision.
"""

import importlib.metadata
from pathlib import Path

import numpy

from lib.export import reader_script, runtimes

FOLDER = "mlx"  # of its environment, in the one that THIMBLE_PEERS names
INSTALL = runtimes.command(FOLDER)
MODES = ("float32",)
LIMIT = 1e-3  # nats: sums in another order


def unread(file: Path | str) -> str | None:
    """What mlx-lm does not open of a packed checkpoint; None if it opens it."""
    layout = reader_script.layout(file)
    if layout == "gptq":
        return "files of GPTQ that name each column's group"
    return f"the layout of {layout}" if layout not in (None, "mlx", "awq") else None


class Reader:
    """A checkpoint opened by mlx-lm, with its own cache."""

    def __init__(self, folder: Path):
        import mlx.core  # only in its own environment
        from mlx_lm import utils  # as mlx
        from mlx_lm.models import cache  # as mlx

        mlx.core.set_default_device(mlx.core.cpu)
        self.core, self.make = mlx.core, cache.make_prompt_cache
        self.model, _ = utils.load_model(folder)
        self.model.set_dtype(mlx.core.float32)
        self.restart()

    def restart(self) -> None:
        """Begin a text: no token is behind."""
        self.cache = self.make(self.model)

    def read(self, ids: list[int], start: int) -> numpy.ndarray:
        """Logits [count, vocabulary] of the tokens `ids`, which stand after those that were read."""
        found = self.model(self.core.array([ids]), cache=self.cache)
        return numpy.array(found[0].astype(self.core.float32))


def main() -> None:
    """Answer as `reader_script` says."""
    version = f"mlx {importlib.metadata.version('mlx')}, mlx-lm {importlib.metadata.version('mlx-lm')}"
    reader_script.main_beside(lambda file, setting, threads: Reader(Path(file).parent), {MODES[0]: None}, version)


if __name__ == "__main__":
    main()
