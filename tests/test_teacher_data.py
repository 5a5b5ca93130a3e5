"""A teacher's answers: as it writes them alone, shards that resume in the same bytes, filters, mixtures, refusals."""

import pytest
import torch

from lib import jobs
from lib.decoding import generate, sampling, sessions
from lib.distillation import selection, teacher_data, wishes
from lib.evaluation.local import Local
from lib.evaluation.packed_engine import Packed
from lib.sources import models
from lib.sources import prompts as sources
from lib.trainers import distill, loop
from lib.trainers.minibatch import IGNORED
from tests import tiny


@pytest.fixture(scope="module")
def teacher():
    model = tiny.llama()
    model.tokenizer = tiny.tokenizer()
    return model


PROMPTS = [[5, 6, 7], [8, 9], [5, 6, 7], [3], [4, 4, 4, 4, 4]]
HOW = dict(temperature=0.9, top_p=0.9, new_tokens=6, seed=3)


def test_each_answer_is_what_the_teacher_writes_alone(teacher, tmp_path):
    found = teacher_data.write(teacher, PROMPTS, tmp_path / "é a", **HOW)
    for place, prompt in enumerate(PROMPTS):
        alone = generate.generate(
            sessions.ModelSession(teacher), torch.tensor(prompt), new_tokens=6,
            sampling=sampling.Sampling(0.9, top_p=0.9, seed=3 + place),
        )  # fmt: skip
        assert found.rows[place]["answer"] == alone.token_ids
        row = found[place]
        assert row["input_ids"].tolist() == prompt + alone.token_ids
        assert row["labels"].tolist() == [IGNORED] * len(prompt) + alone.token_ids
    assert found.rows[0]["answer"] != found.rows[2]["answer"]  # the same prompt with another seed


def test_the_packed_engine_writes_for_a_teacher_of_sixteen_bits_on_a_cpu(teacher, tmp_path):
    tiny.save(tmp_path / "é", tiny.llama())
    loaded = models.load(str(tmp_path / "é"))[0]
    assert type(teacher_data.engine_of(str(tmp_path / "é"), loaded)) is Local  # float32 would be rounded
    halved = models.load(str(tmp_path / "é"), dtype="bfloat16")[0]
    engine = teacher_data.engine_of(str(tmp_path / "é"), halved)
    assert isinstance(engine, Packed) and {matrix.bits for matrix in engine.weights.matrices()} == {16}
    greedy = HOW | {"temperature": 0, "top_p": 1}
    found = teacher_data.write(halved, PROMPTS, tmp_path / "answers", **greedy, engine=engine)
    for row in found.rows:  # at no place does the engine's choice lie below another's by more than rounding
        ids = torch.tensor([row["prompt"] + row["answer"]])
        logits = halved(ids).logits[0, len(row["prompt"]) - 1 : -1].float()
        chosen = logits.gather(1, ids[0, len(row["prompt"]) :, None])[:, 0]
        assert (logits.amax(1) - chosen).max() < 0.05 * logits.std()
    with pytest.raises(ValueError, match=r"another job \(engine=Packed there, Local here"):
        teacher_data.write(halved, PROMPTS, tmp_path / "answers", **greedy)


def test_a_killed_job_ends_in_the_same_bytes(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_data, "PART", 2)
    whole = teacher_data.write(teacher, PROMPTS, tmp_path / "whole", **HOW)
    write, written = jobs.write_rows, []

    def once(path, rows):
        if written:
            raise KeyboardInterrupt
        written.append(write(path, rows))

    monkeypatch.setattr(jobs, "write_rows", once)
    with pytest.raises(KeyboardInterrupt):
        teacher_data.write(teacher, PROMPTS, tmp_path / "killed", **HOW)
    monkeypatch.setattr(jobs, "write_rows", write)
    again = teacher_data.write(teacher, PROMPTS, tmp_path / "killed", **HOW)
    assert again.identity == whole.identity
    names = sorted(path.name for path in (tmp_path / "whole").glob("part-*"))
    assert len(names) == 3
    assert all((tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes() for name in names)
    with pytest.raises(ValueError, match=r"another job \(seed=3 there, 4 here\)"):
        teacher_data.write(teacher, PROMPTS, tmp_path / "whole", **HOW | {"seed": 4})
    whole = (tmp_path / "whole" / names[1]).read_text()
    for damaged in (whole[:-20], ""):  # cut short, and empty
        (tmp_path / "whole" / names[1]).write_text(damaged)
        with pytest.raises(ValueError, match=rf"{names[1]} is cut short"):
            teacher_data.write(teacher, PROMPTS, tmp_path / "whole", **HOW)


def test_a_student_trains_on_them(teacher, tmp_path):
    found = teacher_data.write(teacher, PROMPTS, tmp_path, **HOW)
    student = tiny.llama(num_hidden_layers=2)
    student.tokenizer = teacher.tokenizer
    mixed = selection.mixed({"answers": found, "text": found}, {"answers": 3, "text": 1}, count=4)
    history = loop.train_(student, mixed, distill.Distillation(teacher), steps=2, batch=2, learning_rate=1e-3)
    assert len(history.losses) == 2


def row(answer, reason="eos"):
    return {"prompt": [1], "answer": answer, "reason": reason}


def test_what_repeats_itself_or_was_cut_goes_and_is_counted(capsys):
    assert selection.repeated([1, 2, 3]) == 0 and selection.repeated([7] * 10) == pytest.approx(6 / 7)
    rows = (row([1, 2, 3, 4, 5]), row([7] * 10), row([1, 2, 3, 4, 5], "length"), row([]))
    answers = teacher_data.Answers(rows)
    assert selection.kept(answers).rows == rows[:1]
    assert "1 of 4 answers stay, 1 repeating themselves, 1 cut off, 1 empty" in capsys.readouterr().out
    assert selection.kept(answers, truncated=True).rows == (rows[0], rows[2])
    with pytest.raises(ValueError, match="none of 1 answers"):
        selection.kept(teacher_data.Answers(rows[3:]))
    with pytest.raises(ValueError, match="most_repeated=2"):
        selection.kept(answers, most_repeated=2)


def test_shares_of_a_mixture():
    parts = {"a": list(range(100)), "b": list(range(100, 150))}
    found = selection.mixed(parts, {"a": 2, "b": 1}, count=50, seed=1)
    values = [found[place] for place in range(len(found))]
    assert len(set(values)) == 50 and sum(value < 100 for value in values) == 33
    assert values == [each for each in selection.mixed(parts, {"a": 2, "b": 1}, count=50, seed=1)]
    assert values != [each for each in selection.mixed(parts, {"a": 2, "b": 1}, count=50, seed=2)]
    with pytest.raises(ValueError, match="60 rows of 'b' are wanted and it has 50"):
        selection.mixed(parts, {"a": 1, "b": 3}, count=80)
    with pytest.raises(ValueError, match="name the same parts"):
        selection.mixed(parts, {"a": 1}, count=5)


def test_prompts_without_any_text(teacher):
    tokenizer = teacher.tokenizer
    found = teacher_data.first_tokens(tokenizer, 20, seed=1)
    before = len(found[0]) - 1
    assert len(found) == 20 and len({tuple(each) for each in found}) > 5
    assert not {each[-1] for each in found} & set(tokenizer.all_special_ids)
    assert all(each[:before] == found[0][:before] for each in found)
    assert teacher_data.beginnings(tiny.tokens(3, 9), length=4, count=2) == tiny.tokens(3, 9)[:2, :4].tolist()
    with pytest.raises(ValueError, match="length=9"):
        teacher_data.beginnings(tiny.tokens(3, 9), length=9)


def test_prompts_from_a_data_set_or_the_packaged_ones(teacher):
    found = teacher_data.from_data(teacher.tokenizer, "chat", 2, source="packaged")
    assert len(found) == 2 and all(isinstance(token, int) for token in found[0])
    wished = teacher_data.from_data(teacher.tokenizer, "chat", 2, source="packaged", wished=0.5)
    assert wished[1] == found[1] and wished[0] != found[0]
    asked = sources.load("chat", 2, source="packaged")
    added = wishes.added(asked, seed=3)
    assert added == wishes.added(asked, seed=3) != wishes.added(asked, seed=4)
    for prompt, more in zip(asked, added):
        assert more.startswith(prompt) and more.removeprefix(prompt).strip() in wishes.WISHES
    with pytest.raises(ValueError, match=r"wished=1\.5"):
        teacher_data.from_data(teacher.tokenizer, "chat", 2, source="packaged", wished=1.5)


@pytest.mark.parametrize(
    ("prompts", "new_tokens", "said"),
    [
        ([], 4, "0 prompts"),
        ([[1], []], 4, "one token or more"),
        ([[1, 2]], 0, "new_tokens=0"),
        ([[1] * 9], 10**6, "are"),
    ],
)
def test_what_no_teacher_can_answer_is_refused(prompts, new_tokens, said, teacher, tmp_path):
    with pytest.raises(ValueError, match=said):
        teacher_data.write(teacher, prompts, tmp_path / "never", new_tokens=new_tokens)
    assert not (tmp_path / "never").exists()
