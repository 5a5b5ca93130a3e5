"""llmcompressor: GPTQ (arXiv 2210.17323) as vLLM's project does it, with activation order and static groups.

Its own recommendation: `GPTQModifier` with its defaults (dampening 0.01, blocks of 128 columns, `actorder="static"`).
Zero points are integers, scales have the checkpoint's type.
"""

from lib.peers import script

NAME, PACKAGE, VERSION, MODULE = "llmcompressor", "llmcompressor", "0.14.0.1", "llmcompressor"
INTERPRETER = "llmcompressor/bin/python"
INSTALL = (
    "python3 -m venv $THIMBLE_PEERS/llmcompressor",
    f"$THIMBLE_PEERS/llmcompressor/bin/pip install torch==2.13.0 llmcompressor=={VERSION}",
)
BITS = (2, 3, 4, 8)
NEEDS_TOKENS = True
ENVIRONMENT = {}
OPTIONS = {"dampening": 0.01, "batch_size": 1}


def quantize(job: script.Job) -> tuple[dict, dict]:
    """Weights by name (float32) and facts; runs where llmcompressor is installed."""
    from llmcompressor import oneshot  # only the peer's interpreter has it

    model, tokenizer = job.load()
    names = list(script.linears(model))
    recipe = _recipe(job)
    with job.measured():
        oneshot(
            model=model,
            tokenizer=tokenizer,
            dataset=_windows(job),
            recipe=recipe,
            num_calibration_samples=len(job.tokens),
            max_seq_length=job.tokens.shape[1],
        )
    weights = {f"{name}.weight": _weight(model.get_submodule(name), job) for name in names}
    model.save_pretrained(job.work / "packed", save_compressed=True)
    return weights, {"packed_bytes": script.weight_bytes(job.work / "packed")}


def _recipe(job):
    from llmcompressor.modifiers.gptq import GPTQModifier  # only the peer's interpreter has it

    grid = {
        "num_bits": job.bits,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": job.group_size,
    }
    groups = {"all": {"targets": ["Linear"], "weights": grid}}
    return GPTQModifier(config_groups=groups, ignore=["lm_head"], dampening_frac=job.options["dampening"])


def _windows(job):
    from torch.utils.data import DataLoader  # this file is also read without torch

    batches = job.tokens.split(job.options["batch_size"])
    return DataLoader([{"input_ids": part, "attention_mask": part.new_ones(part.shape)} for part in batches], None)


def _weight(layer, job):
    # int8 codes run from -2^(bits-1); ours from 0
    zero = layer.weight_zero_point.float() + 2 ** (job.bits - 1)
    return script.on_grid(layer.weight, layer.weight_scale, zero, bits=job.bits, group_size=job.group_size)


if __name__ == "__main__":
    script.main(quantize)
