"""How lines of published files and rows of the Hub become the rows that tasks read: one small function a layout.

A multiple-choice row has question, choices and answer (an index); others keep their publisher's field names.
`group` is what rows share (subject, passage, kind), `id` names a row where the publisher does.
"""

import hashlib
import re

from lib.sources.subjects import CEVAL, INSTRUCTIONS


def same(line: dict) -> dict:
    """A line whose field names are used as they are."""
    return dict(line)


def subject(line: dict) -> dict:
    """MMLU: question, choices[4], answer (0-3), subject."""
    return {**line, "group": line["subject"], "answer": int(line["answer"])}


def labelled(line: dict) -> dict:
    """ARC and CommonsenseQA, as published (`question.stem`, a list of choices) or on the Hub (columns of choices)."""
    nested = isinstance(line["question"], dict)
    choices = line["question"]["choices"] if nested else line["choices"]
    if isinstance(choices, dict):
        choices = [{"label": label, "text": text} for label, text in zip(choices["label"], choices["text"])]
    return {
        "id": _name(line["id"]),
        "question": line["question"]["stem"] if nested else line["question"],
        "choices": [choice["text"] for choice in choices],
        "answer": [choice["label"] for choice in choices].index(line["answerKey"].strip()),
    }


def openbook(line: dict) -> dict:
    """OpenBookQA on the Hub: `question_stem` in place of `question`."""
    return labelled({**line, "question": line["question_stem"]})


def numbered(line: dict) -> dict:
    """A row with question, choices and answer (an index) already."""
    return {**line, "answer": int(line["answer"])}


def hellaswag(line: dict) -> dict:
    """HellaSwag from cleaned text: `ctx` (activity and context), endings[4], label, idx."""
    return {
        "id": _name(line["idx"]),
        "question": line["ctx"],
        "choices": line["endings"],
        "answer": int(line["label"]),
    }


def hellaswag_hub(line: dict) -> dict:
    """HellaSwag on the Hub: activity, context in two parts, and the marks of its WikiHow part still inside."""
    context = f"{line['activity_label']}: {line['ctx_a']} {line['ctx_b'].capitalize()}"
    return {
        "question": _without_marks(context),
        "choices": [_without_marks(ending) for ending in line["endings"]],
        "answer": int(line["label"]),
    }


def piqa(line: dict) -> dict:
    """PIQA: goal, two solutions, label."""
    return {"question": line["goal"], "choices": [line["sol1"], line["sol2"]], "answer": int(line["label"])}


def winogrande(line: dict) -> dict:
    """WinoGrande: a sentence with a gap `_`, two options, answer "1" or "2"."""
    before, after = line["sentence"].split("_", 1)
    choices = [line["option1"], line["option2"]]
    return {"before": before, "after": after, "choices": choices, "answer": int(line["answer"]) - 1}


def chid(line: dict) -> dict:
    """CHID: content with one gap `#idiom#`, seven candidates, answer (0-6)."""
    before, after = line["content"].split("#idiom#")
    return {
        "id": _name(line["id"]),
        "before": before,
        "after": after,
        "choices": line["candidates"],
        "answer": int(line["answer"]),
    }


def boolq(line: dict) -> dict:
    """BoolQ: passage, question, label true or false (in SuperGLUE's files a word, on the Hub 0 or 1)."""
    answer = {"false": 0, "true": 1, "0": 0, "1": 1}[str(line["label"]).lower()]
    passage = line["passage"]
    return {
        "id": _name(line["idx"]),
        "group": hashlib.sha256(passage.encode()).hexdigest()[:16],
        "passage": passage,
        "question": line["question"],
        "choices": ["no", "yes"],
        "answer": answer,
    }


def ceval(line: dict) -> dict:
    """C-Eval: choices as a list with an index (files), or in columns A to D with a letter (the Hub)."""
    group = line["subject"] if "choices" in line or "config" not in line else line["config"]
    if group not in CEVAL:
        raise ValueError(f"subject {group!r} is none of C-Eval's {len(CEVAL)}")
    if "choices" in line:
        return {**line, "group": group, "answer": int(line["answer"])}
    return {
        "group": group,
        "question": line["question"],
        "choices": [line[letter] for letter in "ABCD"],
        "answer": "ABCD".index(line["answer"]),
    }


def truthful_choices(line: dict) -> dict:
    """TruthfulQA mc: answers with 1 (true) or 0, as a dict (files) or as two lists (the Hub)."""
    found = {"question": line["question"]}
    for name in ("mc1_targets", "mc2_targets"):
        targets = line[name]
        if "labels" in targets:
            targets = dict(zip(targets["choices"], targets["labels"]))
        found[name] = {str(answer): int(true) for answer, true in targets.items()}
    if list(found["mc1_targets"].values()).count(1) != 1:
        raise ValueError("mc1_targets has not exactly one true answer")
    if set(found["mc2_targets"].values()) != {0, 1}:
        raise ValueError("mc2_targets has not true and false answers (1 and 0)")
    return found


def truthful_answers(line: dict) -> dict:
    """TruthfulQA generation: reference answers as lists (the Hub), or in one string with semicolons (files)."""
    if "Question" not in line:
        return {name: line[name] for name in ("question", "correct_answers", "incorrect_answers")}
    found = {"question": line["Question"]}
    for name in ("Correct Answers", "Incorrect Answers"):
        parts = [part.strip() for part in line[name].split(";")]
        found[name.lower().replace(" ", "_")] = [part for part in parts if part]
    return found


def solved(line: dict) -> dict:
    """GSM8K: question, and a solution whose last line is `#### N`."""
    if "####" not in line["answer"]:
        raise ValueError("answer has no #### before its number")
    return dict(line)


def bbh(line: dict) -> dict:
    """BIG-Bench Hard: input and target; the kind of problem is `task` in files, the configuration on the Hub."""
    return {
        "group": line["task"] if "task" in line else line["config"],
        "input": line["input"],
        "target": line["target"],
    }


def bbh_prompt(line: dict) -> dict:
    """The chain-of-thought prompt of one kind of problem; the canary lines up to `-----` are no part of it."""
    text = line["prompt"] if "prompt" in line else line["chain_of_thought_prompt"]
    name = line["task"] if "task" in line else line["dataset_name"]
    text = text.split("-----\n", 1)[-1].strip()
    _, *examples = text.split("\n\nQ: ")
    if not examples or not all("\nA: Let's think step by step." in example for example in examples):
        raise ValueError('the prompt has no examples "Q: ... A: Let\'s think step by step. ..."')
    return {"id": name, "group": name, "prompt": text}


def instruction(line: dict) -> dict:
    """IFEval: key, prompt, the instructions and their arguments (None on the Hub where an argument is not given)."""
    arguments = [{key: value for key, value in each.items() if value is not None} for each in line["kwargs"]]
    if len(arguments) != len(line["instruction_id_list"]):
        raise ValueError("kwargs and instruction_id_list have different lengths")
    instructions = list(line["instruction_id_list"])
    unknown = [name for name in instructions if name not in INSTRUCTIONS]
    if unknown:
        raise ValueError(f"instruction {unknown[0]!r} is none of the {len(INSTRUCTIONS)} that can be checked")
    return {"id": _name(line["key"]), "prompt": line["prompt"], "instructions": instructions, "arguments": arguments}


def program(line: dict) -> dict:
    """HumanEval: task_id, prompt, entry_point, test (and a solution, for checking the checker)."""
    return {**line, "id": line["task_id"]}


def toxicchat(line: dict) -> dict:
    """ToxicChat: what a user wrote, and whether people found it toxic."""
    toxic = int(line["toxicity"])
    if toxic not in (0, 1):
        raise ValueError(f"toxicity {toxic} is neither 0 nor 1")
    return {"id": line["conv_id"], "text": line["user_input"], "toxic": toxic}


def xstest(line: dict) -> dict:
    """XSTest: prompt, kind, and whether it is safe."""
    label = str(line["label"])
    if label not in ("safe", "unsafe"):
        raise ValueError(f"label {label!r} is neither safe nor unsafe")
    return {"prompt": line["prompt"], "group": line["type"], "safe": label == "safe"}


def long_context(line: dict) -> dict:
    """LongBench: context and reference answers."""
    return {"id": line["_id"], "context": line["context"], "input": line.get("input", ""), "answers": line["answers"]}


def needle(line: dict) -> dict:
    """RULER: a haystack with its question, and the values to be found."""
    return {"id": _name(line["index"]), "input": line["input"], "outputs": line["outputs"]}


def _name(value) -> str:
    """What names a row: a text or a whole number."""
    if not isinstance(value, str | int) or value == "":
        raise ValueError(f"{value!r} names no row; a text or a whole number does")
    return str(value)


def _without_marks(text):
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
