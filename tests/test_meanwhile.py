"""What others did while something was measured, from recorded counts."""

import subprocess
import sys
from collections import namedtuple

import psutil
import pytest

from lib import machine, results, timing
from lib.metrics import meanwhile

Times = namedtuple("Times", "user nice system idle iowait irq softirq steal guest guest_nice")


@pytest.mark.parametrize(
    "own,user,steal,others,disturbed", [(10.0, 10.0, 0, 0.0, False), (4.0, 8.0, 0, 0.2, True), (9.0, 9.0, 2, 0, True)]
)
def test_what_is_not_ours_is_others(monkeypatch, own, user, steal, others, disturbed):
    clock, before, used = iter([100.0, 110.0]), Times(50, 1, 5, 900, 3, 0, 1, 2, 7, 0), iter([3.0, 3.0 + own])
    after = before._replace(user=50 + user, idle=900 + 20 - user - steal, steal=2 + steal, guest=9)
    times = iter([before, after])
    monkeypatch.setattr(timing, "clock", lambda: next(clock))
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(times))
    monkeypatch.setattr(meanwhile, "_own", lambda: next(used))
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    monkeypatch.setattr(machine, "cores", lambda: 1)  # that this process may use
    with meanwhile.watched() as found:
        pass
    assert found.seconds == 10 and found.disturbed is disturbed
    # a guest's time stands in user time too, which psutil's sum counts twice
    assert (found.others, found.stolen) == (pytest.approx(others), pytest.approx(steal / 20))


def test_a_server_that_is_measured_is_no_other():
    """Its work counts as ours while it runs; that of another child does not."""
    code = "import sys; sum(range(3_000_000)); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert meanwhile._own(child.pid) - meanwhile._own() > 0.01
    assert meanwhile._own(child.pid) > 0  # gone


def test_this_machine_tells_something():
    with meanwhile.watched() as found:
        sum(range(100_000))
    assert found.others >= 0 and set(found.labels()) >= {"others", "disturbed", "load", "celsius"}
    assert meanwhile.Meanwhile().disturbed is None


def test_every_record_says_what_the_machine_did(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    run = results.start("anything")
    run.finish()
    assert run.document["meanwhile"]["seconds"] > 0 and "disturbed" in run.document["meanwhile"]
