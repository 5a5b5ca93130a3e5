"""Every family loses a block and stays an ordinary model; blocks are chosen by every score."""

import pytest

from lib.export import plain
from lib.models import blocks
from lib.pruners import depth, importance
from tests import families, tiny
from tests.supported import attempt

TEXT = tiny.tokens(4, 16, seed=3)
DEEP = [family for family in families.FAMILIES if family != "llama_one_block"]
SCORES = [score for score in importance.SCORES if score != "taylor_plus"]  # which protects the first four blocks


def without(model, index):
    """Logits of `model` whose block `index` hands on what it was given: what pruning is by definition."""

    def hand_on(_, args, kwargs, output):
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = blocks.blocks(model)[index].register_forward_hook(hand_on, with_kwargs=True)
    found = families.logits(model)
    handle.remove()
    return found


@pytest.mark.parametrize("family", DEEP)
def test_a_pruned_model_is_an_ordinary_one(family, tmp_path):
    model = families.build(family)
    wanted = without(model, 1)
    with attempt(family, "prune"):
        depth.drop_blocks_(model, [1])
        assert families.distance(families.logits(model), wanted) < 1e-5
        plain.save(model, model.tokenizer, tmp_path / "it")
        found = families.reloaded(tmp_path / "it")
        assert len(blocks.blocks(found)) == 3
        assert families.distance(families.logits(found), wanted) < 1e-5


@pytest.mark.parametrize("family", DEEP)
def test_blocks_are_chosen_by_a_score(family):
    score = SCORES[DEEP.index(family) % len(SCORES)]  # each score on some six families
    model = families.build(family)
    with attempt(family, "prune"):
        values = importance.score(score, model, TEXT)
        removed = depth.prune_(model, TEXT, score=score, blocks=2)
        finite = all(value == value and abs(value) < float("inf") for value in values)
        assert len(values) == 4 and finite and sorted(removed) == depth.lowest(values, 2)
        assert len(blocks.blocks(model)) == 2 and families.logits(model).isfinite().all()


def test_the_only_block_stays():
    with pytest.raises(ValueError, match="none would stay"):
        depth.drop_blocks_(families.build("llama_one_block"), [0])
