"""What is trained, and that everything is afterwards an ordinary model again."""

import pytest
import torch

from lib.metrics import divergence
from lib.models import blocks
from lib.pruners import depth, heal, iterate
from lib.trainers import adapters, loop, next_token
from tests import tiny

OPTIONS = {"steps": 3, "learning_rate": 1e-2, "batch": 2}


def trained(model):
    return {name for name, each in model.named_parameters() if each.requires_grad}


def changed(model, before):
    return {name for name, each in model.state_dict().items() if not torch.equal(each, before[name])}


def snapshot(model):
    return {name: each.clone() for name, each in model.state_dict().items()}


def test_all_weights_from_a_block_on():
    model = tiny.llama()
    everything = trained(model)
    with adapters.full_(model, first=3):
        assert {name.split(".")[1] for name in trained(model)} == {"layers", "norm"}
        assert {name.split(".")[2] for name in trained(model) if "layers" in name} == {"3"}
    assert trained(model) == everything
    with adapters.full_(model, embeddings=True):
        assert trained(model) == everything
    with pytest.raises(RuntimeError, match="stop"), adapters.full_(model):
        raise RuntimeError("stop")
    assert trained(model) == everything


@pytest.mark.parametrize("tied", [True, False])
def test_head_and_last_blocks(tied):
    model = tiny.llama(tie_word_embeddings=tied)
    with adapters.head_and_last_(model, last=2):
        found = trained(model)
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    assert {head, "model.norm.weight"} < found
    assert {name.split(".")[2] for name in found if "layers" in name} == {"2", "3"}
    assert ("model.embed_tokens.weight" in found) == tied


@pytest.mark.parametrize("family", [tiny.llama, tiny.phi, tiny.gemma2])
def test_adapters_are_merged_into_an_ordinary_model(family, tmp_path):
    model, tokens = family(), tiny.tokens(4, 24)
    names, before, everything = list(dict(model.named_modules())), snapshot(model), trained(model)
    start = model(input_ids=tokens).logits
    with adapters.lora_(model, rank=4, first=1):
        assert torch.allclose(model(input_ids=tokens).logits, start)  # B starts at zero
        assert all("lora_" in name for name in trained(model)) and trained(model)
        loop.train_(model, tokens, next_token.loss, **OPTIONS)
        adapted = model(input_ids=tokens).logits
    assert list(dict(model.named_modules())) == names and trained(model) == everything
    assert torch.allclose(model(input_ids=tokens).logits, adapted, atol=1e-4)
    moved = changed(model, before)
    layers = blocks.linears(blocks.blocks(model))
    assert moved == {f"model.layers.{name}.weight" for name in layers if not name.startswith("0.")}
    update = model.state_dict()[min(moved)] - before[min(moved)]
    assert torch.linalg.matrix_rank(update, rtol=1e-4) <= 4
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(input_ids=tokens).logits, model(input_ids=tokens).logits)


def test_adapters_are_taken_off_when_something_fails():
    model = tiny.llama()
    before, everything = snapshot(model), trained(model)
    with pytest.raises(RuntimeError, match="stop"), adapters.lora_(model, rank=4):
        next(each for name, each in model.named_parameters() if "lora_B" in name).data.fill_(1.0)
        raise RuntimeError("stop")
    assert snapshot(model).keys() == before.keys() and not changed(model, before) and trained(model) == everything


def test_the_seed_draws_the_adapters_and_nothing_else():
    torch.manual_seed(7)
    state, drawn = torch.get_rng_state(), []
    for seed in (0, 0, 1):
        model = tiny.llama()
        with adapters.lora_(model, rank=4, seed=seed):
            drawn.append(next(each.detach().clone() for name, each in model.named_parameters() if "lora_A" in name))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("way", heal.WAYS)
def test_every_way_heals(way):
    teacher, model = tiny.llama(), tiny.llama()
    depth.drop_blocks_(model, [2])
    before, tokens = snapshot(model), tiny.tokens(4, 24)
    options = OPTIONS | {"steps": 25, "learning_rate": 3e-3}
    history = heal.heal_(model, tokens, way=way, teacher=teacher, first=1, **options)
    assert sum(history.losses[-4:]) < 0.98 * sum(history.losses[:4]) and changed(model, before)
    if way != "head":
        assert not any(".layers.0." in name or "embed" in name for name in changed(model, before))


@pytest.mark.parametrize("way", ["lora", "full", "distill_lora"])
def test_where_the_last_blocks_went_the_one_before_them_is_trained(way):
    model = depth.drop_blocks_(tiny.llama(), [2, 3])
    before, options = snapshot(model), OPTIONS | {"steps": 1}
    heal.heal_(model, tiny.tokens(4, 24), way=way, teacher=tiny.llama(), first=2, **options)
    assert any(".layers.1.mlp" in name for name in changed(model, before))
    assert not any(".layers.0." in name for name in changed(model, before))
    with pytest.raises(ValueError, match=r"0 to [12] "):
        heal.heal_(model, tiny.tokens(4, 24), way=way, teacher=tiny.llama(), first=3, **options)


def test_a_step_has_as_many_windows_as_leave_eight_steps():
    batches = {}
    for tokens in (24, 24 * 16, 24 * 64):
        history = heal.heal_(tiny.llama(), tiny.tokens(8, 24), way="head", tokens=tokens)
        batches[tokens] = history.tokens_per_step // 24
    assert list(batches.values()) == [1, 2, 4]


def test_a_text_shorter_than_a_batch_is_refused_unless_the_batch_is_chosen():
    model = tiny.llama()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"the healing text has 3 windows of 24 tokens and a batch takes 4; .*longer"):
        heal.heal_(model, tiny.tokens(3, 24), way="full", tokens=24 * 64)
    assert not changed(model, before)
    history = heal.heal_(model, tiny.tokens(3, 24), way="full", tokens=24 * 64, batch=2)
    assert history.tokens_per_step == 48 and history.passes == pytest.approx(64 / 3)


def test_how_often_a_text_is_repeated_is_said(capsys):
    assert heal.heal_(tiny.llama(), tiny.tokens(8, 24), way="head", tokens=24 * 8).passes == 1
    assert "passes" not in capsys.readouterr().out
    heal.heal_(tiny.llama(), tiny.tokens(8, 24), way="head", tokens=24 * 36)
    assert "864 tokens of training are 4.5 passes over the 8 windows of 24 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: adapters.full_(model, first=5), r"first=5 .* 0 to 4 are allowed"),
        (lambda model: adapters.full_(model, first=1, embeddings=True), r"first=1 and embeddings=True"),
        (lambda model: adapters.head_and_last_(model, last=5), r"last=5 of 4 blocks"),
        (lambda model: adapters.lora_(model, rank=0), r"rank=0 .*ranks from 1"),
        (lambda model: adapters.lora_(model, first=4), r"first=4 of 4; .* 0 to 3"),
    ],
)
def test_impossible_choices_are_refused(call, message):
    with pytest.raises(ValueError, match=message), call(tiny.llama()):
        pass


def test_unknown_ways_and_missing_teachers_are_refused():
    with pytest.raises(ValueError, match=r"'distil' is unknown; .*did you mean 'distill'"):
        heal.heal_(tiny.llama(), tiny.tokens(), way="distil", steps=1)
    with pytest.raises(ValueError, match=r"way='distill' without a teacher"):
        heal.heal_(tiny.llama(), tiny.tokens(), way="distill", steps=1)


def test_prune_and_heal_in_rounds_names_blocks_by_their_first_numbers():
    model, healed = tiny.llama(num_hidden_layers=8), []
    marks = [block.mlp.up_proj.weight[0, 0].item() for block in model.model.layers]
    choices = iter([[2, 5], [2, 0], [1]])

    def heal_(model, gaps):
        healed.append((len(model.model.layers), gaps))

    rounds = iterate.prune_and_heal_(model, [2, 2, 1], lambda model, count: next(choices), heal_)
    # 0 1 [2] 3 4 [5] 6 7 -> [0] 1 [3] 4 6 7 -> 1 [4] 6 7
    assert rounds == [[2, 5], [0, 3], [4]]
    assert healed == [(6, [2, 4]), (4, [0, 1, 2]), (3, [0, 1])]
    assert [block.mlp.up_proj.weight[0, 0].item() for block in model.model.layers] == [marks[1], marks[6], marks[7]]


def test_rounds_of_a_real_model_are_what_they_are_written_out():
    """Each choice is made on the model as the healing before left it, and each healing has text of its own."""
    teacher, model, by_hand = (tiny.llama(num_hidden_layers=8) for _ in range(3))
    calibration, text = tiny.tokens(3, 24, seed=1), tiny.tokens(32, 24)
    options = {"way": "distill", "teacher": teacher, "learning_rate": 3e-4, "batch": 2}
    rounds = iterate.in_rounds_(model, [2, 2], calibration, text, tokens=24 * 64, score="leave_one_out", **options)
    assert rounds == [[1, 2], [6, 7]]
    left = list(range(8))
    for place in (0, 1):
        gone = depth.prune_(by_hand, calibration, score="leave_one_out", blocks=2)
        assert sorted(left[index] for index in gone) == rounds[place]
        left = [name for index, name in enumerate(left) if index not in gone]
        heal.heal_(by_hand, text[place::2], first=1, steps=16, **options)  # 1 is missing, in front of the others
    assert len(blocks.blocks(model)) == 4 and not changed(model, by_hand.state_dict())
    pruned = depth.without(teacher, [name for name in range(8) if name not in left])
    after, before = (divergence.measure(each, teacher, text)["kl_divergence"].value for each in (model, pruned))
    assert after < 0.9 * before


@pytest.mark.parametrize("counts", [[], [0, 1], [2, 2], [4]])
def test_rounds_that_leave_nothing_are_refused(counts):
    with pytest.raises(ValueError, match=r"counts=.* of 4 blocks; .* 3 in all"):
        iterate.prune_and_heal_(tiny.llama(), counts, None, None)
