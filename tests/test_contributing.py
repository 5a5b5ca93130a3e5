"""The examples of CONTRIBUTING.md, in a folder outside of the project, as they stand there."""

import importlib
import re
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

from lib import architectures, extensions, files, quantizers, tasks
from lib.decoding.generate import generate
from lib.decoding.sessions import ModelSession
from lib.evaluation import run
from lib.evaluation.local import Local
from lib.export import compressed_tensors
from lib.pruners import depth, importance
from lib.sources import models
from lib.trainers import loop
from tests import tiny

LINES = 60  # a method is one file of at most so many


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The folder of the examples; each is importable by its name too."""
    base = tmp_path_factory.mktemp("a folder of mine é")
    text = (files.ROOT / "CONTRIBUTING.md").read_text()
    found = re.findall(r"```(?:python|json)\n(?:#|//) (mine/\S+)\n(.*?)```", text, flags=re.S)
    for name, content in found:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(content)
    assert len(found) == 8
    sys.path.insert(0, str(base / "mine"))
    yield base / "mine"
    sys.path.remove(str(base / "mine"))


def test_each_is_short(mine):
    assert all(len(path.read_text().splitlines()) <= LINES for path in mine.glob("*.py"))


def test_a_quantizer(mine, tmp_path):
    model = tiny.llama()
    method = quantizers.by_name(str(mine / "stochastic.py"))
    first = method(model, bits=8, group_size=32)
    again = quantizers.by_name(str(mine / "stochastic.py"))(tiny.llama(), bits=8, group_size=32)
    assert len(first) == 28 and all(torch.equal(first[name].codes, again[name].codes) for name in first)
    weight = tiny.llama().model.layers[0].mlp.up_proj.weight
    found = first["model.layers.0.mlp.up_proj"]
    step = found.scale.float().repeat_interleave(32, dim=1)
    assert ((found.dense() - weight).abs() <= 1.51 * step).all() and (
        found.dense() - weight
    ).abs().max() > step.max() / 2
    compressed_tensors.save(model, model.tokenizer, tmp_path / "saved")
    again = models.load(str(tmp_path / "saved"), dtype="float32")[0]
    ids = tiny.tokens(1, 16)
    torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_pruning_score(mine):
    model, name = tiny.llama(), str(mine / "largest_weight.py")
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight.mul_(0.001)
        for weight in model.model.layers[2].parameters():
            weight.clamp_(-0.01, 0.01)
    assert depth.prune_(model, tiny.tokens(2, 16), blocks=1, score=name) == [2]
    assert len(importance.measure(name, model, tiny.tokens(2, 16))) == 3


def test_a_task(mine):
    task = tasks.load(str(mine / "riddles.py"))
    found = run.evaluate(Local(tiny.llama()), task)
    assert len(task.samples) == 2 and tasks.group(str(mine / "riddles.py")) == "own"
    assert task.samples[0].requests[0].prompt == "Q: What has a neck and no head?\nA:"
    assert found["exact"].n == 2 and found["exact"].baseline == 0


def test_a_loss(mine):
    smoothed, model, ids = importlib.import_module("smoothed"), tiny.llama(), tiny.tokens(4, 16)
    chances = model(ids).logits[:, :-1].log_softmax(-1).flatten(0, 1)
    expected = 0.9 * functional.nll_loss(chances, ids[:, 1:].flatten()) - 0.1 * chances.mean()
    torch.testing.assert_close(smoothed.loss(model, {"input_ids": ids}), expected)
    history = loop.train_(model, ids, smoothed.loss, steps=4, batch=4, learning_rate=3e-3)
    assert history.losses[0] == pytest.approx(expected.item(), abs=1e-4) and history.losses[-1] < history.losses[0]


def test_an_architecture(mine, tmp_path):
    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    name, ids = str(mine / "squared.py"), tiny.tokens(1, 16)
    model = architectures.build(name, sizes | {"num_attention_heads": 4}, seed=0)
    normed = model.model.layers[0].post_attention_layernorm(model.model.embed_tokens(ids))
    mlp = model.model.layers[0].mlp
    expected = functional.linear(functional.relu(normed @ mlp.up_proj.weight.T) ** 2, mlp.down_proj.weight)
    torch.testing.assert_close(mlp(normed), expected)
    again, _ = models.load(str(tiny.save(tmp_path / "saved", model)))
    assert type(again) is architectures.by_name(name) and torch.equal(again(ids).logits, model(ids).logits)


def test_a_drafter(mine):
    echo, model = importlib.import_module("echo"), tiny.llama()
    prompt = tiny.tokens(1, 8)[0]
    plain = generate(ModelSession(model), prompt, new_tokens=24)
    drafted = generate(ModelSession(model), prompt, new_tokens=24, drafter=echo.Echo())
    assert drafted.token_ids == plain.token_ids and sum(step.drafted for step in drafted.steps) > 0


def test_an_exporter(mine, tmp_path):
    arrays, model = importlib.import_module("arrays"), tiny.llama()
    arrays.export(model, model.tokenizer, tmp_path / "out")
    with np.load(tmp_path / "out" / "weights.npz") as found:
        again = tiny.llama(seed=1)
        again.load_state_dict({name: torch.tensor(found[name]) for name in found.files})
    ids = tiny.tokens(1, 16)
    assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    "content, said",
    [
        ("x = 1", "has no quantize_; such a file must define it"),
        ("def quantize_(model, bits): pass", "it must take model, calibration, bits, group_size; add calibration"),
        ("import nothing_of_the_kind", r"can't be imported \(ModuleNotFoundError: No module named"),
    ],
)
def test_a_file_that_is_no_quantizer_is_refused(tmp_path, content, said):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(ValueError, match=said):
        quantizers.by_name(str(tmp_path / "mine.py"))


def test_a_path_without_a_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no file; the path of a Python file is allowed"):
        quantizers.by_name(str(tmp_path / "absent.py"))


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("VALUE = 1")
    assert extensions.load(path, "VALUE").VALUE == 1
    path.write_text("VALUE = 22")
    assert extensions.load(path, "VALUE").VALUE == 22
