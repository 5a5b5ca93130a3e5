"""ExecuTorch's Python runtime as a reader of programs: the kernels are those of a phone's runtime, compiled for x86.

Mode: "as written": XNNPACK rounds the inputs of 4-bit layers to 8 bits, and there is no other way to compute them.
"""

import importlib.metadata
import json
from pathlib import Path

import numpy

from lib.export import reader_script, runtimes

FOLDER = "executorch"  # of its environment, in the one that THIMBLE_PEERS names
INSTALL = runtimes.command(FOLDER)
MODES = ("as written",)
LIMIT = 0.02  # nats: KL that rounding a layer's inputs to 8 bits explains


class Reader:
    """A program, which keeps keys and values of the tokens before."""

    def __init__(self, file: Path):
        from executorch.runtime import Runtime  # only in its own environment

        said = json.loads(file.with_name("program.json").read_text())
        self.length, self.batch = said["length"], said["batch"]
        self.program = Runtime.get().load_program(file)
        self.method = self.program.load_method("forward")

    def restart(self) -> None:
        """Begin a text: what the program keeps of later places is not looked at."""

    def read(self, ids: list[int], start: int) -> numpy.ndarray:
        """Logits [count, vocabulary] of the tokens `ids`, of which the first stands at `start`."""
        import torch  # beside the late import of ExecuTorch

        if start + len(ids) > self.length:
            raise ValueError(f"a text of {start + len(ids)} tokens; the program was exported for {self.length}.")
        rows = []
        for first in range(0, len(ids), self.batch):
            new = ids[first : first + self.batch]
            places = torch.arange(start + first, start + first + len(new))
            (found,) = self.method.execute((torch.tensor([new]), places))
            rows.append(found[0].float().numpy().copy())
        return numpy.concatenate(rows)


def main() -> None:
    """Answer as `reader_script` says."""
    version = f"{FOLDER} {importlib.metadata.version(FOLDER)}"
    reader_script.main_beside(lambda file, setting, threads: Reader(Path(file)), {MODES[0]: None}, version)


if __name__ == "__main__":
    main()
