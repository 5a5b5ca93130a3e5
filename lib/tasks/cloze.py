"""Cloze tasks: WinoGrande and CHID.

Each choice fills the gap, and the text after it is scored (partial evaluation, Trinh and Le 2018, arXiv
1806.02847): the choice that makes what follows most probable is the answer.

WinoGrande's form is lm-evaluation-harness's: the choice belongs to the context. CHID's idioms differ in meaning, so the
idiom is scored with the text after it: that orders the choices as the log-likelihood of the whole text does.
"""

from lib.tasks.form import Form
from lib.tasks.multiple_choice import chance, constant, score
from lib.tasks.prompt import Prompt
from lib.tasks.task import Likelihood, Sample


def _winogrande(row, examples, chat):
    delimiter = "" if chat is not None else " "
    after = delimiter + row["after"].strip()
    contexts = [Prompt(row["before"] + choice).render(chat) for choice in row["choices"]]
    target = {"answer": row["answer"], "characters": [len(after)] * len(contexts)}
    return Sample(row["id"], row["group"], tuple(Likelihood(context, after) for context in contexts), target)


def _chid(row, examples, chat):
    continuations = [choice + row["after"] for choice in row["choices"]]
    context = row["before"] if chat is None else Prompt(row["before"]).render(chat)
    target = {"answer": row["answer"], "characters": [len(text) for text in continuations]}
    return Sample(row["id"], row["group"], tuple(Likelihood(context, text) for text in continuations), target)


_RULES = {"score": score, "metrics": ("acc",), "chance": chance, "constant": constant}

TASKS: dict[str, Form] = {
    "winogrande": Form("winogrande", _winogrande, splits=("validation",), **_RULES),
    "chid": Form("chid", _chid, splits=("test", "validation"), **_RULES),
}
