"""What a model wants before its text stands before each window, wherever text becomes tokens, and never twice."""

import copy

import pytest
import torch

from lib import files, results, sources, tokenization
from lib.evaluation import likelihood
from lib.metrics import bits_per_byte, divergence, perplexity
from lib.metrics.score import exact
from lib.sources import file_formats, texts
from lib.sources import pieces as cutting
from lib.tasks.task import Likelihood
from lib.trainers import top_k
from tests import tiny
from tests.test_tokenization import LETTER, letters, tokenizer

WORDS = "abcdefghij" * 10


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch):
    monkeypatch.setattr(sources, "_used", [])


def model(before="<s>", **overrides):
    """A tiny Llama whose tokenizer puts `before` before a text; its tokens are bytes, moved by the special ones."""
    made = tiny.llama(vocab_size=256 + LETTER, **overrides)
    made.tokenizer = tokenizer(before)
    return made


def text(words=WORDS):
    return texts.Text("given", "test", [words])


@pytest.mark.parametrize("before, first", [("<s>", [0]), ("<|user|> <|bot|>", [2, 3]), ("", [])])
def test_windows_begin_with_what_the_tokenizer_puts_before_a_text(before, first):
    """Each window has its length; text follows piece by piece, and none of it is lost."""
    room = 10 - len(first)
    pieces = [letters(WORDS)[start : start + room] for start in range(0, 100 - room + 1, room)]
    found = texts.tokens(text(), model(before), length=10)
    assert found.tolist() == [[*first, *piece] for piece in pieces]
    assert torch.equal(texts.tokens(text().windows(4, 10), model(before)), found[:4])
    drawn = texts.tokens(text().windows(4, 10, seed=1), model(before)).tolist()
    assert all(window in found.tolist() for window in drawn)


@pytest.mark.parametrize("bos, before, first", [(False, "<s>", []), (True, "", [0]), (True, "<|user|>", [2])])
def test_an_argument_overrides_the_tokenizer(bos, before, first):
    expected = [*first, *letters(WORDS)[: 10 - len(first)]]
    made = model(before)
    assert texts.tokens(text(), made, length=10, bos=bos)[0].tolist() == expected
    assert texts.tokens(text().windows(2, 10, bos=bos), made)[0].tolist() == expected
    assert texts.tokens(text().windows(2, 10), made, bos=bos)[0].tolist() == expected
    told = perplexity.measure(made, text(), windows=3, length=10, bos=bos)
    assert told == perplexity.measure(made, texts.tokens(text(), made, count=3, length=10, bos=bos))
    found = divergence.measure(made, made, text(), windows=3, length=10, bos=bos)
    assert found["kl_divergence"].value == pytest.approx(0, abs=1e-6)


def test_windows_without_a_first_token_are_those_they_were(capsys):
    """The packaged model's case: the same windows, the same hash, nothing noted, nothing said."""
    made = tiny.llama()
    found = texts.tokens(text(), made, length=10)
    assert files.data_hash(found) == files.data_hash(torch.tensor(list(WORDS.encode())).view(10, 10))
    assert sources.used() == [] and capsys.readouterr().out == ""


def test_beginning_is_printed_once_recorded_and_in_the_hash(capsys):
    hashes = []
    for before, bos in (("", None), ("<s>", None), ("<s>", False)):
        sources._used.clear()
        sources.note(kind="text", name="given", origin="given", sha256=text().sha256)
        made = model(before)
        for _ in range(2):
            texts.tokens(text(), made, length=10, bos=bos)
        with results.start("99_beginnings") as run:
            run.record("bytes", exact(1, "MB"))
        hashes.append(run.document["rows"][0]["data_hash"])
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("windows begin with")]
        noted = [entry["origin"] for entry in run.document["inputs"] if entry["kind"] == "windows"]
        assert [line.removeprefix("windows begin with ") for line in said] == noted
        assert (
            noted
            == {
                ("", None): [],
                ("<s>", None): ["'<s>' [0], which the tokenizer puts before a text"],
                ("<s>", False): ["nothing, as asked; the tokenizer puts '<s>' [0]"],
            }[before, bos]
        )
    assert len(set(hashes)) == 3


def test_windows_without_room_for_text():
    with pytest.raises(ValueError, match="length=2 of windows that begin with 2 tokens of the tokenizer's own"):
        texts.tokens(text(), model("<|user|> <|bot|>"), length=2)


def test_ids_that_are_given_stay():
    ids = tiny.tokens(3, 8)
    assert torch.equal(texts.tokens(ids, model()), ids)


def test_calibration_sees_the_first_token():
    """What GPTQ's walk gives the first block are the embeddings of windows that begin so."""
    from lib.models import blocks
    from lib.quantizers import gptq

    gptq.quantize_(model(), text().windows(4, 10), bits=4, group_size=16)  # with what a process tries once of a class
    made, seen = model(), []
    blocks.embeddings(made).register_forward_hook(lambda module, args, output: seen.append(args[0]))
    gptq.quantize_(made, text().windows(4, 10), bits=4, group_size=16)
    assert seen and all(bool((ids[:, 0] == 0).all()) for ids in seen)


def test_references_and_kept_answers_are_of_these_windows(tmp_path):
    made = model()
    expected = texts.tokens(text(), made, count=3, length=10)
    reference = divergence.remember(made, text(), windows=3, length=10)
    assert torch.equal(reference.tokens, expected) and bool((expected[:, 0] == 0).all())
    kept = top_k.cache_teacher(made, text().windows(3, 10), k=4, folder=tmp_path)
    own = made(input_ids=expected).logits[:, :-1].topk(4).indices
    assert torch.equal(kept.ids[torch.arange(3)].long().sort(-1).values, own.sort(-1).values)


def test_distillation_trains_on_these_windows():
    from lib.trainers import adapters, distill, loop

    teacher, student, seen = model(), model(seed=1), []
    loss = distill.Distillation(teacher)

    class Watching:
        identity = loss.identity

        def __call__(self, model, batch):
            seen.append(batch["input_ids"])
            return loss(model, batch)

    with adapters.full_(student):
        loop.train_(student, text().windows(4, 10), Watching(), tokens=40, learning_rate=1e-4)
    assert (
        torch.cat(seen).sort(0).values.tolist() == texts.tokens(text().windows(4, 10), teacher).sort(0).values.tolist()
    )


@pytest.mark.parametrize("before, first", [("<s>", [0]), ("<|user|> <|bot|>", [2, 3]), ("", [0])])
def test_an_empty_context_is_what_a_text_begins_with(before, first):
    (found,) = likelihood.encode(tokenizer(before), [Likelihood("", "ab")], 10)
    assert found.inputs == (*first, *letters("a")) and found.targets == tuple(letters("ab"))
    (written,) = likelihood.encode(tokenizer(before), [Likelihood("", before.replace(" ", "") + "ab")], 10)
    assert before == "" or written == found  # one that has it written out gets no second


def test_nothing_to_begin_with_is_said():
    made = tokenizer("", bos=False)
    with pytest.raises(ValueError, match="puts nothing before a text and has neither BOS nor EOS"):
        likelihood.encode(made, [Likelihood("", "ab")], 10)
    assert likelihood.encode(made, [Likelihood("x", "ab")], 10)[0].targets == tuple(letters("ab"))
    assert tokenization.before_windows(made) == []


@pytest.mark.parametrize("before, first", [("<s>", [0]), ("<|user|> <|bot|>", [2, 3]), ("", [0])])
@pytest.mark.parametrize("stride", [None, 3])
def test_bits_per_byte_scores_the_documents_own_tokens(before, first, stride):
    """Against a sum over tokens one by one, each seen behind what its window holds."""
    made, document = model(before), WORDS[:23]
    ids = torch.tensor([*first, *letters(document)])
    bits, length = 0.0, 8
    for start, begin, end in bits_per_byte.windows(len(ids) - 1, length, stride or length, len(first)):
        logp = made(input_ids=ids[None, start : end - 1]).logits[0].log_softmax(-1)
        bits -= sum(logp[place - 1 - start, ids[place]].item() for place in range(begin, end)) / torch.tensor(2.0).log()
    found = bits_per_byte.measure(made, document, length=length, stride=stride)
    assert found.value == pytest.approx(float(bits) / 23, rel=1e-5)
    spans = bits_per_byte.windows(len(ids) - 1, length, stride or length, len(first))
    scored = [place for _, begin, end in spans for place in range(begin, end)]
    assert scored == list(range(len(first), len(ids))) and all(end - 1 - start <= length for start, _, end in spans)


def test_same_windows_for_a_copy_without_tokenizer_rules_of_its_own():
    """Pruned and quantized copies share the tokenizer, and so the windows."""
    made = model()
    again = copy.deepcopy(made)
    assert torch.equal(texts.tokens(text(), made, length=10), texts.tokens(text(), again, length=10))


@pytest.mark.parametrize("before", ["<s>", ""])
def test_llama_cpp_reads_windows_as_they_begin(tmp_path, monkeypatch, before):
    """Its importance matrix sees the same ids: the first token is in the text, read as the token that it is."""
    from types import SimpleNamespace

    from lib.peers import llama_cpp

    made, ran = model(before), {}
    made.tokenizer.save_pretrained(tmp_path / "model")
    tokens = texts.tokens(text().windows(2, 10), made)

    def run(tool, *arguments, job=None):
        ran[tool] = arguments, (tmp_path / "calibration.txt").read_text()
        return str(tokens.flatten().tolist())

    monkeypatch.setattr(llama_cpp, "_tool", lambda name: name)
    monkeypatch.setattr(llama_cpp, "_run", run)
    job = SimpleNamespace(tokens=tokens, model=tmp_path / "model", work=tmp_path, options={"threads": 1})
    assert llama_cpp._importance(job, "source.gguf")[1] == 2
    arguments, words = ran["llama-imatrix"]
    assert ("--parse-special" in arguments) == bool(before)
    assert "tokenizer.ggml.add_bos_token=bool:false" in arguments
    room = 10 - len(before.split())
    assert words == "".join(before + WORDS[start : start + room] for start in (0, room)) + "\n"


@pytest.mark.parametrize("before, first", [("<s>", [0]), ("<|user|> <|bot|>", [2, 3])])
def test_a_first_token_that_a_template_wrote_is_there_once(tmp_path, monkeypatch, before, first):
    """In every window that begins where a templated text does, and in the bits of a document; streamed as in memory."""
    made, written = model(before), before.replace(" ", "")
    room = 10 - len(first)
    words = [WORDS[: 2 * room], WORDS[:room], WORDS[2:40]]
    pieces = [piece for each in words[:2] for piece in (each[:room], each[room:]) if piece]
    found = texts.tokens(text("".join(written + each for each in words)), made, length=10)
    assert found[:3].tolist() == [first + letters(piece) for piece in pieces]
    assert found[3:].tolist() == [
        first + letters(words[2][start : start + room]) for start in range(0, 38 - room, room)
    ]
    templated, bare = (bits_per_byte.measure(made, start + WORDS, length=40) for start in (written, ""))
    assert templated == bare

    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    (tmp_path / "train.txt").write_text("".join(written + each for each in words))
    (tmp_path / "test.txt").write_text(written + WORDS)
    for size in (1, 1 << 20):
        monkeypatch.setattr(cutting, "AT_ONCE", size)
        streamed = texts.load(str(tmp_path / "train.txt"), "train", in_memory=0)
        assert torch.equal(texts.tokens(streamed, made, length=10), found)
        drawn, expected = (texts.tokens(each.windows(4, 10, seed=3), made) for each in (streamed, text(streamed.text)))
        assert torch.equal(drawn, expected)
    monkeypatch.setattr(file_formats, "BLOCK", 2)  # the first token is cut in two
    assert bits_per_byte.measure(made, texts.load(str(tmp_path / "test.txt"), in_memory=0), length=40) == bare
