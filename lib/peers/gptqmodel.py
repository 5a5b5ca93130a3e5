"""gptqmodel: GPTQ (arXiv 2210.17323) with group-aware activation order, the successor of AutoGPTQ.

Its own recommendation: `QuantizeConfig` with its defaults (dampening 0.05, `act_group_aware`). Zero points are
integers, scales float16. Two things of its own on a small machine: it asks for a newer torch than 2.13 though it works
with that, hence `--no-deps` and the list of what it needs; and it refuses to start on two CPUs unless
`GPTQMODEL_CPU_WORKERS` says how many threads it may have.
"""

from lib.peers import script

NAME, PACKAGE, VERSION, MODULE = "gptqmodel", "gptqmodel", "7.7.0", "gptqmodel"
INTERPRETER = "gptqmodel/bin/python"
INSTALL = (
    "python3 -m venv $THIMBLE_PEERS/gptqmodel",
    "$THIMBLE_PEERS/gptqmodel/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors accelerate defuser "
    "device-smi dill logbar ninja pillow protobuf pyarrow pypcre requests threadpoolctl torchao datasets tokenicer",
    f"$THIMBLE_PEERS/gptqmodel/bin/pip install --no-deps gptqmodel=={VERSION}",
)
BITS = (2, 3, 4, 8)
NEEDS_TOKENS = True
ENVIRONMENT = {"GPTQMODEL_CPU_WORKERS": "2"}
# dampening 0: the peer's own choice
OPTIONS = {"batch_size": 1, "dampening": 0.0, "mse": 0.0}


def quantize(job: script.Job) -> tuple[dict, dict]:
    """Weights by name (float32) and facts; runs where gptqmodel is installed."""
    from gptqmodel import GPTQModel, QuantizeConfig  # only the peer's interpreter has it

    names = list(script.linears(job.load()[0]))
    settings = QuantizeConfig(
        bits=job.bits,
        group_size=job.group_size,
        sym=False,
        format="gptq_v2",  # the older layout can't hold the zero point 0
        device="cpu",
        damp_percent=job.options["dampening"] or None,
        mse=job.options["mse"],
    )
    model = GPTQModel.load(str(job.model), settings)
    windows = [{"input_ids": part, "attention_mask": part.new_ones(part.shape)} for part in job.tokens.split(1)]
    with job.measured():
        model.quantize(windows, batch_size=job.options["batch_size"])
    model.save(str(job.work / "packed"))
    stored = _stored(job.work / "packed")
    weights = {f"{name}.weight": _weight(stored, name, job.bits) for name in names}
    return weights, {"packed_bytes": script.weight_bytes(job.work / "packed")}


def _stored(folder):
    """All tensors of its save, by name."""
    from safetensors.torch import load_file  # loads torch; this file is also read without

    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def _weight(stored, name, bits):
    """Its own save, unpacked: scale * (code - zero), float32 [rows, columns]; stored are columns x rows."""
    group = stored[f"{name}.g_idx"].long()
    scale = stored[f"{name}.scales"].float()
    zero = _codes(stored[f"{name}.qzeros"].T, bits).T[:, : scale.shape[1]]
    codes = _codes(stored[f"{name}.qweight"], bits)[: len(group)]
    return (scale[group] * (codes - zero[group])).T.contiguous()


def _codes(words, bits):
    """Codes [n * 32 / bits, m] out of int32 `words` [n, m], which hold them as one stream of bits down the rows."""
    import torch  # this file is also read without torch

    stream = (words.unsqueeze(1) >> torch.arange(32, dtype=torch.int32).view(1, 32, 1)) & 1
    values = 2 ** torch.arange(bits, dtype=torch.int32).view(1, bits, 1)
    return (stream.reshape(-1, bits, words.shape[1]) * values).sum(1)


if __name__ == "__main__":
    script.main(quantize)
