"""onnxruntime-genai as a reader: it opens the folder by its own settings, tokenizes, and keeps keys and values itself.

Mode: "as written", with the accuracy level that the file says.
"""

import functools
import importlib.metadata
from pathlib import Path

import numpy

from lib.export import reader_script, runtimes

FOLDER = "onnxruntime-genai"  # of its environment, in the one that THIMBLE_PEERS names
INSTALL = runtimes.command(FOLDER)
MODES = ("as written",)
LIMIT = 0.02  # nats: KL that rounding a layer's inputs to 8 bits explains


class Reader:
    """A folder opened by onnxruntime-genai, for texts of up to `length` tokens."""

    def __init__(self, folder: Path, length: int):
        import onnxruntime_genai  # only in its own environment

        self.program, self.length = onnxruntime_genai, length
        self.model = onnxruntime_genai.Model(str(folder))
        self.words = onnxruntime_genai.Tokenizer(self.model)
        self.restart()

    def restart(self) -> None:
        """Begin a text: no token is behind."""
        settings = self.program.GeneratorParams(self.model)
        settings.set_search_options(max_length=self.length, do_sample=False)
        self.generator = self.program.Generator(self.model, settings)

    def read(self, ids: list[int], start: int) -> numpy.ndarray:
        """Logits [count, vocabulary] of the tokens `ids`, which stand after those that were read."""
        self.generator.append_tokens(numpy.array(ids, numpy.int32))
        return numpy.array(self.generator.get_output("logits"))[0]


def main() -> None:
    """Answer as `reader_script` says."""
    asked = reader_script.arguments()
    length = max(map(len, asked["prompts"])) + asked["new_tokens"] + 1
    reader = functools.cache(lambda: Reader(Path(asked["file"]).parent, length))
    version = f"{FOLDER} {importlib.metadata.version(FOLDER)}, onnxruntime {importlib.metadata.version('onnxruntime')}"
    reader_script.main(lambda text: reader().words.encode(text), {MODES[0]: reader}, version)


if __name__ == "__main__":
    main()
