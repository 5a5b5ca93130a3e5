"""A real Prometheus, of Debian's package, scrapes the monitor of a server, and its rules fire when the server goes."""

import contextlib
import re
import subprocess
import sys

import httpx
import pytest
import yaml

from lib.serving.listener import bind
from tests import served
from tests.test_monitor import HERE, program

pytestmark = pytest.mark.long


@contextlib.contextmanager
def process(*command, **how):
    with subprocess.Popen([str(part) for part in command], **how) as running:
        try:
            yield running
        finally:
            running.terminate()
            running.wait(60)


class Prometheus:
    """Its interface at an address; nothing is found while it does not answer yet."""

    def __init__(self, address):
        self.address = address

    def get(self, path, **given):
        try:
            found = httpx.get(f"http://{self.address}/api/v1/{path}", params=given, trust_env=False)
            return found.json().get("data") or {}
        except (httpx.HTTPError, ValueError):
            return {}

    def value(self, query):
        found = self.get("query", query=query).get("result")
        return float(found[0]["value"][1]) if found else None

    def firing(self):
        return {
            each["labels"]["alertname"] for each in self.get("alerts").get("alerts", ()) if each["state"] == "firing"
        }


def test_a_real_prometheus_scrapes_the_monitor_and_tells_that_the_server_is_gone(tmp_path):
    name, server = program("prometheus"), contextlib.ExitStack()
    client = server.enter_context(served.running(served.artifact()))
    client.generate("a", max_new_tokens=2)
    watching = [sys.executable, "-m", "lib.serving.monitor", "--port", "0", "--server", client.base_url]
    with server, process(*watching, stdout=subprocess.PIPE, text=True) as monitor:
        address = next(line.strip() for line in monitor.stdout if line.startswith("http://"))
        with bind("127.0.0.1", 0) as free:
            found = Prometheus(f"127.0.0.1:{free.getsockname()[1]}")
        # the rules as they stand, but for how long a fault must last
        (tmp_path / "alerts.yaml").write_text(re.sub(r"for: \d+m", "for: 1s", (HERE / "alerts.yaml").read_text()))
        job = {"job_name": "a", "static_configs": [{"targets": [address.removeprefix("http://")]}]}
        every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config = {"global": every, "scrape_configs": [job], "rule_files": ["alerts.yaml"]}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        how = [f"--config.file={tmp_path / 'config.yaml'}", f"--storage.tsdb.path={tmp_path / 'data'}"]
        with process(name, *how, f"--web.listen-address={found.address}", stderr=subprocess.DEVNULL):
            served.until(lambda: found.value("tgi_request_success") == 1, "the server's own counts")
            assert found.value("thimble_server_up") == 1 and not found.firing()
            assert found.value('thimble_machine_memory_bytes{device="used"}') > 1e6
            rules = [rule for group in found.get("rules")["groups"] for rule in group["rules"]]
            assert len(rules) >= 6 and not [rule for rule in rules if rule["health"] == "err"]
            server.close()
            served.until(lambda: "ServerDown" in found.firing(), "the alert that the server is gone")
