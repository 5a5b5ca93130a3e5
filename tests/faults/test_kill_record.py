"""SIGKILL while records are written: every file holds the old record or the new one, never a mix."""

import json
import os
import random
import signal
import subprocess
import sys
import time

from lib import files, results

WRITER = """
from lib import results
from lib.metrics import score
run = results.start("writer")
print(run.path, flush=True)
for step in range(10**9):
    run.record("step", score.exact(step, "items"), note="x" * 2000)
"""


def test_a_killed_writer_leaves_a_complete_record(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    chance, lengths = random.Random(0), []
    for _ in range(6):
        writer = subprocess.Popen([sys.executable, "-c", WRITER], cwd=files.ROOT, stdout=subprocess.PIPE, text=True)
        path = writer.stdout.readline().strip()
        time.sleep(0.05 + chance.random() / 4)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        with open(path) as file:
            document = json.load(file)
        assert [row["value"] for row in document["rows"]] == list(range(len(document["rows"])))
        assert document["status"] == "running"
        lengths.append(len(document["rows"]))
    assert max(lengths) > 3, "the writer was killed before it wrote: this tests nothing"
    table = results.table(latest=False)  # temporary files of killed writers are no records, and cause no warning
    assert len(table) == sum(lengths) and results.table().empty
