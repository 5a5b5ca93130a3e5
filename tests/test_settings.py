"""What a checkpoint's generation settings do to logits: every loop against transformers' own `generate`, key by key."""

import json
import subprocess
import sys

import pytest
import torch

from lib import files, runtime
from lib.decoding import chat, ends, settings
from lib.decoding.generate import generate
from lib.decoding.lookup import Lookup
from lib.decoding.sampling import Sampling
from lib.decoding.sessions import ModelSession
from lib.decoding.speculative import Speculative
from lib.evaluation import lm_eval_check, run
from lib.evaluation.local import Local
from lib.evaluation.packed_engine import Packed
from lib.tasks.task import Generation
from tests import questions, tabular, tiny

END = 129  # ends a text in these tests, and random models do write it
KEYS = {
    "repetition_penalty": 1.3,
    "encoder_repetition_penalty": 2.5,
    "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 1,
    "sequence_bias": [[[65], 6.0], [[66, 67], 4.0]],
    "bad_words_ids": [[204], [49, 95]],
    "min_length": 25,
    "min_new_tokens": 14,
    "forced_eos_token_id": 9,
    "forced_bos_token_id": 11,
    "exponential_decay_length_penalty": (3, 1.9),
    "suppress_tokens": list(range(0, 256, 3)),
    "begin_suppress_tokens": list(range(0, 256, 2)),
    "watermarking_config": {
        "greenlist_ratio": 0.25,
        "bias": 6.0,
        "hashing_key": 15485863,
        "seeding_scheme": "lefthash",
    },
    "stop_strings": ["_", "b", "&", "*"],
}
PROMPTS = [[70, 71, 70, 71, 70], [12], [*range(60, 90)], [*range(0, 256, 2)]]


def made(key=None, value=None, **more):
    """A tiny model whose greedy text each key changes; what it writes often ends with END."""
    model = tiny.llama(num_hidden_layers=2, initializer_range=0.15)
    model.generation_config.eos_token_id = END
    model.generation_config.update(**({key: value} if key else {}), **more)
    return model


@torch.no_grad()
def theirs(model, prompt, new_tokens=20, **options):
    """What transformers' `generate` writes behind `prompt`, by the model's generation settings."""
    given = torch.tensor([prompt])
    found = model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=new_tokens, pad_token_id=0,
        tokenizer=model.tokenizer, **{"do_sample": False, **options},
    )  # fmt: skip
    return found[0, len(prompt) :].tolist()


def through(model, logits):
    """`model` with `logits(ids) -> [vocabulary]` in place of its own forward pass."""
    output = model(torch.tensor([[1]]), use_cache=False)

    def forward(input_ids, **options):
        return type(output)(logits=logits(input_ids[0].tolist())[None, None])

    model.forward = forward
    return model


@pytest.mark.parametrize("key", KEYS)
def test_greedy_texts_are_those_of_transformers(key):
    model, bare = made(key, KEYS[key]), made()
    session = ModelSession(model)
    wanted = [theirs(model, prompt) for prompt in PROMPTS]
    assert wanted != [theirs(bare, prompt) for prompt in PROMPTS]  # the key does something here
    for prompt, tokens in zip(PROMPTS, wanted):
        options = {"new_tokens": 20, "eos": END, "tokenizer": model.tokenizer}
        given = torch.tensor(prompt)
        assert generate(session, given, **options).token_ids == tokens
        small = Speculative(ModelSession(tiny.llama(seed=1, num_hidden_layers=1)), draft_length=3)
        for drafter in (Lookup(), small, tabular.Fixed(prompt + tokens, length=5, wrong=0.3)):
            assert generate(session, given, drafter=drafter, **options).token_ids == tokens
        plain = generate(session, given, plain=True, **options)
        assert plain.token_ids == theirs(bare, prompt)


@pytest.mark.parametrize("key", KEYS)
def test_evaluation_writes_what_transformers_writes(key):
    model, some = made(key, KEYS[key]), questions.generations(5, until=("b",))
    wanted = [theirs(model, model.tokenizer(each.prompt).input_ids, each.max_new_tokens) for each in some]
    stops = ["b", *(KEYS[key] if key == "stop_strings" else [])]
    texts = []
    for tokens in wanted:
        tokens = tokens[: tokens.index(0)] if 0 in tokens else tokens  # the tokenizer's own end
        text = model.tokenizer.decode(tokens, skip_special_tokens=True)
        for stop in stops:
            text = text.split(stop)[0]
        texts.append(text)
    engine = Local(model, rows=3)
    assert engine.generate(some) == texts
    engine.shares = False
    assert engine.generate(some) == texts
    assert json.loads(engine.settings)["generation_config"].keys() == {key}
    assert Local(model, plain=True).settings == "greedy"
    assert Local(model, plain=True).generate(some) == Local(made()).generate(some)


@pytest.mark.parametrize("key", KEYS)
def test_the_packed_engine_writes_what_transformers_writes_from_its_logits(key, tmp_path):
    model = made(key, KEYS[key])
    model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    loaded, some = runtime.load(tmp_path), questions.generations(4, until=())
    weights = loaded.generation_config
    assert weights["eos_token_id"] == END
    reference = through(made(key, KEYS[key]), lambda ids: runtime.Session(loaded).extend(ids, last=True)[0])
    wanted = [theirs(reference, prompt, use_cache=False) for prompt in PROMPTS]
    found = runtime.generate(loaded, PROMPTS, new_tokens=20)
    assert [answer.token_ids for answer in found] == wanted
    drafted = generate(
        runtime.Session(loaded), torch.tensor(PROMPTS[0]), new_tokens=20, eos=END, drafter=Lookup(),
        tokenizer=model.tokenizer,
    )  # fmt: skip
    assert drafted.token_ids == wanted[0]
    packed = Packed(loaded, rows=2)
    ids = [model.tokenizer(each.prompt).input_ids for each in some]
    for text, prompt, each in zip(packed.generate(some), ids, some):
        (answer,) = runtime.generate(loaded, [prompt], new_tokens=each.max_new_tokens, eos=[END, 0])
        assert text == answer.text
    assert json.loads(packed.settings)["generation_config"].keys() == {key}
    plain = runtime.generate(loaded, PROMPTS, new_tokens=20, plain=True)
    assert plain == runtime.generate(runtime.pack_(made()), PROMPTS, new_tokens=20)


@pytest.mark.parametrize("key", ["min_length", "min_new_tokens", "exponential_decay_length_penalty"])
def test_a_least_length_forbids_the_end_tokens_that_are_given(key, tmp_path):
    model, bare, prompt = made(key, KEYS[key]), made(), PROMPTS[1]
    model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    session, loaded = ModelSession(model), runtime.load(tmp_path)
    reference = through(made(key, KEYS[key]), lambda ids: runtime.Session(loaded).extend(ids, last=True)[0])
    given = torch.tensor(prompt)
    texts = (
        (token, *(theirs(each, prompt, eos_token_id=[token]) for each in (model, bare)))
        for token in theirs(bare, prompt)
    )
    token = next(token for token, with_key, without in texts if with_key != without)  # one that ends a text
    for named in ([token], [token, 7]):
        options = {"new_tokens": 20, "eos": named}
        wanted = theirs(model, prompt, eos_token_id=named)
        for drafter in (None, Lookup(), tabular.Fixed(prompt + wanted, length=5, wrong=0.3)):
            assert generate(session, given, drafter=drafter, **options).token_ids == wanted
        assert runtime.generate(model, [prompt], **options)[0].token_ids == wanted
        wanted = theirs(reference, prompt, use_cache=False, eos_token_id=named)
        assert runtime.generate(loaded, [prompt], **options)[0].token_ids == wanted
        assert generate(runtime.Session(loaded), given, drafter=Lookup(), **options).token_ids == wanted


def test_a_bias_is_given_as_transformers_takes_it():
    pairs, table = made("sequence_bias", KEYS["sequence_bias"]), made("sequence_bias", {(65,): 6.0, (66, 67): 4.0})
    assert settings.of(pairs).values == settings.of(table).values == {"sequence_bias": [[[65], 6.0], [[66, 67], 4.0]]}
    assert (
        theirs(pairs, [5])
        == theirs(table, [5])
        == generate(ModelSession(table), torch.tensor([5]), new_tokens=20).token_ids
    )


def test_a_packed_model_obeys_the_settings_that_it_has_now():
    model = runtime.pack_(made())
    before = runtime.generate(model, PROMPTS, new_tokens=20)
    model.generation_config.repetition_penalty = 1.5
    after = runtime.generate(model, PROMPTS, new_tokens=20)
    assert before != after
    assert after == runtime.generate(runtime.pack_(made("repetition_penalty", 1.5)), PROMPTS, new_tokens=20)


def test_draws_come_after_the_settings():
    model = made("no_repeat_ngram_size", 1, repetition_penalty=1.2)
    how = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
    for seed, prompt in enumerate(PROMPTS):
        for more in ({}, {"repetition_penalty": 1.6}, {"repetition_penalty": 1.0}):
            drawn = Sampling(**how, **more, seed=seed)
            ours = generate(ModelSession(model), torch.tensor(prompt), new_tokens=20, eos=END, sampling=drawn)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                assert ours.token_ids == theirs(model, prompt, do_sample=True, **how, **more)


@pytest.mark.parametrize(
    "asked",
    [
        {"num_beams": 4},
        {"guidance_scale": 1.5},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"dola_layers": "low"},
        {"token_healing": True},
        {"max_time": 1.0},
        {"num_return_sequences": 2},
    ],
)
def test_other_searches_are_refused_by_name(asked):
    model = made()
    for key, value in asked.items():
        setattr(model.generation_config, key, value)
    name = next(iter(asked))
    for call in (
        lambda: generate(ModelSession(model), torch.tensor([1, 2]), new_tokens=3),
        lambda: Local(model),
        lambda: chat.answer(model, "Hi"),
        lambda: runtime.generate(runtime.pack_(model), [[1, 2]]),
    ):
        with pytest.raises(ValueError, match=f"asks for {name}=.*plain=True"):
            call()
    assert len(generate(ModelSession(model), torch.tensor([1, 2]), new_tokens=3, plain=True).token_ids) == 3


def test_settings_that_change_nothing_are_none():
    neutral = made(repetition_penalty=1.0, no_repeat_ngram_size=0, min_length=0, suppress_tokens=[], num_beams=1)
    neutral.generation_config.update(temperature=0.7, top_k=20, top_p=0.8, penalty_alpha=0.6)
    neutral.generation_config.top_k = 1
    assert not settings.of(neutral) and Local(neutral).settings == "greedy"


def test_chat_obeys_the_settings():
    model = made("no_repeat_ngram_size", 1)
    text = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    wanted = theirs(model, model.tokenizer(text).input_ids, 12)
    assert chat.answer(model, "Hi", new_tokens=12) == model.tokenizer.decode(wanted, skip_special_tokens=True)
    assert chat.answer(model, "Hi", new_tokens=12, plain=True) == chat.answer(made(), "Hi", new_tokens=12)
    assert ends.of_model(model) == (END,)


def test_the_harness_writes_the_same_under_a_penalty():
    pytest.importorskip("lm_eval")
    model = made("repetition_penalty", 1.1, no_repeat_ngram_size=3)
    found = lm_eval_check.compare(model, questions.task(questions.generations(5)))
    assert found.other_texts == 0
    assert Local(model).generate(questions.generations(5)) != Local(made()).generate(questions.generations(5))


def test_answers_of_other_settings_are_kept_apart(tmp_path):
    task = questions.task(questions.generations(4))
    engines = [Local(made()), Local(made("repetition_penalty", 1.1)), Local(made("repetition_penalty", 1.2))]
    assert [run.evaluate(engine, task, cache=tmp_path).asked for engine in engines] == [4, 4, 4]
    again = run.evaluate(Local(made("repetition_penalty", 1.1)), task, cache=tmp_path)
    assert again.asked == 0 and json.loads(again.settings) == {"generation_config": {"repetition_penalty": 1.1}}


def test_a_folder_without_such_settings_still_needs_no_torch(tmp_path):
    tiny.save(tmp_path, made())
    code = (
        "import sys; from lib import runtime; weights = runtime.load(sys.argv[1]); "
        "print([a.token_ids for a in runtime.generate(weights, ['abc', [5, 6]], new_tokens=6, stop='never')]); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=files.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_one_request_does_not_see_the_others_settings():
    model = made("min_new_tokens", 9)
    some = [Generation("say " * place, (), 6 * place) for place in range(1, 5)]
    assert Local(model, rows=4).generate(some) == [Local(model).generate([each])[0] for each in some]
