"""lm-evaluation-harness's own tasks on local data: the reference that ours are compared with.

The installed task files are read as they are; only where their rows come from is replaced. Rows are turned from our
files' layout into the Hub's here, independently of `lib.sources.record_adapters`.
"""

import functools
import json
import os
from pathlib import Path

SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
DATA = Path(os.environ.get("THIMBLE_DATA", "/nonexistent"))


def task(name: str, file: str, splits: dict[str, list[dict]], **overrides):
    """The harness's task from an installed `tasks/FILE`, on the rows of `splits` (its own names: "test", ...).

    Splits that are not given are taken out of the task, so that the harness looks for nothing else.
    """
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(Path(lm_eval.tasks.__file__).parent / file, resolve_func=overrides.pop("resolve", True))
    config = {key: value for key, value in config.items() if key not in ("dataset_path", "dataset_name")}
    absent = {key: None for key in SPLITS if config.get(key) not in splits and key not in overrides}
    given = functools.partial(_datasets, splits)
    made = ConfigurableTask(config={**config, "task": name, "custom_dataset": given, **absent, **overrides})
    made.set_fewshot_seed(1234)
    return made


def requests(task, indices, *, chat=None) -> list[list]:
    """For each of the documents `indices` the arguments of its requests: (context, continuation) or (prompt, how)."""
    template = functools.partial(_template, chat) if chat is not None else None
    task.build_all_requests(
        samples=list(indices),
        rank=0,
        world_size=1,
        apply_chat_template=chat is not None,
        fewshot_as_multiturn=chat is not None,
        chat_template=template,
    )
    found = {}
    for instance in task.instances:
        found.setdefault(instance.doc_id, []).append(instance.args)
    return list(found.values())


def scores(task, index: int, answers: list) -> dict[str, dict[str, float]]:
    """Filter name -> metric -> value of document `index` for answers: (log-likelihood, greedy) pairs, or one text."""
    document = task.eval_docs[index]
    if task.OUTPUT_TYPE == "multiple_choice":
        return {"none": task.process_results(document, answers)}
    found = {}
    for ensemble in task._filters:
        texts = [list(answers)]
        for make in ensemble.filters:
            texts = make().apply(texts, [document])
        found[ensemble.name] = task.process_results(document, list(texts))
    return found


@functools.lru_cache(maxsize=8)
def lines(path: str) -> list[dict]:
    """The objects of a JSONL file of the data folder."""
    return [json.loads(line) for line in (DATA / path).read_text(encoding="utf-8").split("\n") if line.strip()]


@functools.lru_cache(maxsize=8)
def by_group(field: str, *paths: str) -> dict[str, list[dict]]:
    """The rows of files by one of their fields."""
    found: dict[str, list[dict]] = {}
    for path in paths:
        for row in lines(path):
            found.setdefault(row[field], []).append(row)
    return found


def mmlu(subject: str) -> dict[str, list[dict]]:
    """MMLU: the Hub's layout is that of the files."""
    tests = [f"mmlu/test_{part}.jsonl" for part in ("humanities", "other", "social_sciences", "stem")]
    return {"test": by_group("subject", *tests)[subject], "dev": by_group("subject", "mmlu/dev.jsonl")[subject]}


def ceval(subject: str) -> dict[str, list[dict]]:
    """C-Eval: four columns and a letter."""
    return {
        split: [
            {"question": row["question"], **dict(zip("ABCD", row["choices"])), "answer": "ABCD"[row["answer"]]}
            for row in by_group("subject", f"ceval/{split}.jsonl")[subject]
        ]
        for split in ("val", "dev")
    }


def arc(path: str) -> list[dict]:
    """ARC and CommonsenseQA: choices as two lists."""
    return [
        {
            "question": row["question"]["stem"],
            "choices": {key: [choice[key] for choice in row["question"]["choices"]] for key in ("text", "label")},
            "answerKey": row["answerKey"],
        }
        for row in lines(path)
    ]


def openbookqa() -> list[dict]:
    """OpenBookQA: letters as labels."""
    return [
        {
            "question_stem": row["question"],
            "choices": {"text": row["choices"], "label": list("ABCD")},
            "answerKey": "ABCD"[row["answer"]],
        }
        for row in lines("openbookqa/test.jsonl")
    ]


def hellaswag() -> list[dict]:
    """HellaSwag's cleaned text in the three fields of the harness; cleaning it again changes nothing there."""
    return [
        {"query": row["ctx"], "choices": row["endings"], "label": row["label"]}
        for row in lines("hellaswag/val_3000.jsonl")
    ]


def boolq() -> list[dict]:
    """BoolQ: labels as numbers."""
    return [{**row, "label": int(row["label"] == "true")} for row in lines("boolq/val.jsonl")]


def truthful_choices() -> list[dict]:
    """TruthfulQA mc: answers and labels as lists."""
    return [
        {
            "question": row["question"],
            **{
                name: {"choices": list(row[name]), "labels": list(row[name].values())}
                for name in ("mc1_targets", "mc2_targets")
            },
        }
        for row in lines("truthfulqa/mc_task.jsonl")
    ]


def truthful_answers() -> list[dict]:
    """TruthfulQA gen: reference answers as lists."""
    return [
        {
            "question": row["Question"],
            "correct_answers": row["Correct Answers"].split(";"),
            "incorrect_answers": row["Incorrect Answers"].split(";"),
        }
        for row in lines("truthfulqa/TruthfulQA.jsonl")
    ]


def like(name: str, *, group: str | None = None, shots: int | None = None):
    """The harness's task that our task `name` (and of its parts `group`) should equal."""
    shown = {} if shots is None else {"num_fewshot": shots}
    if name == "mmlu":
        return task(name, f"mmlu/default/mmlu_{group}.yaml", mmlu(group), **shown)
    if name == "ceval":
        return task(name, f"ceval/ceval-valid_{group}.yaml", ceval(group), **shown)
    if name == "bbh":
        return task(name, f"bbh/cot_fewshot/{group}.yaml", {"test": bbh(group)}, **shown)
    file, split, rows, overrides = TASKS[name]
    return task(name, file, {split: rows()}, **overrides, **shown)


def positions(name: str, samples: list) -> list[int]:
    """The documents of the harness that samples of ours are: their places in their data, or in their groups."""
    from lib import tasks
    from lib.sources import tasks as source

    form = tasks.TASKS[name]
    rows = source.load(form.data, form.splits).rows
    whole = {row["id"]: index for index, row in enumerate(rows)}
    inside = {row["id"]: row["position"] for row in rows}
    return [(inside if form.parts else whole)[sample.id] for sample in samples]


def bbh(kind: str) -> list[dict]:
    """The problems of one kind."""
    return by_group("task", "bbh/bbh-0.jsonl", "bbh/bbh-1.jsonl")[kind]


def ifeval() -> list[dict]:
    """IFEval: the prompts alone; their arguments have no common type."""
    return [{"key": row["key"], "prompt": row["prompt"]} for row in lines("ifeval/input_data.jsonl")]


_UNRESOLVED = {"resolve": False, "metric_list": None}  # task files whose own functions would fetch or need more
TASKS = {
    "arc_easy": ("arc/arc_easy.yaml", "test", lambda: arc("arc/ARC-Easy-Test.jsonl"), {}),
    "arc_challenge": ("arc/arc_challenge.yaml", "test", lambda: arc("arc/ARC-Challenge-Dev.jsonl"), {}),
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation", hellaswag, {"process_docs": None}),
    "piqa": ("piqa/piqa.yaml", "validation", lambda: lines("piqa/valid.jsonl"), {}),
    "winogrande": ("winogrande/default.yaml", "validation", lambda: lines("winogrande/dev.jsonl"), {}),
    "boolq": ("super_glue/boolq/default.yaml", "validation", boolq, {}),
    "openbookqa": ("openbookqa/openbookqa.yaml", "test", openbookqa, {}),
    "commonsenseqa": (
        "commonsense_qa/default.yaml",
        "validation",
        lambda: arc("commonsenseqa/dev_rand_split.jsonl"),
        {},
    ),
    "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", "validation", truthful_choices, {}),
    "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", "validation", truthful_choices, {}),
    "truthfulqa_gen": ("truthfulqa/truthfulqa_gen.yaml", "validation", truthful_answers, {}),
    "gsm8k": ("gsm8k/gsm8k-cot.yaml", "test", lambda: lines("gsm8k/test.jsonl"), {}),
    "humaneval": (
        "humaneval/humaneval.yaml",
        "test",
        lambda: lines("humaneval/HumanEval.jsonl"),
        {**_UNRESOLVED, "filter_list": None},
    ),
    "humaneval_instruct": (
        "humaneval/humaneval_instruct.yaml",
        "test",
        lambda: lines("humaneval/HumanEval.jsonl"),
        {**_UNRESOLVED, "filter_list": None},
    ),
    "ifeval": ("ifeval/ifeval.yaml", "test", ifeval, {**_UNRESOLVED, "process_results": None, "test_split": "test"}),
    "multi_news": (
        "longbench/multi_news.yaml",
        "test",
        lambda: lines("longbench/multi_news.jsonl"),
        {**_UNRESOLVED, "process_results": None},
    ),
}


def _datasets(splits, **options):
    from datasets import Dataset

    return {split: Dataset.from_list(rows) for split, rows in splits.items()}


def _template(tokenizer, turns, add_generation_prompt=True):
    options = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
    return tokenizer.apply_chat_template(turns, tokenize=False, **options)
