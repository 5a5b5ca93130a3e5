"""MMLU and C-Eval: subjects with four choices each, and five examples of the same subject from a split of their own."""

from lib.sources.subjects import CEVAL
from lib.tasks.form import Form, of_split
from lib.tasks.multiple_choice import ask, chance, constant, fill, score
from lib.tasks.prompt import Prompt

_QUESTION = "{stripped}\nA. {A}\nB. {B}\nC. {C}\nD. {D}\n"


def _mmlu(row, examples, chat):
    subject = row["group"].replace("_", " ")
    description = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    return _subject(row, examples, chat, _QUESTION + "Answer:", description)


def _ceval(row, examples, chat):
    description = f"以下是中国关于{CEVAL[row['group']]}的单项选择题，请选出其中的正确答案。\n\n"
    return _subject(row, examples, chat, _QUESTION + "答案：", description)


def _subject(row, examples, chat, template, description):
    shots = tuple((fill(template, shot), "ABCD"[shot["answer"]]) for shot in examples)
    return ask(row, list("ABCD"), Prompt(fill(template, row), shots, description), chat)


_RULES = {"score": score, "chance": chance, "constant": constant, "shots": 5, "parts": True}

TASKS: dict[str, Form] = {
    "mmlu": Form("mmlu", _mmlu, metrics=("acc",), examples=of_split("mmlu", "dev"), **_RULES),
    "ceval": Form(
        "ceval", _ceval, metrics=("acc", "acc_norm"), splits=("val",), examples=of_split("ceval", "dev"), **_RULES
    ),
}
