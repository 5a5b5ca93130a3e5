"""TEST DATA, invented: tables in the form of `lib.results.table()` for the tests of the report. Not measurements."""

import json

import pandas as pd

# method, bits, blocks removed -> perplexity, megabytes, decode and prefill as multiples of the original
INVENTED = {
    ("none", 16, 0): (26.2, 269, 1.0, 1.0),
    ("rtn", 8, 0): (26.3, 170, 0.92, 0.95),
    ("rtn", 4, 0): (33.3, 116, 0.71, 0.82),
    ("rtn", 3, 0): (77.0, 103, 0.70, 0.81),
    ("rtn", 2, 0): (506_788.0, 90, 0.69, 0.83),
    ("gptq", 8, 0): (26.25, 170, 0.93, 0.96),
    ("gptq", 4, 0): (28.5, 116, 0.72, 0.80),
    ("gptq", 3, 0): (42.0, 103, 0.71, 0.82),
    ("gptq", 2, 0): (1500.0, 90, 0.68, 0.84),
    ("depth", 16, 2): (38.0, 255, 1.06, 1.07),
    ("depth", 16, 4): (80.0, 241, 1.15, 1.14),
    ("depth", 16, 8): (600.0, 213, 1.33, 1.35),
}
HIGHER = {"top1_agreement", "prefill", "decode"}


def base(run: str, notebook: str, **columns) -> dict:
    """The columns that every row of a run shares."""
    return {
        "run": run, "notebook": notebook, "seed": 0, "commit": "0123abc", "dirty": False, "machine": "test machine",
        "threads": 2, "versions": json.dumps({"torch": "0.0"}), "data_hash": "cafe", "status": "finished",
        "time": "2030-01-01T00:00:00+00:00", **columns,
    }  # fmt: skip


def configuration(method: str, bits: int, blocks: int, **columns) -> list[dict]:
    """The rows of one run of 50_benchmark, invented."""
    perplexity, megabytes, decode, prefill = INVENTED[method, bits, blocks]
    damage = min(1.0, (perplexity / 26.2 - 1) / 4)
    values = {
        "perplexity": (perplexity, 0.014 * perplexity, 49152.0), "kl_divergence": (0.9 * damage, 0.01 * damage, None),
        "top1_agreement": (1 - 0.9 * damage, 0.004, 0.05), "artifact_bytes": (megabytes * 1e6, None, None),
        "bits_per_weight": (megabytes * 8 / 134.5, None, None), "peak_memory": (megabytes * 1e6 + 4e8, 3e6, None),
        "prefill": (944 * prefill, 11.0, None), "decode": (23.3 * decode, 0.2, None),
    }  # fmt: skip
    shared = base(
        f"run-{method}-{bits}-{blocks}", "50_benchmark", model="some/tiny-model", text="packaged", method=method,
        bits=bits, group_size=64, blocks=blocks, windows=24, calibration_windows=16,
    ) | columns  # fmt: skip
    rows = []
    for metric, (value, stderr, baseline) in values.items():
        number = {"value": value, "stderr": stderr, "n": 24, "baseline": baseline, "higher_is_better": metric in HIGHER}
        rows.append({**shared, **number, "metric": metric, "unit": "unit", "arm": "compressed"})
    for metric, speed, error in [("prefill", 944.0, 12.0), ("decode", 23.3, 0.3)]:
        number = {"value": speed, "stderr": error, "n": 5, "baseline": None, "higher_is_better": True}
        rows.append({**shared, **number, "metric": metric, "unit": "tokens/s", "arm": "original"})
    return rows


def benchmark(without=(), **columns) -> pd.DataFrame:
    """An invented benchmark of every configuration, except the (method, bits, blocks) in `without`."""
    return pd.DataFrame([row for key in INVENTED if key not in without for row in configuration(*key, **columns)])


def importance(blocks: int = 30) -> pd.DataFrame:
    """Invented block importances by two scores: the ends matter, the middle less."""
    rows = []
    for block in range(blocks):
        ends = 1 / (1 + block) + 0.3 / (blocks - block) + 0.01 * (block % 5)
        for score, value, stderr in [("leave_one_out", 3000 * ends**5, 50 * ends**3), ("block_influence", ends, None)]:
            shared = base("run-30", "30_depth_pruning", metric="block_importance", unit=None, score=score, block=block)
            rows.append({**shared, "value": value, "stderr": stderr, "n": 8, "higher_is_better": True})
    return pd.DataFrame(rows)


def errors(blocks: int = 30) -> pd.DataFrame:
    """Invented relative output errors of every linear of a Llama block under two methods."""
    kinds = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    kinds += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    rows = []
    for block in range(blocks):
        for place, layer in enumerate(kinds):
            for method, factor in [("rtn", 1.0), ("gptq", 0.45)]:
                value = factor * 0.01 * (1 + place) * (1 + 0.05 * ((7 * block + place) % 11))
                shared = base("run-22", "22_gptq", metric="layer_error", layer=layer, block=block, method=method)
                rows.append({**shared, "value": value, "stderr": value / 20, "n": 8, "higher_is_better": False})
    return pd.DataFrame(rows)


def store(table: pd.DataFrame) -> None:
    """Write the invented rows as records of finished runs, through the results store itself."""
    from lib import results
    from lib.metrics.score import Score

    parameters = ["model", "text", "method", "bits", "group_size", "blocks", "windows", "calibration_windows"]
    labels = ["arm", "score", "block", "layer"]
    for _, rows in table.groupby("run", sort=False):
        first = rows.iloc[0]
        bench = first["notebook"] == "50_benchmark"
        given = {name: first[name] for name in parameters} if bench else {}
        with results.start(first["notebook"], parameters=given) as run:
            for row in rows.to_dict("records"):
                known = {name: row[name] for name in [*labels, "method"] if pd.notna(row.get(name))}
                known = {name: value for name, value in known.items() if name not in given}
                numbers = [None if pd.isna(row.get(name)) else row[name] for name in ("value", "stderr", "n")]
                baseline = None if pd.isna(row.get("baseline")) else row["baseline"]
                run.record(row["metric"], Score(*numbers, "unit", bool(row["higher_is_better"]), baseline), **known)
