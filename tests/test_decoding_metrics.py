"""What drafting brings, counted by hand on invented answers, and measured on tiny models."""

import pytest
import torch

from lib.decoding.generate import Generation, Step
from lib.decoding.lookup import Lookup
from lib.decoding.sessions import ModelSession
from lib.decoding.speculative import Speculative
from lib.metrics import decoding_speed
from lib.metrics.decoding_speed import System
from tests import tiny


def answer(*steps, tokens=None):
    """An answer of steps (drafted, accepted, seconds)."""
    made = [Step(drafted, accepted, accepted + 1, seconds) for drafted, accepted, seconds in steps]
    return Generation(list(tokens or range(sum(step.produced for step in made))), "length", made)


def test_counts_and_ratios_by_hand():
    plain = [answer(*[(0, 0, 1.0)] * 4), answer(*[(0, 0, 2.0)] * 6)]
    drafted = [answer((3, 2, 1.5), (2, 0, 1.5)), answer((0, 0, 1.0), (4, 4, 2.0))]
    steps = decoding_speed.tokens_per_step(drafted)
    assert steps.value == 10 / 4 and steps.n == 2 and steps.baseline == 1
    assert decoding_speed.seconds_per_token(drafted).value == pytest.approx(6 / 10)
    assert decoding_speed.speed_up(drafted, plain).value == pytest.approx((16 / 10) / (6 / 10))
    assert decoding_speed.acceptance(drafted) == [1, 0, 1, 0, 1] and decoding_speed.acceptance(plain) == []
    shares = decoding_speed.accepted_shares(drafted)
    assert [score.value for score in shares] == pytest.approx([1 / 3, 0, 1 / 3, 0, 1 / 3]) and shares[0].n == 3
    assert shares[0].stderr == pytest.approx((2 / 27) ** 0.5)
    assert decoding_speed.identical(drafted, plain).value == 1
    assert decoding_speed.identical([answer((0, 0, 1.0), tokens=[9])], plain[:1]).value == 0
    with pytest.raises(ValueError, match="same prompts"):
        decoding_speed.speed_up(drafted, plain[:1])


@pytest.mark.parametrize("sampling", [None, {"temperature": 1.0, "top_k": 5}], ids=str)
def test_systems_answer_the_same_prompts_with_one_cap(sampling):
    model, small = (tiny.llama(num_hidden_layers=count, initializer_range=0.15) for count in (2, 1))
    systems = {
        "plain": System(ModelSession(model)),
        "again": System(ModelSession(model)),
        "lookup": System(ModelSession(model), Lookup(draft_length=4)),
        "speculative": System(ModelSession(model), Speculative(ModelSession(small), draft_length=2)),
    }
    prompts = [tiny.tokens(1, 4 + i, seed=i)[0] for i in range(3)]
    found = decoding_speed.measure(systems, prompts, new_tokens=10, sampling=sampling, seed=7)
    assert all([len(answer.token_ids) for answer in answers] == [10] * 3 for answers in found.values())
    assert decoding_speed.identical(found["again"], found["plain"]).value == 1
    if sampling is None:
        assert decoding_speed.identical(found["lookup"], found["plain"]).value == 1
        assert decoding_speed.identical(found["speculative"], found["plain"]).value == 1
    assert decoding_speed.tokens_per_step(found["plain"]).value == 1
    with pytest.raises(ValueError, match="0 prompts"):
        decoding_speed.measure(systems, [])


def test_prompts_are_templated_and_refusals_name_the_choices(monkeypatch, tmp_path):
    from lib.sources import prompts

    texts = prompts.load("summarization", 2, characters=20)
    assert len(texts) == 2 and all(text.endswith("few sentences.") and len(text) < 80 for text in texts)
    assert texts == prompts.load("summarization", 2, characters=20)
    for kind in prompts.KINDS:
        assert len(prompts.load(kind, 4)) == 4
    tokenizer = tiny.tokenizer()
    (ids,) = prompts.tokens(["Hi"], tokenizer)
    assert bytes(ids.tolist()) == b"<user> Hi\n<assistant> " and ids.dtype == torch.long
    tokenizer.chat_template = None
    assert bytes(prompts.tokens(["Hi"], tokenizer)[0].tolist()).endswith(b"Hi")
    with pytest.raises(ValueError, match="did you mean 'chat'"):
        prompts.load("chatt", 1)
    with pytest.raises(ValueError, match="ask for 1 to that many"):
        prompts.load("chat", 99)
    monkeypatch.setenv("THIMBLE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="source='packaged'"):
        prompts.load("chat", 1, source="data")
    (tmp_path / "alpaca").mkdir()
    (tmp_path / "alpaca" / "alpaca_4000.jsonl").write_text('{"instruction": "Sing {loud}.", "input": ""}\n')
    assert prompts.load("chat", 1, source="data") == ["Sing {loud}."]
