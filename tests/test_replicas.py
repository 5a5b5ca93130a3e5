"""The templates for several replicas, as the tools that read them understand them.

make replicas        # installs Ray and SkyPilot into THIMBLE_PEERS, each alone, and runs this file
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from lib import files
from lib.serving import artifacts
from tests import served, tiny

pytestmark = pytest.mark.long
PROMPT = "The quick brown fox"


def run(name, code, **environment):
    """What a script prints as JSON at its end, in the environment of a tool."""
    program = Path(os.environ.get("THIMBLE_PEERS", "/none")).expanduser() / name / "bin" / "python"
    if not program.is_file():
        pytest.skip(f"{name} is no requirement; it is looked for in THIMBLE_PEERS/{name} (`make replicas`)")
    own = {"PYTHONPATH": str(files.ROOT), "RAY_USAGE_STATS_ENABLED": "0", **environment}
    done = subprocess.run(
        [program, "-c", code], capture_output=True, text=True, check=False, cwd=files.ROOT, env={**os.environ, **own}
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


BODY = """
def body(place):
    how = {"max_new_tokens": 12, "details": True, "do_sample": place > 3, "seed": 5}
    return {"inputs": PROMPT, "parameters": how}
"""
TEMPLATE = """
import json
from starlette.testclient import TestClient
from lib.serving import ray_serve
deployment = ray_serve.app._bound_deployment
with TestClient(ray_serve.replica()) as client:
    answers = [client.post("/generate", json=body(place)).json() for place in (0, 4)]
print(json.dumps({
    "answers": answers, "replicas": deployment.num_replicas, "cores": deployment.ray_actor_options["num_cpus"],
    "most": deployment.max_ongoing_requests,
}))
"""
RAY = """
import json, socket, urllib.request
import ray
from ray import serve

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
try:
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
except Exception as error:  # it gives its processes 15 and 30 seconds to begin, whatever else the machine does
    print(json.dumps({"late": str(error)}))
    raise SystemExit
serve.start(http_options={"host": "127.0.0.1", "port": port})
from lib.serving.ray_serve import app
serve.run(app)

def ask(place):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/generate", json.dumps(body(place)).encode(),
                                     {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=120))

from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    answers = list(pool.map(ask, range(8)))
told = serve.status().applications["default"].deployments["thimble"].replica_states
serve.shutdown()
ray.shutdown()
print(json.dumps({"answers": answers, "replicas": {str(getattr(k, "value", k)): v for k, v in told.items()}}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("models") / "my model")


@pytest.fixture(scope="module")
def own(folder):
    """A greedy answer of our server, and a drawn one."""
    with served.running(names=["my model"], load=lambda name: artifacts.load(str(folder), served.LIMITS)) as one:
        return [
            one.generate(PROMPT, max_new_tokens=12, details=True, do_sample=sampled, seed=5).json()
            for sampled in (False, True)
        ]


def test_a_replica_answers_as_a_server_of_its_own(folder, own):
    """What Ray starts in each replica, without Ray's processes."""
    given = {"THIMBLE_MODEL": str(folder), "THIMBLE_CORES": "1", "THIMBLE_REPLICAS": "3", "THIMBLE_SLOTS": "4"}
    found = run("ray", f"PROMPT = {PROMPT!r}\n{BODY}{TEMPLATE}", **given)
    assert found == {"answers": own, "replicas": 3, "cores": 1, "most": 8}


def test_ray_runs_two_replicas_that_answer_alike(folder, own):
    found = run("ray", f"PROMPT = {PROMPT!r}\n{BODY}{RAY}", THIMBLE_MODEL=str(folder), THIMBLE_CORES="1")
    if "late" in found:
        pytest.skip(f"Ray itself does not begin on this machine now: {found['late'][:200]}")
    assert found["replicas"] == {"RUNNING": 2}
    assert found["answers"] == [own[place > 3] for place in range(8)]


SKY = """
import json
import sky, yaml
with open("lib/serving/skypilot.yaml") as file:
    text = file.read()
managed = [each.name for each in sky.Task.from_yaml_str(text).managed_secret_refs]  # found by SkyPilot, where it has it
task = sky.Task.from_yaml_config(yaml.safe_load(text), secrets_overrides=[("THIMBLE_API_KEY", "x")])  # its --secret
task.validate_name()
(resources,) = task.resources
service = task.service
print(json.dumps({
    "name": task.name, "ports": resources.ports, "path": service.readiness_path, "least": service.min_replicas,
    "most": service.max_replicas, "run": task.run, "secrets": sorted(task.secrets), "managed": managed,
    "envs": task.envs,
}))
"""


def test_skypilot_reads_its_template():
    """Its own schema, without a cloud: the tool starts nothing without rights to one, its dry run included."""
    found = run("skypilot", SKY)
    assert (found["name"], found["path"], found["least"], found["most"]) == ("thimble", "/health", 2, 4)
    assert found["secrets"] == found["managed"] == ["THIMBLE_API_KEY"]
    assert found["ports"] == ["8000"] and "MODEL" in found["envs"]
    assert found["run"].startswith(".venv/bin/python -m lib.serving")
