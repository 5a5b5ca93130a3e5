"""The data sets that tasks read: where each lies locally and on the Hub, under which licence, whom to cite.

A revision is a commit of the data set on the Hub, so that its rows stay what they are; None where no commit is known
to us: the Hub's newest is then loaded and its commit recorded. Licences are the publishers' own as generally stated.
"""

from lib.sources import record_adapters
from lib.sources.benchmark_schema import Benchmark, RequiredFields
from lib.sources.subjects import BBH, CEVAL

_QUESTION = ("question",)


def _arc(part):
    citation = "Clark et al. 2018, Think you have Solved Question Answering? Try ARC, arXiv 1803.05457"
    files = {split: (f"arc/ARC-{part}-{name}.jsonl",) for split, name in (("test", "Test"), ("validation", "Dev"))}
    hub = "allenai/ai2_arc", (f"ARC-{part}",), "210d026faf9955653af8916fad021475a3f00453"
    return Benchmark("CC BY-SA 4.0", citation, files, record_adapters.labelled, *hub, needs=RequiredFields(_QUESTION))


def _trace(folder, licence, splits=("test", "eval", "train")):
    citation = "Wang et al. 2023, TRACE, arXiv 2310.06762"
    files = {split: (f"trace/{folder}/{split}.jsonl",) for split in splits}
    origin = f"zjwang21/TRACE @ cb1bfea893e6, TRACE-Benchmark/LLM-CL-Benchmark_500/{folder}"
    return Benchmark(licence, citation, files, needs=RequiredFields(("prompt", "answer")), origin=origin)


_TRUTHFUL = "Lin et al. 2022, TruthfulQA: Measuring How Models Mimic Human Falsehoods, arXiv 2109.07958"
_SUZGUN = (
    "Suzgun et al. 2022, Challenging BIG-Bench Tasks and Whether Chain-of-Thought Can Solve Them, arXiv 2210.09261"
)
_TRUTHFUL_COMMIT = "741b8276f2d1982aa3d5b832d3ee81ed3b896490"

BENCHMARKS = {
    "mmlu": Benchmark(
        "MIT",
        "Hendrycks et al. 2021, Measuring Massive Multitask Language Understanding, arXiv 2009.03300",
        {
            "test": tuple(f"mmlu/test_{part}.jsonl" for part in ("humanities", "other", "social_sciences", "stem")),
            "dev": ("mmlu/dev.jsonl",),
        },
        record_adapters.subject,
        "cais/mmlu",
        ("all",),
        "c30699e8356da336a370243923dbaf21066bb9fe",
        {"test": "test", "dev": "dev"},
        needs=RequiredFields(("question", "group"), choices=4),
    ),
    "arc_easy": _arc("Easy"),
    "arc_challenge": _arc("Challenge"),
    "hellaswag": Benchmark(
        "MIT",
        "Zellers et al. 2019, HellaSwag: Can a Machine Really Finish Your Sentence?, arXiv 1905.07830",
        {"validation": ("hellaswag/val_3000.jsonl",)},
        record_adapters.hellaswag,
        "Rowan/hellaswag",
        revision="218ec52e09a7e7462a5400043bb9a69a41d06b76",
        hub_line=record_adapters.hellaswag_hub,
        needs=RequiredFields(_QUESTION, choices=4),
    ),
    "piqa": Benchmark(
        "AFL-3.0",
        "Bisk et al. 2020, PIQA: Reasoning about Physical Commonsense in Natural Language, arXiv 1911.11641",
        {"validation": ("piqa/valid.jsonl",)},
        record_adapters.piqa,
        "baber/piqa",
        revision="142f6d7367fd9877f0fb3b5734ea6a545f54cdd1",
        needs=RequiredFields(_QUESTION, choices=2),
    ),
    "winogrande": Benchmark(
        "CC BY 4.0",
        "Sakaguchi et al. 2019, WinoGrande: An Adversarial Winograd Schema Challenge at Scale, arXiv 1907.10641",
        {"validation": ("winogrande/dev.jsonl",)},
        record_adapters.winogrande,
        "allenai/winogrande",
        ("winogrande_xl",),
        "01e74176c63542e6b0bcb004dcdea22d94fb67b5",
        needs=RequiredFields(choices=2),
    ),
    "boolq": Benchmark(
        "CC BY-SA 3.0",
        "Clark et al. 2019, BoolQ: Exploring the Surprising Difficulty of Natural Yes/No Questions, arXiv 1905.10044",
        {"validation": ("boolq/val.jsonl",)},
        record_adapters.boolq,
        "aps/super_glue",
        ("boolq",),
        "3de24cf8022e94f4ee4b9d55a6f539891524d646",
        needs=RequiredFields(("passage", "question"), choices=2),
    ),
    "openbookqa": Benchmark(
        "Apache-2.0",
        "Mihaylov et al. 2018, Can a Suit of Armor Conduct Electricity?, arXiv 1809.02789",
        {"test": ("openbookqa/test.jsonl",)},
        record_adapters.numbered,
        "allenai/openbookqa",
        ("main",),
        "388097ea7776314e93a529163e0fea805b8a6454",
        hub_line=record_adapters.openbook,
        needs=RequiredFields(_QUESTION, choices=4),
    ),
    "commonsenseqa": Benchmark(
        "MIT",
        "Talmor et al. 2019, CommonsenseQA, arXiv 1811.00937",
        {"validation": ("commonsenseqa/dev_rand_split.jsonl",)},
        record_adapters.labelled,
        "tau/commonsense_qa",
        revision="94630fe30dad47192a8546eb75f094926d47e155",
        needs=RequiredFields(_QUESTION, choices=5),
    ),
    "truthfulqa_mc": Benchmark(
        "Apache-2.0",
        _TRUTHFUL,
        {"validation": ("truthfulqa/mc_task.jsonl",)},
        record_adapters.truthful_choices,
        "truthfulqa/truthful_qa",
        ("multiple_choice",),
        _TRUTHFUL_COMMIT,
        needs=RequiredFields(_QUESTION),
    ),
    "truthfulqa_gen": Benchmark(
        "Apache-2.0",
        _TRUTHFUL,
        {"validation": ("truthfulqa/TruthfulQA.jsonl",)},
        record_adapters.truthful_answers,
        "truthfulqa/truthful_qa",
        ("generation",),
        _TRUTHFUL_COMMIT,
        needs=RequiredFields(_QUESTION, ("correct_answers", "incorrect_answers")),
    ),
    "ceval": Benchmark(
        "CC BY-NC-SA 4.0",
        "Huang et al. 2023, C-Eval: A Multi-Level Multi-Discipline Chinese Evaluation Suite, arXiv 2305.08322",
        {"val": ("ceval/val.jsonl",), "dev": ("ceval/dev.jsonl",)},
        record_adapters.ceval,
        "ceval/ceval-exam",
        tuple(CEVAL),
        needs=RequiredFields(_QUESTION, choices=4),
        origin="hiyouga/LLaMA-Factory @ 65ea7a0d7c37, evaluation/ceval/ceval.zip",
    ),
    "chid": Benchmark(
        "none stated; research use",
        "Zheng et al. 2019, ChID, arXiv 1906.01265; Xu et al. 2021, FewCLUE, arXiv 2107.07498",
        {"test": ("chid/test_public.jsonl",), "validation": ("chid/dev_few_all.jsonl",)},
        record_adapters.chid,
        needs=RequiredFields(choices=7),
        origin="CLUEbenchmark/FewCLUE @ 62a02c6f31cf, datasets/chid",
    ),
    "gsm8k": Benchmark(
        "MIT",
        "Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems, arXiv 2110.14168",
        {"test": ("gsm8k/test.jsonl",)},
        record_adapters.solved,
        hub="openai/gsm8k",
        configs=("main",),
        revision="740312add88f781978c0658806c59bc2815b9866",
        needs=RequiredFields(("question", "answer")),
    ),
    "bbh": Benchmark(
        "MIT",
        _SUZGUN,
        {"test": ("bbh/bbh-0.jsonl", "bbh/bbh-1.jsonl")},
        record_adapters.bbh,
        "SaylorTwift/bbh",
        BBH,
        needs=RequiredFields(("group", "input", "target")),
        origin="suzgunmirac/BIG-Bench-Hard @ 9ee07bd481fe, bbh",
    ),
    "bbh_prompts": Benchmark(
        "MIT",
        _SUZGUN,
        {"train": ("bbh/cot_prompts.jsonl",)},
        record_adapters.bbh_prompt,
        "Joschka/big_bench_hard",
        ("few_shot_prompts",),
        "76eaa8c29ad448752cd44201a1246618e2454cac",
        {"train": "few_shot_prompts"},
        needs=RequiredFields(("group", "prompt")),
    ),
    "humaneval": Benchmark(
        "MIT",
        "Chen et al. 2021, Evaluating Large Language Models Trained on Code, arXiv 2107.03374",
        {"test": ("humaneval/HumanEval.jsonl",)},
        record_adapters.program,
        "openai/openai_humaneval",
        revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
        needs=RequiredFields(("id", "prompt", "test", "entry_point")),
    ),
    "ifeval": Benchmark(
        "Apache-2.0",
        "Zhou et al. 2023, Instruction-Following Evaluation for Large Language Models, arXiv 2311.07911",
        {"test": ("ifeval/input_data.jsonl",)},
        record_adapters.instruction,
        "google/IFEval",
        revision="966cd89545d6b6acfd7638bc708b98261ca58e84",
        splits={"test": "train"},
        needs=RequiredFields(("prompt",), ("instructions",)),
    ),
    "toxicchat": Benchmark(
        "CC BY-NC 4.0",
        "Lin et al. 2023, ToxicChat, arXiv 2310.17389",
        {"test": ("toxicchat/test.jsonl",)},
        record_adapters.toxicchat,
        "lmsys/toxic-chat",
        ("toxicchat0124",),
        needs=RequiredFields(("id", "text")),
        origin="dmg-illc/JUDGE-BENCH @ 5a0bf5003250, data/toxic_chat (the rows that people judged)",
    ),
    "xstest": Benchmark(
        "CC BY 4.0",
        "Röttger et al. 2023, XSTest, arXiv 2308.01263",
        {"test": ("xstest/prompts.jsonl",)},
        record_adapters.xstest,
        "walledai/XSTest",
        needs=RequiredFields(("group", "prompt")),
        origin="paul-rottger/exaggerated-safety @ d7bb5bd738c1, xstest_prompts.csv",
    ),
    "multi_news": Benchmark(
        "MIT",
        "Bai et al. 2023, LongBench, arXiv 2308.14508",
        {"test": ("longbench/multi_news.jsonl",)},
        record_adapters.long_context,
        "Xnhyacinth/LongBench",
        ("multi_news",),
        needs=RequiredFields(("id", "context"), ("answers",)),
        origin="Zefan-Cai/KVCache-Factory @ c97f9d706d63, data/LongBench",
    ),
    "ruler_niah": Benchmark(
        "Apache-2.0",
        "Hsieh et al. 2024, RULER: What's the Real Context Size of Your Long-Context Models?, arXiv 2404.06654",
        {"test": ("longbench/ruler_niah_multikey_3_4096_100.jsonl",)},
        record_adapters.needle,
        needs=RequiredFields(("input",), ("outputs",)),
        origin="Zefan-Cai/KVCache-Factory @ c97f9d706d63, data/RULER/4096/niah_multikey_3.jsonl",
    ),
    "trace_20minuten": _trace("20Minuten", "research use"),
    "trace_cstance": _trace("C-STANCE", "research use"),
    "trace_fomc": _trace("FOMC", "CC BY-NC 4.0"),
    "trace_meetingbank": _trace("MeetingBank", "non-commercial", ("test", "eval")),
    "trace_numglue_cm": _trace("NumGLUE-cm", "ODC-By"),
    "trace_numglue_ds": _trace("NumGLUE-ds", "ODC-By"),
    "trace_py150": _trace("Py150", "research use"),
    "trace_scienceqa": _trace("ScienceQA", "CC BY-NC-SA 4.0"),
}
