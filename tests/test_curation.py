"""Documents in files, stages over shards, and what they report: against what the same documents give in memory."""

import gzip
import io
import itertools
import json
import os
import random
import shutil

import pytest

from lib.curation import blank, exact, lines, pipeline, shard_file, sources
from lib.curation.document import Document, identity, text_id
from lib.curation.tally import Tally

FOOTER = "All rights reserved, please read our notice of privacy."


def corpus(count=60, seed=0):
    """Documents with exact copies under other ids, a common footer, and blank ones."""
    draw, found = random.Random(seed), []
    for number in range(count):
        words = [draw.choice(("river", "stone", "window", "garden", "letter", "winter")) for _ in range(12)]
        found.append({"text": f"{' '.join(words)}\n{FOOTER}\n{number}", "site": number % 7, "id": f"page-{number}"})
    copies = [{**row, "id": f"copy of {row['id']}"} for row in found[::5]]
    return [*found, *copies, {"text": " \n ", "id": "nothing"}, {"text": "No id, but a text.", "site": None}]


def write(folder, rows, shards):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        part = rows[number::shards]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


def test_documents_keep_text_id_and_metadata_in_every_format(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"content": "Ein Satz.", "id": 7, "meta": {"a": [1, None]}}, {"content": "", "id": 8, "meta": {"a": []}}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "b.parquet")
    expected = [Document(row["content"], str(row["id"]), {"meta": row["meta"]}) for row in rows]
    for name in ("a.jsonl", "b.parquet"):
        assert list(sources.Shards(tmp_path / name)) == expected
    assert list(sources.Shards(tmp_path)) == expected * 2
    (tmp_path / "again.jsonl").write_text("".join(document.line() + "\n" for document in expected))
    assert list(sources.Shards(tmp_path / "again.jsonl")) == expected
    (tmp_path / "own.jsonl").write_text('{"body": "x y", "id": null}\n')
    assert list(sources.Shards(tmp_path / "own.jsonl", text="body")) == [Document("x y", text_id("x y"))]


def archive(gzipped):
    from warcio import statusandheaders, warcwriter

    content = io.BytesIO()
    writer = warcwriter.WARCWriter(content, gzip=gzipped)
    writer.write_record(writer.create_warcinfo_record("a.warc", {"software": "a test"}))
    page = "<html><head><title>T</title></head><body><script>x()</script><p>Grüße</p><p>two  words</p></body></html>"
    for kind, said, header in (("response", page, "text/html; charset=utf-8"), ("response", "{}", "application/json")):
        given = statusandheaders.StatusAndHeaders("200 OK", [("Content-Type", header)], protocol="HTTP/1.1")
        payload = io.BytesIO(said.encode())
        writer.write_record(writer.create_warc_record("http://a.example/1", kind, payload=payload, http_headers=given))
    text = io.BytesIO(b"Ein Text\nin zwei Zeilen")
    writer.write_record(writer.create_warc_record("http://a.example/2", "conversion", payload=text))
    return content.getvalue()


@pytest.mark.parametrize("name", ["a.warc.gz", "a.wet"])
def test_web_archives_give_pages_and_texts_and_a_cut_one_is_named(tmp_path, name):
    content = archive(name.endswith("gz"))
    path = tmp_path / name
    path.write_bytes(content)
    found = list(sources.Shards(path))
    assert [document.text for document in found] == ["Grüße\ntwo words", "Ein Text\nin zwei Zeilen"]
    assert [document.metadata["url"] for document in found] == ["http://a.example/1", "http://a.example/2"]
    assert all(document.id.startswith("urn:uuid:") for document in found)
    borders = [place for place in range(1, len(content)) if content.startswith(b"\x1f\x8b\x08", place)]
    for cut in set(range(1, len(content), 53)) - set(borders):  # cut between two members, a gzip looks whole
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=name):
            list(sources.Shards(path))
    path.write_bytes(content + b"no record at all")
    with pytest.raises(ValueError, match=name):
        list(sources.Shards(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "a"}\n{"text": "b\xff"}\n', "a.jsonl is not UTF-8: byte 0xff at offset 25, line 2"),
        (b'{"text": "a"}\n{"text": "b', "a.jsonl line 2 is not JSON"),
        (b'{"text": "a"}\n{"title": "b"}\n', "a.jsonl line 2 has no text in its field 'text'"),
        (b'{"text": "a"}\n{"text": null}\n', "a.jsonl line 2 has no text"),
        (b'{"title": "b"}\n', "a.jsonl line 1 has the fields title"),
        (b'{"text": "a", "id": []}\n', r"a.jsonl line 1 has \[\] as its 'id'"),
        (b'{"text": "half \\ud83d"}\n', "a.jsonl line 1 holds half a character"),
        (b'{"text": "a", "id": 1}\n\n{"text": "b", "id": 1}\n', "line 1 and .*line 3 both have the id '1'"),
    ],
)
def test_bad_input_is_named_by_file_and_line_before_the_work(tmp_path, content, said):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        pipeline.run(tmp_path / "a.jsonl", ["exact"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_line_too_long_and_a_disk_too_small_are_refused_before_the_work(tmp_path, monkeypatch):
    from lib.sources import file_formats

    write(tmp_path / "in", corpus(), 1)
    with monkeypatch.context() as patched:
        patched.setattr(file_formats, "LONGEST", 100)
        with pytest.raises(ValueError, match=r"0.jsonl line 1 has more than"):
            pipeline.run(tmp_path / "in", ["exact"], tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1000, 999, 1))
    with pytest.raises(OSError, match="MB free"):
        pipeline.run(tmp_path / "in", ["exact"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_and_sources_that_are_none(tmp_path):
    write(tmp_path / "in", corpus(), 1)
    with pytest.raises(ValueError, match="did you mean 'exact'"):
        pipeline.run(tmp_path / "in", ["exakt"], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="is no file"):
        sources.Shards(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match="is no shard"):
        sources.Shards([tmp_path / "in" / "0.jsonl", __file__])
    with pytest.raises(ValueError, match="which can be read once"):
        exact.stage(iter([]))


def test_of_equal_texts_one_stays_and_a_common_line_stays_once():
    documents = [Document(row["text"], row.get("id", "x")) for row in corpus()]
    tally = Tally("exact")
    left = list(exact.stage(documents, tally=tally))
    assert len({document.text for document in documents}) == len(left) == tally.kept == tally.read - 12
    assert tally.dropped == {"the same text": 12}
    assert {each["before"] for each in tally.examples("the same text")} <= {document.text for document in documents}
    loose = [Document("A  b\nC", "1"), Document("a b c", "2"), Document("abc", "3")]
    assert len(list(exact.stage(loose))) == 3 and len(list(exact.stage(loose, normalized=True))) == 2
    apart = list(lines.stage(left))
    assert sum(FOOTER in document.text for document in apart) == 1
    assert [text.text.replace(f"{FOOTER}\n", "") for text in apart] == [
        text.text.replace(f"{FOOTER}\n", "") for text in left
    ]
    assert list(lines.stage([Document(FOOTER, "1"), Document(FOOTER + "\n\n", "2")])) in (
        [Document(FOOTER, "1")],
        [Document(FOOTER + "\n\n", "2")],
    )
    assert list(lines.stage([])) == [] and list(exact.stage(documents[:1])) == documents[:1]


def test_the_result_is_independent_of_order_and_number_of_shards(tmp_path):
    rows, found = corpus(), []
    for number, shards in enumerate((1, 3, 7)):
        folder = write(tmp_path / f"in {number}", rows, shards)
        found.append(pipeline.run(folder, ["exact", "lines", "exact"], tmp_path / f"out {number}", seed=4))
        rows = rows[::-1]
    memory = [Document(row["text"], row.get("id") or text_id(row["text"]), {"site": row.get("site")}) for row in rows]
    memory = [
        document if "site" in row else Document(document.text, document.id) for document, row in zip(memory, rows)
    ]
    direct = list(exact.stage(list(lines.stage(list(exact.stage(list(blank.stage(memory)), seed=4)), seed=4)), seed=4))
    assert {each.sha256 for each in found} == {identity(direct)} and len(direct) == 61
    tables = [each.table for each in found]
    assert tables[0] == tables[1] == tables[2] and list(found[0].tallies) == ["blank", "exact", "lines", "exact 2"]
    assert {json.dumps(each.tallies["lines"].state()) for each in found} == {
        json.dumps(found[0].tallies["lines"].state())
    }
    other = pipeline.run(tmp_path / "in 0", ["exact"], tmp_path / "another seed", seed=5)
    assert other.sha256 != pipeline.run(tmp_path / "in 0", ["exact"], tmp_path / "same", seed=4).sha256
    with pytest.raises(ValueError, match="seed=4 there, 5 here"):
        pipeline.run(tmp_path / "in 0", ["exact"], tmp_path / "same", seed=5)


def test_a_killed_run_ends_in_the_same_bytes(tmp_path, monkeypatch):
    folder, stages = write(tmp_path / "in", corpus(), 3), ["exact", "lines"]
    whole = pipeline.run(folder, stages, tmp_path / "whole")

    def contents(place):
        return {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}

    for kill in range(0, 20, 3):
        out, steps, replace = tmp_path / f"killed {kill}", itertools.count(), os.replace

        def dying(*names, steps=steps, kill=kill, replace=replace):
            if next(steps) == kill:
                raise KeyboardInterrupt
            replace(*names)

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", dying)
            with pytest.raises(KeyboardInterrupt):
                pipeline.run(folder, stages, out)
        (out / "exact").mkdir(exist_ok=True)
        (out / "exact" / ".00000.jsonl.0123abcd.tmp").write_text("half a")
        again = pipeline.run(folder, stages, out)
        assert again.sha256 == whole.sha256 and again.table == whole.table
        assert [path.read_bytes() for path in again.documents.paths] == [
            path.read_bytes() for path in whole.documents.paths
        ]
    damaged = next((tmp_path / "whole" / "lines").glob("*.jsonl"))
    before = damaged.read_bytes()
    damaged.write_bytes(before[:-9])
    assert shard_file.known(damaged) is None
    assert pipeline.run(folder, stages, tmp_path / "whole").sha256 == whole.sha256 and damaged.read_bytes() == before


def test_documents_are_read_one_at_a_time(tmp_path):
    """Of a large shard no more than a document is held; a gzip would say the same of an archive."""
    import tracemalloc

    row = json.dumps({"text": "word " * 20_000}) + "\n"
    (tmp_path / "a.jsonl").write_text(row * 200)
    tracemalloc.start()
    count = sum(1 for _ in blank.stage(sources.Shards(tmp_path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 200 and peak < 3_000_000 < (tmp_path / "a.jsonl").stat().st_size / 5


def test_tallies_of_parts_add_up_to_that_of_the_whole():
    documents = [Document("x" * (number % 4), str(number)) for number in range(200)]
    whole, parts = Tally("s", seed=3), [Tally("s", seed=3) for _ in range(4)]
    for number, document in enumerate(documents):
        for tally in (whole, parts[number * 7 % 4]):
            if document.text:
                tally.keep(document.saying(document.text[1:]), document, "shorter")
            else:
                tally.drop(document, "empty")
    total = Tally("s", seed=3)
    for part in parts[::-1]:
        total.add(Tally.of(json.loads(json.dumps(part.state()))))
    assert total.state() == whole.state() and total.rows() == whole.rows()
    assert [each["id"] for each in Tally.of(whole.state()).examples("empty")] == [
        each["id"] for each in total.examples("empty")
    ]
    assert [each["after"] == each["before"][1:] for each in whole.examples("shorter")] == [True] * 3


def test_gzip_with_trailing_members_is_one_archive(tmp_path):
    both = archive(True) + archive(True)
    (tmp_path / "a.warc.gz").write_bytes(both)
    assert len(list(sources.Shards(tmp_path / "a.warc.gz"))) == 4
    assert gzip.decompress(both).endswith(b"\r\n\r\n")
