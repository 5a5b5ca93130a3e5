"""The records, the table over them, the guard against unfair comparisons."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lib import records, results
from lib.metrics.score import Score


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    monkeypatch.delenv("THIMBLE_RUN_ID", raising=False)
    monkeypatch.setattr(records, "started_here", set())
    monkeypatch.setattr(results, "started_here", records.started_here)
    return tmp_path


def measured(value=1.0, **changes):
    return Score(**(dict(value=value, stderr=0.1, n=4, unit="perplexity", higher_is_better=False) | changes))


def finished_run(notebook="50_benchmark", value=1.0, seed=0, labels=None, score_=None, **parameters):
    with results.start(notebook, parameters=parameters, seed=seed) as run:
        run.record("perplexity", score_ or measured(value), **(labels or {}))
    return run


def test_record_becomes_a_row_with_everything_needed_to_trace_it(home):
    run = results.start("50_benchmark", parameters=dict(method="gptq", bits=3), seed=7)
    given = measured(26.15, stderr=0.31, n=64, baseline=20.0)
    assert run.record("perplexity", given, arm="compressed", block=np.int64(3)) is given
    run.finish()
    run.finish()
    (row,) = results.table().to_dict("records")
    assert list(results.table().columns) == [*results.COLUMNS, "method", "bits", "arm", "block"]
    wanted = dict(notebook="50_benchmark", metric="perplexity", value=26.15, stderr=0.31, n=64, unit="perplexity")
    wanted |= dict(higher_is_better=False, baseline=20.0, seed=7, status="finished", method="gptq", bits=3, block=3)
    assert {key: row[key] for key in wanted} == wanted
    assert json.loads(row["versions"])["python"] and row["threads"] >= 1 and "cores" in row["machine"]
    assert run.path.parent == home / "data" / "results" and row["run"] == run.id == run.path.stem


def test_the_file_is_the_document_after_every_row(home):
    run = results.start("50_benchmark", parameters=dict(rows=[], note='a "rows": []\n "rows": [] é'))
    for number in range(3):
        assert run.path.read_text(encoding="utf-8") == json.dumps(run.document, indent=1, ensure_ascii=False)
        run.record("perplexity", measured(), where=["two\nlines", number], rows=[])
        run.claim("a sentence", True, number=number)
    run.finish()
    assert run.path.read_text(encoding="utf-8") == json.dumps(run.document, indent=1, ensure_ascii=False)
    assert len(run.document["rows"]) == 3


def test_a_plain_number_is_refused_with_the_remedy():
    run = results.start("a")
    with pytest.raises(TypeError, match=r"perplexity=26\.15 is a float; .*score\.exact"):
        run.record("perplexity", 26.15)
    assert results.table(latest=False).empty


def test_names_of_columns_are_refused_as_labels_and_parameters():
    run = results.start("a")
    with pytest.raises(ValueError, match="label 'unit' is a column"):
        run.record("m", measured(), unit="s")
    with pytest.raises(ValueError, match="parameter 'run' is a column"):
        results.start("a", parameters=dict(run=1))
    with pytest.raises(ValueError, match="is a ndarray"):
        run.record("m", measured(), layer=np.zeros(3))


def test_a_seed_among_the_parameters_is_the_seed():
    finished_run("a", seed=0, x=1)
    with results.start("a", parameters=dict(seed=3, x=1)) as run:
        run.record("m", measured())
    assert sorted(results.table()["seed"]) == [0, 3]  # another seed replaces nothing


def test_bad_notebook_name_and_unwritable_folder_are_refused_before_the_work(home, monkeypatch):
    with pytest.raises(ValueError, match="without a path"):
        results.start("../escape")
    (home / "file").write_text("")
    monkeypatch.setenv("THIMBLE_HOME", str(home / "file"))
    with pytest.raises(PermissionError, match="cannot be written"):
        results.start("a")


def test_status_follows_the_run():
    with pytest.raises(ZeroDivisionError), results.start("a") as run:
        raise ZeroDivisionError
    assert json.loads(run.path.read_text())["status"] == "failed"
    with pytest.raises(ValueError, match="is failed"):
        run.record("m", measured())
    running = results.start("b")
    assert results.close(running.id, "finished") == running.path
    assert json.loads(running.path.read_text())["status"] == "finished"
    assert results.close("nowhere", "failed") is None


def test_a_run_sees_its_own_records_before_it_ends_and_others_do_not(monkeypatch):
    results.start("a").record("m", measured())
    assert len(results.table()) == 1
    records.started_here.clear()
    assert len(results.table()) == 0 and len(results.table(latest=False)) == 1


def test_the_sweeps_id_is_used_once_and_overwrites(monkeypatch):
    for value in (1.0, 2.0):
        monkeypatch.setenv("THIMBLE_RUN_ID", "a-x=1")
        assert finished_run("a", value, x=1).path.name == "a-x=1.json"
    assert "THIMBLE_RUN_ID" not in os.environ
    assert finished_run("a", 3.0, x=2).id != "a-x=1"
    assert sorted(results.table(latest=False)["value"]) == [2.0, 3.0]


def test_table_keeps_the_newest_finished_run_of_each_configuration(monkeypatch):
    finished_run(value=1.0, bits=3)
    finished_run(value=2.0, bits=3)
    finished_run(value=9.0, bits=4)
    with pytest.raises(OSError), results.start("50_benchmark", parameters=dict(bits=3)):
        raise OSError
    assert results.table()["value"].tolist() == [2.0, 9.0]
    assert results.table(latest=False)["value"].tolist() == [1.0, 2.0, 9.0]


def test_empty_table_has_the_columns():
    assert results.table().empty and list(results.table().columns) == results.COLUMNS


def test_columns_that_a_notebook_lacks_hold_none_and_integers_stay_integers():
    finished_run("a", bits=3, sizes=[1, 2])
    finished_run("b", name="x")
    table = results.table().set_index("notebook")
    assert table.loc["b", "bits"] is None and table.loc["a", "name"] is None
    assert type(table.loc["a", "bits"]) is int and table.loc["a", "sizes"] == "[1, 2]"
    assert table["value"].dtype == float and table["n"].dtype == np.int64


@pytest.mark.parametrize(
    "content",
    ["", '{"run": "a", "rows": [', "[]", "{}", '"text"', "\udcff", '{"metrics": {"loss": 1}}', "null"],
    ids=["empty", "half", "list", "object", "text", "not-utf8", "foreign", "null"],
)
def test_foreign_and_half_files_are_skipped_with_a_warning(home, content):
    good = finished_run("a")
    (home / "data" / "results" / "bad.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.warns(UserWarning, match=r"bad\.json is not a complete record"):
        assert results.table()["run"].tolist() == [good.id]


@pytest.mark.parametrize("damage", [dict(rows=[{}]), dict(rows=3), dict(seed="x"), dict(parameters=None)])
def test_a_damaged_record_is_skipped_with_a_warning(home, damage):
    run = finished_run("a")
    run.path.write_text(json.dumps(run.document | damage))
    with pytest.warns(UserWarning, match="not a complete record"):
        assert results.table().empty


def test_parallel_writers_lose_nothing():
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda x: finished_run("a", float(x), x=x), range(40)))
    assert sorted(results.table()["value"]) == list(range(40))


def test_data_hash_covers_texts_and_not_models(monkeypatch):
    used = [dict(kind="model", name="m", split=None, origin="packaged", sha256="1")]
    monkeypatch.setattr(results.sources, "used", lambda: used)
    run = results.start("a")
    run.record("m", measured())
    used.append(dict(kind="text", name="t", split="test", origin="packaged", sha256="2"))
    run.record("m", measured())
    used.append(dict(kind="model", name="n", split=None, origin="packaged", sha256="3"))
    run.record("m", measured())
    first, second, third = results.table()["data_hash"]
    assert first is None and second == third and len(second) == 12
    assert json.loads(run.path.read_text())["inputs"] == used


def test_rows_that_differ_in_one_factor_pass():
    for bits in (2, 3):
        for block in (0, 1):
            finished_run(labels=dict(block=block), bits=bits, method="rtn", block=block)
    rows = results.comparable(results.table(), "bits", metric="perplexity")
    assert len(rows) == 4 and set(rows["bits"]) == {2, 3}


def test_rows_that_differ_in_two_factors_are_refused_by_name():
    finished_run(bits=3, method="rtn", windows=4)
    finished_run(bits=4, method="gptq", windows=4)
    with pytest.raises(ValueError, match=r"differ also in method \(bits=3: method=rtn; bits=4: method=gptq\)"):
        results.comparable(results.table(), "bits", metric="perplexity")


def test_rows_with_different_combinations_of_equal_values_are_refused():
    for bits, method, windows in [(3, "rtn", 4), (3, "gptq", 8), (4, "rtn", 8), (4, "gptq", 4)]:
        finished_run(bits=bits, method=method, windows=windows)
    with pytest.raises(ValueError, match="differ also in"):
        results.comparable(results.table(), "bits", metric="perplexity")


def test_rows_with_different_seeds_are_refused():
    finished_run(bits=3, seed=0)
    finished_run(bits=4, seed=1)
    with pytest.raises(ValueError, match="differ also in seed"):
        results.comparable(results.table(), "bits", metric="perplexity")


def test_only_speeds_must_come_from_one_machine():
    for bits in (3, 4):
        finished_run(bits=bits)
        with results.start("s", parameters=dict(bits=bits)) as run:
            run.record("decode", measured(unit="tokens/s"))
    table = results.table()
    table["machine"] = [f"machine {bits}" for bits in table["bits"]]
    assert len(results.comparable(table, "bits", metric="perplexity")) == 2
    with pytest.raises(ValueError, match="differ also in machine"):
        results.comparable(table, "bits", metric="decode")


def test_rows_of_different_data_or_without_baseline_are_refused():
    finished_run(bits=3, score_=measured(baseline=1.0))
    finished_run(bits=4)
    table = results.table()
    with pytest.raises(ValueError, match="no baseline for bits=4"):
        results.comparable(table, "bits", metric="perplexity", require_baseline=True)
    table["data_hash"] = ["one", "two"]
    with pytest.raises(ValueError, match=r"different data \(one: bits=3; two: bits=4\)"):
        results.comparable(table, "bits", metric="perplexity")


def test_unknown_factor_and_metric_name_the_nearest():
    finished_run(bits=3)
    with pytest.raises(ValueError, match="did you mean 'bits'"):
        results.comparable(results.table(), "bit", metric="perplexity")
    with pytest.raises(ValueError, match="did you mean 'perplexity'"):
        results.comparable(results.table(), "bits", metric="perplexities")


def test_half_a_character_in_a_record_becomes_the_sign_for_it(home):
    run = finished_run(labels={"answer": "cut \ud83d and whole \ud83d\ude00"}, prompt="\udc00")
    kept = json.loads(run.path.read_text(encoding="utf-8"))
    assert kept["parameters"]["prompt"] == "\ufffd"
    assert kept["rows"][0]["labels"]["answer"] == "cut \ufffd and whole \U0001f600"
