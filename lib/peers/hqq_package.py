"""hqq: half-quadratic quantization, which needs no calibration (Badri and Shaji, 2023).

Its own recommendation: groups along the columns (axis 1), which its fast kernels need; zero points are real numbers,
except at 4 bits, where it rounds them. Scales and zero points are float16, and so is its dequantized weight.
"""

from lib.peers import script

NAME, PACKAGE, VERSION, MODULE = "hqq", "hqq", "0.2.8.post1", "hqq"
INTERPRETER = "hqq/bin/python"
INSTALL = (
    "python3 -m venv $THIMBLE_PEERS/hqq",
    f"$THIMBLE_PEERS/hqq/bin/pip install torch==2.13.0 transformers==5.23.0 hqq=={VERSION}",
)
BITS = (2, 3, 4, 8)
NEEDS_TOKENS = False
ENVIRONMENT = {}
OPTIONS = {"axis": 1}


def quantize(job: script.Job) -> tuple[dict, dict]:
    """Weights by name (float32) and facts; runs where hqq is installed."""
    import torch  # this file is also read without torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear  # only the peer's interpreter has it
    from safetensors.torch import save_file  # loads torch

    model, _ = job.load()
    settings = BaseQuantizeConfig(nbits=job.bits, group_size=job.group_size, axis=job.options["axis"])
    done = {}
    with job.measured():
        for name, layer in script.linears(model).items():
            done[name] = HQQLinear(layer, settings, compute_dtype=torch.float16, device="cpu", del_orig=False)
    weights = {f"{name}.weight": layer.dequantize().detach().float() for name, layer in done.items()}
    # its own save of a whole model pickles; these are the tensors that it would hold
    linear = {f"{name}.weight" for name in done}
    packed = {name: value for name, value in model.state_dict().items() if name not in linear}
    if model.config.tie_word_embeddings:
        packed.pop("lm_head.weight", None)
    for name, layer in done.items():
        packed |= {f"{name}.{key}": part for key, part in layer.state_dict().items() if isinstance(part, torch.Tensor)}
    (job.work / "packed").mkdir()
    save_file({name: part.contiguous() for name, part in packed.items()}, job.work / "packed" / "model.safetensors")
    return weights, {"packed_bytes": script.weight_bytes(job.work / "packed")}


if __name__ == "__main__":
    script.main(quantize)
