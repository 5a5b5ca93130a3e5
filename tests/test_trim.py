"""Trimming a vocabulary: entries with all they are made of, rows of the model, ids everywhere, healing across."""

import json

import hypothesis
import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import strategies
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lib import tokenization
from lib.export import plain
from lib.quantizers import embedding
from lib.tokenizers import across, entries, trim, usage
from lib.trainers import byte_pairs, minibatch
from tests import tiny

TEXT = ["the cat sat on the mat and the dog sat beside the cat; then they walked to the old mill by the river. " * 4]
OTHER = "zebras quietly vanish; 東京 \U0001f600 naïve"


def on_bytes():
    return byte_pairs.train(
        [*TEXT, "a bright quarrel of foxes, a question of zeal and vexing quizzes " * 6], vocabulary=330
    )


def with_fallback(kind="BPE"):
    """As SentencePiece's are converted: a word begins with ▁, what has no entry is written by bytes."""
    letters = sorted(set("".join(TEXT)) - {" "} | {"▁"})
    if kind == "BPE":
        core = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        special = ["<unk>", "<s>", "</s>", *entries.BYTES]
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=360, special_tokens=special, initial_alphabet=letters)
        core.normalizer = tokenizers.normalizers.Replace(" ", "▁")
        core.train_from_iterator([*TEXT, "foxes and quizzes " * 9], trainer)
        core = json.loads(core.to_str())
        core["added_tokens"] = core["added_tokens"][:3]  # bytes are ordinary entries
        core = tokenizers.Tokenizer.from_str(json.dumps(core))
    else:
        words = {f"▁{word}": -float(rank) for rank, word in enumerate(sorted(set(TEXT[0].split())))}
        scores = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((each, -20.0) for each in entries.BYTES)]
        scores += [*((each, -12.0) for each in letters), *words.items()]
        core = tokenizers.Tokenizer(tokenizers.models.Unigram(scores, unk_id=0, byte_fallback=True))
        core.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    core.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    begin = core.token_to_id("<s>")
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", begin)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def model_of(tokenizer, rows=0, **settings):
    model = tiny.llama(vocab_size=len(tokenizer) + rows, **settings)
    model.tokenizer = tokenizer
    for each in (model.config, model.generation_config):
        each.bos_token_id, each.eos_token_id = tokenizer.bos_token_id, [tokenizer.eos_token_id]
    return model


def counted(tokenizer):
    return usage.count(tokenizer, TEXT)


KINDS = {"bytes": on_bytes, "fallback": with_fallback, "unigram": lambda: with_fallback("Unigram")}


@pytest.fixture(scope="module", params=KINDS)
def trimmed(request):
    """(tokenizer before, model before, model after, kept ids)"""
    tokenizer = KINDS[request.param]()
    before, after = (model_of(tokenizer, rows=3, tie_word_embeddings=request.param == "bytes") for _ in range(2))
    after.load_state_dict(before.state_dict())
    vocabulary = entries.Vocabulary(tokenizer)
    used = [entry for entry, id in vocabulary.ids.items() if counted(tokenizer)[id]]
    size = len(vocabulary.alphabet.union(vocabulary.added.values(), *map(vocabulary.parts, used)))
    kept = vocabulary.kept(counted(tokenizer), size)
    assert len(tokenizer) - size > 5
    trim.trim_(after, counted(tokenizer), size)
    return tokenizer, before, after, kept


def test_a_text_whose_tokens_stay_is_split_and_predicted_as_before(trimmed):
    tokenizer, before, after, kept = trimmed
    ids, new = tokenizer(TEXT[0])["input_ids"], after.tokenizer(TEXT[0])["input_ids"]
    assert [kept[id] for id in new] == ids and len(kept) == len(after.tokenizer)
    with torch.no_grad():
        whole, part = before(torch.tensor([ids[:30]])).logits, after(torch.tensor([new[:30]])).logits
    assert torch.equal(whole[..., kept], part)


@hypothesis.settings(max_examples=30)
@hypothesis.given(text=strategies.text(strategies.characters(codec="utf-8", exclude_characters="▁")))
def test_every_text_can_still_be_written(text):
    for make in (on_bytes, with_fallback):
        tokenizer = _cached(make)
        smaller = _smaller(make)
        decode = [each.decode(each(text, add_special_tokens=False)["input_ids"]) for each in (tokenizer, smaller)]
        assert decode[0] == decode[1] == text


MADE = {}


def _cached(make):
    return MADE.setdefault(make, make())


def _smaller(make):
    if (make, "smaller") not in MADE:
        model = model_of(_cached(make))
        MADE[make, "smaller"] = trim.trim_(model, counted(_cached(make)), len(_cached(make)) - 30)
    return MADE[make, "smaller"]


def test_ids_move_everywhere_and_a_fresh_load_agrees(trimmed, tmp_path):
    tokenizer, _, after, kept = trimmed
    new = {old: place for place, old in enumerate(kept)}
    for settings in (after.config, after.generation_config):
        assert settings.bos_token_id == new[tokenizer.bos_token_id] == after.tokenizer.bos_token_id
        assert settings.eos_token_id == [new[tokenizer.eos_token_id]]
    assert tokenization.first_ids(after.tokenizer) == [new[id] for id in tokenization.first_ids(tokenizer)]
    folder = plain.save(after, after.tokenizer, tmp_path / "my model é")
    again, reader = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = reader(f"{TEXT[0][:60]} {OTHER}", return_tensors="pt").input_ids
    assert ids.tolist() == [after.tokenizer(f"{TEXT[0][:60]} {OTHER}")["input_ids"]]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, after(ids).logits) and again.config.vocab_size == len(kept)


def test_entries_stay_with_what_they_are_made_of():
    vocabulary = entries.Vocabulary(on_bytes())
    occurrences = np.zeros(330, np.int64)
    longest = max(vocabulary.ids.keys() - vocabulary.added.keys(), key=len)
    occurrences[vocabulary.ids[longest]] = 1
    kept = vocabulary.kept(occurrences, 280)
    assert vocabulary.parts(longest) <= set(kept) and vocabulary.ids[longest] in kept and len(kept) == 280
    rules = vocabulary.without_others(kept)
    core = tokenizers.Tokenizer.from_str(json.dumps(rules))
    assert [each.value for each in core.model.tokenize(longest)] == [longest]
    # all else that stays is early merges, since nothing else occurs
    others = set(kept) - vocabulary.alphabet - vocabulary.parts(longest) - set(vocabulary.added.values())
    assert max(others) < min(set(range(330)) - set(kept)) + 8


def test_what_trimming_costs_in_other_languages():
    tokenizer = on_bytes()
    found = usage.lengthening(tokenizer, _smaller(on_bytes), {"as counted": TEXT[0], "other": "quizzes vexing foxes"})
    assert found["as counted"] == 1.0 and found["other"] > 1.2
    by_hand = [len(each("quizzes vexing foxes")["input_ids"]) for each in (_smaller(on_bytes), tokenizer)]
    assert found["other"] == pytest.approx(by_hand[0] / by_hand[1])


def test_the_warning_names_what_was_not_counted(capsys):
    text = "def total(rows):\n    return sum(row['price'] for row in rows)\n"
    model = model_of(byte_pairs.train([*TEXT, text * 9], vocabulary=330))
    before = model.tokenizer
    after = trim.trim_(model, counted(before), 290)
    shown = capsys.readouterr().out
    assert shown.startswith("290 of 330 entries stay; times the tokens of before: code 1.")
    assert trim.warning(before, before) == "330 of 330 entries stay; times the tokens of before: nowhere more"
    assert f"code {usage.lengthening(before, after)['code']:.2f}" in shown


def test_refusals_come_before_any_change():
    tokenizer = on_bytes()
    model = model_of(tokenizer)
    for size, says in ((100, "whole numbers from 257"), (330, "to 329"), (True, "size=True")):
        with pytest.raises(ValueError, match=says):
            trim.trim_(model, counted(tokenizer), size)
    assert model.config.vocab_size == 330 == model.get_input_embeddings().num_embeddings
    embedding.quantize_(model, bits=8, group_size=16)
    with pytest.raises(ValueError, match="trim first"):
        trim.trim_(model, counted(tokenizer), 300)
    pieces = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match="WordPiece"):
        entries.Vocabulary(PreTrainedTokenizerFast(tokenizer_object=pieces))
    words = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    with pytest.raises(ValueError, match="without all bytes"):
        entries.Vocabulary(PreTrainedTokenizerFast(tokenizer_object=words))


def test_the_loss_across_vocabularies_is_the_divergence_of_folded_predictions(trimmed):
    tokenizer, teacher, student, kept = trimmed
    data = across.rows([f"{TEXT[0][:80]} foxes and quizzes"], tokenizer, student.tokenizer, 64)
    batch = across.collate([data[0]])
    loss = across.Across(teacher)
    loss.check(student)
    with torch.no_grad():
        found = loss(student, batch)
        p = teacher(batch["teacher_ids"]).logits[0].double().softmax(-1)
        q = student(batch["input_ids"]).logits[0].double().log_softmax(-1)
    first = across.first_pieces(tokenizer, student.tokenizer, teacher.config.vocab_size)
    total, told, count = 0.0, 0, len(data[0]["input_ids"]) - 1
    for at in range(count):
        place = int(data[0]["places"][at])
        if place < 0:
            total -= q[at, data[0]["input_ids"][at + 1]]
            continue
        folded, told = torch.zeros(len(kept) + 1).double(), told + 1
        for id, share in enumerate(p[place]):
            folded[first[id]] += share
        folded = folded[:-1] / folded[:-1].sum()
        total += (folded * (folded.log() - q[at]))[folded > 0].sum()
    assert 0 < told <= count and found.item() == pytest.approx(float(total) / count, rel=1e-4)
    gone = [id for id in range(len(tokenizer)) if id not in kept]
    assert all(first[id] < len(kept) for id in gone) and [int(first[id]) for id in kept] == list(range(len(kept)))


def test_healing_comes_nearer_and_resumes_only_on_the_same_rows(tmp_path):
    tokenizer = on_bytes()
    teacher, student = (model_of(tokenizer) for _ in range(2))
    student.load_state_dict(teacher.state_dict())
    trim.trim_(student, counted(tokenizer), 280)
    texts = [TEXT[0][:200], "foxes and quizzes " * 12]
    history = across.heal_(student, teacher, texts, length=32, steps=30, batch=2, learning_rate=1e-2)
    assert history.losses[-1] < 0.7 * history.losses[0]
    ends = across.rows(["naïve \U0001f600"], tokenizer, student.tokenizer, 32)[0]
    assert ends["places"][-1] == len(ends["teacher_ids"]) - 1
    assert across.rows(texts, tokenizer, student.tokenizer, 32).identity != ends
    with pytest.raises(ValueError, match="no text has two tokens"):
        across.rows([""], tokenizer, student.tokenizer, 32)
    with pytest.raises(ValueError, match="a part of the teacher's vocabulary"):
        across.first_pieces(student.tokenizer, tokenizer, 280)
    assert minibatch.IGNORED not in across.collate([ends])["labels"].tolist()[0]


def test_a_copy_is_trimmed_and_the_model_stays(capsys):
    from lib.tokenizers import copies

    model = model_of(on_bytes())
    counts, rows = usage.count(model.tokenizer, TEXT), model.get_input_embeddings().weight.clone()
    smaller = copies.trimmed(model, counts, 0.9)
    assert len(smaller.tokenizer) == smaller.get_input_embeddings().num_embeddings == round(0.9 * 330)
    assert torch.equal(model.get_input_embeddings().weight, rows) and len(model.tokenizer) == 330
    whole = copies.trimmed(model, counts, 1)
    assert whole is not model and torch.equal(whole.get_input_embeddings().weight, rows)
    assert copies.trimmed(model, counts, 0.5) is None and "whole numbers from" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"two thirds are 0\.67"):
        copies.trimmed(model, counts, 0)
