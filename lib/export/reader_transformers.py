"""Plain transformers as a reader of GGUF files: it dequantizes all weights and computes in float32.

Its code and llama.cpp's have nothing in common, and none of ours is used: what both read is what the file says.
"""

from pathlib import Path

import torch

from lib.export import gguf_contents, gguf_tokenizer, reader_script

INSTALL = ("pip install transformers torch gguf",)
MODES = ("float32",)
LIMIT = 1e-6  # nats: nothing is rounded but sums
unread = gguf_contents.unread


def main() -> None:
    """Answer as `reader_script` says."""
    import transformers  # slow to load, only in a process of its own

    path = Path(reader_script.arguments()["file"])
    options = {"gguf_file": path.name, "dtype": "float32", "output_loading_info": True}
    model, info = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **options)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{path.name} lacks {missing[:3]} of what it says it holds; export the model again.")
    tokenizer, model = gguf_tokenizer.load(path), model.eval()

    @torch.no_grad()
    def forward(ids):
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().numpy()

    version = f"transformers {transformers.__version__}, torch {torch.__version__}"
    reader_script.main(lambda text: tokenizer(text).input_ids, {"float32": lambda: forward}, version)


if __name__ == "__main__":
    main()
