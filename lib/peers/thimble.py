"""Thimble itself as a peer: in a process of its own, on the same checkpoint, tokens and stopwatch.

`method` is a quantizer of `lib.quantizers`, or "best" for the recipe, whose time limit is `minutes`; 0 leaves training
out, so that the clock decides nothing and slow machines give the same result. With `megabytes` the recipe compresses
the whole artifact, embedding and head included, and `bits` is ignored.
"""

from lib import quantizers
from lib.peers import script

NAME, PACKAGE, VERSION, MODULE = "thimble", "torch", None, "lib.quantizers"
INTERPRETER = None  # the calling one
INSTALL = ("pip install -r requirements.txt",)
BITS = (2, 3, 4, 5, 6, 7, 8)
NEEDS_TOKENS = True
ENVIRONMENT = {}
OPTIONS = {"method": "best", "minutes": 4.0, "megabytes": 0.0, "seed": 0, "keep": ""}


def check(*, bits: int, options: dict) -> None:
    """Raise ValueError for a method that does not exist, and for megabytes without the recipe."""
    if options["method"] != "best":
        quantizers.by_name(options["method"])
        if options["megabytes"]:
            raise ValueError(
                f"megabytes={options['megabytes']} with method={options['method']!r}; only the recipe takes a size; "
                "leave megabytes at 0, or method at 'best'."
            )


def quantize(job: script.Job) -> tuple[dict, dict]:
    """Weights by name (float32), the embedding where it is quantized too, and facts."""
    import lib.architectures  # noqa: F401  # makes our own known to transformers; needs torch, without which this is read
    from lib.export import compressed_tensors  # needs torch
    from lib.quantized.quant_embedding import QuantEmbedding  # needs torch

    model, tokenizer = job.load(alike=False)
    with job.measured():
        done = _run(model, job)
    packed = compressed_tensors.save(model, tokenizer, job.options["keep"] or job.work / "packed")
    weights = {f"{name}.weight": part.dense() for name, part in done.items()}
    facts = {"packed_bytes": script.weight_bytes(packed)}
    return weights, facts | {"embedding": isinstance(model.get_input_embeddings(), QuantEmbedding)}


def _run(model, job):
    method, grid = job.options["method"], {"bits": job.bits, "group_size": job.group_size}
    if method != "best":
        return quantizers.by_name(method)(model, job.tokens, **grid)
    if job.options["megabytes"]:
        grid = {"megabytes": job.options["megabytes"], "group_size": job.group_size}
    time = {"minutes": job.options["minutes"]} if job.options["minutes"] else {"steps": 0}
    levels = "integer"  # as the others' files have them
    return quantizers.best_(model, job.tokens, **time, seed=job.options["seed"], levels=levels, **grid)


if __name__ == "__main__":
    script.main(quantize)
