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


RAY = """
import json, socket, time, urllib.request
import ray
from ray import serve
from ray._private import parameter, services

def free():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

# it gives a node 30 seconds to begin, and the node gives its agents 15 to tell their ports, whatever else the machine
# does: here the question waits for the answer, and the ports are told beforehand
asked, made = services.get_node, parameter.RayParams
def patient(*given):
    for _ in range(300):
        try:
            return asked(*given)
        except RuntimeError:
            time.sleep(1)
agents = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
services.get_node = patient
parameter.RayParams = lambda *given, **how: made(*given, **how | {name: free() for name in agents})

port = free()
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": port})
from lib.serving.ray_serve import app
serve.run(app)

def ask(place):
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 12, "details": True, "do_sample": place > 3, "seed": 5}}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/generate", json.dumps(body).encode(),
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


def test_ray_runs_two_replicas_that_answer_alike(tmp_path):
    folder = tiny.save(tmp_path / "my model")
    given = {"THIMBLE_MODEL": str(folder), "THIMBLE_CORES": "1"}
    found = run("ray", f"PROMPT = {PROMPT!r}\n{RAY}", **given)
    assert found["replicas"] == {"RUNNING": 2}
    with served.running(names=["my model"], load=lambda name: artifacts.load(str(folder), served.LIMITS)) as one:
        own = [
            one.generate(PROMPT, max_new_tokens=12, details=True, do_sample=sampled, seed=5).json()
            for sampled in (False, True)
        ]
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
