"""auto-round: rounding and ranges learned block by block with signed gradients (SignRound, arXiv 2309.05516).

Its own recommendations: 200 iterations with batches of 8 ("auto-round"), 50 with `learning_rate=5e-3` ("light"), and
for 2 bits 1000 with `extension=True` ("best"). Zero points are integers, scales float16.
"""

from lib.peers import script

NAME, PACKAGE, VERSION, MODULE = "auto-round", "auto-round", "0.16.1", "auto_round"
INTERPRETER = "auto-round/bin/python"
INSTALL = (
    "python3 -m venv $THIMBLE_PEERS/auto-round",
    f"$THIMBLE_PEERS/auto-round/bin/pip install torch==2.13.0 transformers==5.23.0 auto-round=={VERSION}",
)
BITS = (2, 3, 4, 8)
NEEDS_TOKENS = True
ENVIRONMENT = {}
OPTIONS = {
    "iterations": 200,
    "batch_size": 8,
    "learning_rate": 0.0,  # 0: the peer's own choice, 1 / iterations
    "extension": False,
    "compile": True,  # from 10 iterations on, with the C++ compiler; its time counts
    "seed": 42,
}


def quantize(job: script.Job) -> tuple[dict, dict]:
    """Weights by name (float32) and facts; runs where auto-round is installed."""
    from auto_round import AutoRound  # only the peer's interpreter has it

    model, tokenizer = job.load()
    names = list(script.linears(model))
    options = job.options
    rounder = AutoRound(
        model,
        tokenizer,
        scheme="W4A16",  # the bits, grid and group size below take precedence
        bits=job.bits,
        group_size=job.group_size,
        sym=False,
        dataset=list(job.tokens.split(1)),
        nsamples=len(job.tokens),
        seqlen=job.tokens.shape[1],
        iters=options["iterations"],
        batch_size=min(options["batch_size"], len(job.tokens)),
        lr=options["learning_rate"] or None,
        enable_alg_ext=options["extension"],
        enable_torch_compile=None if options["compile"] else False,
        device_map="cpu",
        seed=options["seed"],
    )
    with job.measured():
        rounder.quantize()
    layers = {name: rounder.model.get_submodule(name) for name in names}
    weights = {f"{name}.weight": _weight(layer, job) for name, layer in layers.items()}
    # the layout that takes every width with zero points; its default fails at 4 bits in this version
    rounder.save_quantized(str(job.work / "packed"), format="auto_round:auto_gptq")
    return weights, {"packed_bytes": script.weight_bytes(job.work / "packed")}


def _weight(layer, job):
    return script.on_grid(layer.weight, layer.scale, layer.zp, bits=job.bits, group_size=job.group_size)


if __name__ == "__main__":
    script.main(quantize)
