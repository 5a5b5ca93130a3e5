"""Plain transformers as a reader of checkpoints, packed or plain: it dequantizes, and computes in float32."""

import json
from pathlib import Path

import torch

from lib.export import reader_script

INSTALL = ("pip install transformers torch compressed-tensors",)
MODES = ("float32",)
LIMIT = 1e-3  # nats: dequantized weights are rounded to the checkpoint's type


def unread(file: Path | str) -> str | None:
    """What plain transformers does not open of a packed checkpoint; None if it opens it."""
    if (layout := reader_script.layout(file)) not in (None, "compressed-tensors"):
        return f"{layout}'s layout, for which it wants another package"
    config = json.loads(Path(file).read_text()).get("quantization_config") or {}
    groups = list((config.get("config_groups") or {}).values())
    if any(each["weights"]["type"] != "int" for each in groups):
        return "levels that are no integers"
    if len(groups) > 1 and not all(each["weights"]["symmetric"] for each in groups):
        return "several grids with zero points"
    if len(groups) > 1 and any("Embedding" in each["targets"] for each in groups):
        return "a quantized embedding beside other grids"
    return None


class Reader:
    """A checkpoint opened by transformers, with its own cache."""

    def __init__(self, folder: Path, threads: int):
        import transformers  # slow to load, only in a process of its own

        torch.set_num_threads(threads)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").float().eval()
        self.restart()

    def restart(self) -> None:
        """Begin a text: no token is behind."""
        self.cache = None

    @torch.no_grad()
    def read(self, ids: list[int], start: int):
        """Logits [count, vocabulary] of the tokens `ids`, which stand after those that were read."""
        found = self.model(input_ids=torch.tensor([ids]), past_key_values=self.cache, use_cache=True)
        self.cache = found.past_key_values
        return found.logits[0].float().numpy()


def main() -> None:
    """Answer as `reader_script` says."""
    import transformers  # slow to load, only in a process of its own

    folder = Path(reader_script.arguments()["file"]).parent
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    version = f"transformers {transformers.__version__}, torch {torch.__version__}"
    modes = {"float32": lambda: Reader(folder, reader_script.threads())}
    reader_script.main(lambda text: tokenizer(text).input_ids, modes, version)


if __name__ == "__main__":
    main()
