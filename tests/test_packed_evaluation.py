"""The packed runtime as an engine: against sessions that read every request anew, and against the dequantized model."""

import pytest
import torch

from lib import runtime
from lib.evaluation import estimate, generation_requests, run
from lib.evaluation.local import Local
from lib.evaluation.packed_engine import Packed, is_packed
from lib.export import compressed_tensors
from tests import packed, questions, tiny


def made(make=tiny.llama, **overrides):
    model = make(**overrides)
    return runtime.pack_(packed.quantize_(model, dtype=torch.float32))


def alone(model, request):
    """Log-likelihood and greediness from a session of its own; a byte is a token."""
    whole = model.tokenizer(request.context + request.continuation).input_ids
    count = len(whole) - len(model.tokenizer(request.context.rstrip()).input_ids)
    logits = runtime.Session(model).extend(whole[:-1])[-count:].double()
    targets = torch.tensor(whole[-count:])
    return logits.log_softmax(-1)[range(count), targets].sum().item(), bool((logits.argmax(-1) == targets).all())


def greedy(model, request):
    """Greedy tokens one by one from a session of its own, up to the first stop."""
    session = runtime.Session(model)
    watch = generation_requests.watch(model.tokenizer, request, Packed(model).ends)
    token = int(session.extend(model.tokenizer(request.prompt).input_ids, last=True).argmax())
    while not watch.see(token):
        token = int(session.extend([token]).argmax())
    return watch.text()


@pytest.mark.parametrize("make", [tiny.llama, tiny.qwen3])
def test_shared_beginnings_change_nothing(make):
    model, some = made(make), questions.likelihoods(7)
    found = Packed(model).loglikelihoods(some)
    for outcome, request in zip(found, some):
        value, first = alone(model, request)
        assert outcome.logprob == pytest.approx(value, abs=1e-4) and outcome.greedy == first
    assert len({outcome.tokens for outcome in found}) > 1


def test_near_the_dequantized_model():
    unpacked, some = packed.quantize_(tiny.llama(), dtype=torch.float32), questions.likelihoods(6)
    wanted = [outcome.logprob / outcome.tokens for outcome in Local(unpacked).loglikelihoods(some)]
    found = [outcome.logprob / outcome.tokens for outcome in Packed(made()).loglikelihoods(some)]
    spread = torch.tensor(wanted).std()
    assert (torch.tensor(found) - torch.tensor(wanted)).abs().max() < 0.2 * spread


def test_endings_of_several_lengths_behind_one_context():
    model = made()
    some = [
        type(r)(r.context, end) for r in questions.likelihoods(2)[::4] for end in (" a", " ab", " abc", " b", " ab")
    ]
    found = Packed(model).loglikelihoods(some)
    assert [round(each.logprob, 4) for each in found] == [round(alone(model, each)[0], 4) for each in some]
    assert found[1] == found[4]


def test_only_what_is_wanted_is_answered_and_in_the_same_bits():
    model, some, told = made(), questions.likelihoods(5), []
    everything = Packed(model).loglikelihoods(some)
    part = Packed(model).loglikelihoods(
        some, wanted={3, 11}, finished=lambda index, answer: told.append((index, answer))
    )
    assert [index for index, each in enumerate(part) if each] == [3, 11]
    assert dict(told) == {3: everything[3], 11: everything[11]}


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_generations_are_those_of_each_prompt_alone(rows):
    model, some = made(), questions.generations(9)
    found = Packed(model, rows=rows).generate(some)
    assert found == [greedy(model, request) for request in some]
    assert len(set(map(len, found))) > 3  # they ended at different steps


def test_generations_of_no_more_than_are_wanted():
    model, some, told = made(), questions.generations(6), []
    found = Packed(model).generate(some, wanted=[1, 4], finished=lambda index, text: told.append(index))
    assert [index for index, text in enumerate(found) if text is not None] == [1, 4] == sorted(told)
    assert found[4] == greedy(model, some[4])


def test_long_prompts_lose_their_left_end():
    model = made(max_position_embeddings=64)
    engine, some = Packed(model), questions.generations(4, most=8)
    engine.generate(some)
    long = [n for n, r in enumerate(some) if len(model.tokenizer(r.prompt).input_ids) + r.max_new_tokens > 64]
    assert engine.truncated == long != []


def test_an_evaluation_takes_a_packed_model_and_goes_on(tmp_path):
    model, task = made(), questions.task(questions.likelihoods(6))
    whole = run.evaluate(model, task, cache=tmp_path)
    again = run.evaluate(Packed(model), task, cache=tmp_path)
    assert whole == again and whole.asked == len(task.samples) and again.asked == 0
    read = estimate.before(model, task)
    assert read.read < Packed(model).tokens_asked([r for s in task.samples for r in s.requests]) and read.seconds > 0


def test_loaded_folders_are_answered_with_their_own_tokenizer(tmp_path):
    model = packed.quantize_(tiny.llama())
    compressed_tensors.save(model, tiny.tokenizer(), tmp_path / "four")
    weights, some = runtime.load(tmp_path / "four"), questions.likelihoods(3)
    assert is_packed(weights)
    model.tokenizer = tiny.tokenizer()
    assert Packed(weights).loglikelihoods(some) == Packed(runtime.pack_(model)).loglikelihoods(some)


def test_the_identity_follows_every_weight():
    first, second = made(), made()
    assert Packed(first).identity == Packed(second).identity
    packed_weights = Packed(second).weights
    packed_weights.layers[2]["first_norm"][5] += 1
    assert Packed(first).identity != Packed(second).identity
    assert Packed(first).identity != Packed(made(seed=1)).identity != Packed(made(seed=1), bos=False).identity


def test_what_is_refused():
    model = made()
    with pytest.raises(ValueError, match="leave dtype=None"):
        run.evaluate(model, questions.task(questions.likelihoods(4)), dtype="float32")
    assert not is_packed(tiny.llama())
    del model.tokenizer
    with pytest.raises(ValueError, match="without a tokenizer"):
        Packed(model)
    model = tiny.llama(max_position_embeddings=64)
    with pytest.raises(ValueError, match="not packed"):
        Packed(model)


def test_numbers_that_are_none_stop_the_generation():
    model = made()
    Packed(model).weights.norm[:] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        Packed(model).generate(questions.generations(2))
