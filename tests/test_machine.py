"""What describes the machine, the versions and the commit behind a number."""

import json
import subprocess
import sys
import types

import numpy as np

from lib import files, machine


def test_the_machine_is_described_without_names_of_hosts_and_users():
    import getpass
    import socket

    described = machine.describe()
    assert set(described) == {"cpu", "cores", "memory_gib", "gpus", "os", "python"}
    assert described["cores"] >= 1 and described["memory_gib"] >= 1
    assert socket.gethostname() not in json.dumps(described) and f"/{getpass.getuser()}" not in json.dumps(described)
    assert machine.label(described | {"gpus": ["H200"]}).endswith("GiB, H200")
    assert machine.identity() == machine.identity() and len(machine.identity()) == 12


def test_threads_follow_torch_or_the_environment(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert machine.threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert machine.threads() == machine.cores()
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(get_num_threads=lambda: 5))
    assert machine.threads() == 5


def test_describing_the_machine_loads_no_heavy_package():
    code = "import sys; from lib import machine, results; machine.describe(); machine.versions()"
    code += "; print([name for name in ('torch', 'transformers', 'pandas') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=files.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_absent_packages_and_tools_are_none_and_empty(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "PACKAGES", ("numpy", "no-such-package"))
    assert machine.versions()["no-such-package"] is None and machine.versions()["numpy"] == np.__version__
    assert machine._output(["no-such-command"]) == ""
    assert machine._cpu(tmp_path / "absent")
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: A  Fast CPU\n")
    assert machine._cpu(tmp_path / "cpuinfo") == "A Fast CPU"


def test_gpus_are_asked_from_the_driver(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(machine, "_output", lambda command: "NVIDIA H200\nNVIDIA H200")
    assert machine._gpus() == ["NVIDIA H200", "NVIDIA H200"]
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert machine._gpus() == []


def test_commit_and_dirty_flag(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(machine, "ROOT", tmp_path)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "a.py").write_text("1")
    assert machine.commit() == {"commit": None, "dirty": None}  # no repository
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    found = machine.commit()
    assert len(found["commit"]) == 40 and found["dirty"] is False
    (tmp_path / "notes.txt").write_text("not code")
    assert machine.commit()["dirty"] is False
    (tmp_path / "lib" / "b.py").write_text("2")
    assert machine.commit()["dirty"] is True
    monkeypatch.setattr(machine, "ROOT", tmp_path / "lib")  # inside someone else's repository
    assert machine.commit() == {"commit": None, "dirty": None}
