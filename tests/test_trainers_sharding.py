"""Two processes with the weights spread over them (FSDP2) end where one process does, and resume from their parts."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lib import files
from lib.pruners import heal
from lib.trainers import checkpoints, held_out, loop, next_token, sequence_packing, sharding
from lib.trainers.divergence import Diverged
from lib.trainers.recipe import Recipe
from tests import tiny

SETTINGS = {"steps": 3, "learning_rate": 1e-3, "batch": 4, "seed": 0}
RECIPES = (Recipe(), Recipe(optimizer="muon", schedule="wsd", gradient_checkpointing=True))
SCRIPT = """
import sys
from tests import test_trainers_sharding
test_trainers_sharding.in_two_processes(sys.argv[1])
"""


def model():
    """Rows of its matrices, norms and biases that two processes can't share evenly among them; tied ends."""
    return tiny.architecture("headwise", num_hidden_layers=2, vocab_size=255)


def packed():
    documents = [list(range(start, start + 3 + start % 9)) for start in range(1, 80)]
    return sequence_packing.pack(documents, 16, end=0)


def trained(micro_batch, recipe, folder=None, **options):
    """A model trained on packed documents: (it, losses, losses on unseen text after each step)."""
    made = model()
    seen = held_out.HeldOut(made, tiny.tokens(2, 16) % 255, every=64, tokens_per_step=64)

    def after(step, loss):
        seen(step, loss)
        options.get("look", lambda model: None)(made)

    given = {**SETTINGS, "folder": folder, "every": 0, "stop": options.get("stop")}
    done = loop.train_(made, packed(), next_token.loss, micro_batch=micro_batch, recipe=recipe, on_step=after, **given)
    return made, done.losses, list(seen.losses.values())


def healed(micro_batch, way):
    made = tiny.llama(num_hidden_layers=2)
    options = {"teacher": tiny.llama(num_hidden_layers=2, seed=1)} if "distill" in way else {}
    done = heal.heal_(made, tiny.tokens(8, 24), way=way, first=1, micro_batch=micro_batch, **options, **SETTINGS)
    return made, done.losses


def in_two_processes(target):
    """What each of the two processes does; what they found is written below `target`."""
    from torch import distributed

    share = []

    def look(made):
        assert all(isinstance(weight, sharding.DTensor) for weight in made.model.layers.parameters())
        share.append(sum(sharding.local(weight).numel() for weight in made.model.layers.parameters()))

    made, losses, unseen = trained(1, RECIPES[0], look=look)
    assert type(made).__name__ == "HeadwiseForCausalLM" and distributed.get_backend() == "gloo"
    everywhere = [None, None]
    distributed.all_gather_object(everywhere, {name: each.detach() for name, each in made.named_parameters()})
    for name, each in everywhere[0].items():
        assert torch.equal(each, everywhere[1][name]), name
    trained(1, RECIPES[0], f"{target}/parts", stop=lambda step: step == 2)
    again, *_ = trained(1, RECIPES[0], f"{target}/parts")
    for name, each in again.named_parameters():
        assert torch.equal(each, everywhere[0][name]), name
    others = others_in_two_processes()
    if distributed.get_rank() == 0:
        made.save_pretrained(f"{target}/model")
        sizes = [sum(each.double().abs().sum().item() for each in one.parameters()) for one, _ in others]
        found = {"losses": losses, "unseen": unseen, "share": share[0], "sizes": sizes}
        files.write_text(f"{target}/found.json", json.dumps(found | {"others": [each for _, each in others]}))


def others_in_two_processes():
    """(Model, losses) of Muon with gradient checkpointing, and of healing; a training that diverges undoes its own."""
    made = [trained(1, RECIPES[1])[:2], *(healed(1, way) for way in ("distill", "lora"))]
    other, before = model(), model()
    with pytest.raises(Diverged, match=r"at step \d of 3; .* has the weights that it came with"):
        loop.train_(other, packed(), next_token.loss, **SETTINGS | {"learning_rate": 1e30}, recipe=RECIPES[0])
    assert all(torch.equal(each, old) for each, old in zip(other.parameters(), before.parameters()))
    return made


@pytest.mark.long
@pytest.mark.usefixtures("warm", "one_thread")
def test_spread_weights_end_where_whole_ones_do_and_resume_from_their_parts(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2"]
    launch += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "0", str(tmp_path / "script.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(files.ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(launch, cwd=files.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    alone, losses, unseen = trained(2, RECIPES[0])
    assert found["losses"] == pytest.approx(losses, rel=1e-5) and found["unseen"] == pytest.approx(unseen, rel=1e-5)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    for name, each in alone.state_dict().items():
        assert torch.allclose(loaded[name], each, rtol=1e-5, atol=1e-6), name
    assert 2 * found["share"] == sum(each.numel() for each in alone.model.layers.parameters())
    others = [trained(2, RECIPES[1])[:2], *(healed(2, way) for way in ("distill", "lora"))]
    for (one, losses), size, together in zip(others, found["sizes"], found["others"]):
        assert together == pytest.approx(losses, rel=1e-5)
        assert size == pytest.approx(sum(each.double().abs().sum().item() for each in one.parameters()), rel=1e-6)
    (there,) = checkpoints.checkpoints(tmp_path / "parts")
    parts = sorted(path.name for path in there.glob("*.safetensors"))
    assert parts == ["training-00001-of-00002.safetensors", "training-00002-of-00002.safetensors"]
    rows = [load_file(there / each)["model.embed_tokens.weight:exp_avg"].shape[0] for each in parts]
    assert rows == [128, 127]
    with pytest.raises(ValueError, match=r"spread over 2 processes, and this one has whole weights.*2 processes again"):
        trained(2, RECIPES[0], tmp_path / "parts")


def test_another_number_of_processes_is_refused_with_both_named(tmp_path):
    for count, here in ((2, 3), (1, 2)):
        folder = tmp_path / str(count) / "checkpoint-7"
        folder.mkdir(parents=True)
        for name in checkpoints.names(count):
            (folder / name).touch()
        checkpoints.check_parts(folder.parent, count)
        kinds = {1: "whole weights", 2: "weights spread over 2 processes", 3: "weights spread over 3 processes"}
        with pytest.raises(
            ValueError, match=f"with {kinds[count]}, and this one has {kinds[here]}.*start {count} proc"
        ):
            checkpoints.check_parts(folder.parent, here)
    (tmp_path / "2" / "checkpoint-7" / checkpoints.part(1, 2)).unlink()  # a checkpoint without one of its parts is none
    assert not checkpoints.checkpoints(tmp_path / "2")


@pytest.mark.parametrize(
    "name, value, told",
    [
        ("FSDP_VERSION", "1", "fsdp_version=1; .* add --fsdp_version 2"),
        ("FSDP_OFFLOAD_PARAMS", "true", "--fsdp_offload_params true; the loop takes false"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "`gradient_checkpointing` forgets"),
    ],
)
def test_options_of_the_launcher_that_the_loop_does_not_take_are_refused(name, value, told, monkeypatch):
    assert not sharding.asked()
    for key, each in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", name: value}.items():
        monkeypatch.setenv(key, each)
    with pytest.raises(ValueError, match=told):
        loop.train_(model(), packed(), next_token.loss, **SETTINGS)


def test_weights_that_cannot_be_spread_are_named():
    made = tiny.llama(num_hidden_layers=1)
    made.model.norm.weight = torch.nn.Parameter(torch.empty(64, device="meta"))
    with pytest.raises(ValueError, match=r"model.norm.weight has no values in process 0; .*efficient_loading false"):
        sharding._check(made)
    made.model.norm.weight = torch.nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"model.norm.weight is a single number"):
        sharding._check(made)
