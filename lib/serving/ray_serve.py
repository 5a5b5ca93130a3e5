"""Several servers of one model behind one address, by Ray Serve: a template, which stands alone.

    THIMBLE_MODEL=FOLDER THIMBLE_REPLICAS=4 serve run lib.serving.ray_serve:app        # from the project's folder

It needs an environment with this project's requirements and ray[serve]==2.60.0. Each replica loads the model and
answers as a server of its own does, so an answer has the same bits whichever of them is asked; a prefix that two
requests share is read once only where one replica has both. `serve build` writes the same as a file for `serve deploy`.
"""

import os

from ray import serve

SETTINGS = {
    "THIMBLE_MODEL": "smollm2-135m-instruct",  # packaged, a folder that every machine sees, or a Hub id
    "THIMBLE_REPLICAS": "2",
    "THIMBLE_CORES": "2",  # of each replica
    "THIMBLE_SLOTS": "16",  # answers of each at once
    "THIMBLE_API_KEY": "",  # what clients must send; empty for none
}
GIVEN = {name: os.environ.get(name, default) for name, default in SETTINGS.items()}
GRACE = 35.0  # seconds that answers may go on when a replica is ended


def replica():
    """The server's application, built in the process of a replica."""
    from lib.serving import app, artifacts, hall, limits  # loads torch, which the process that deploys does not need

    allowed = limits.Limits(slots=int(GIVEN["THIMBLE_SLOTS"]))
    first = artifacts.load(GIVEN["THIMBLE_MODEL"], allowed)
    offered = hall.Hall({}, lambda name: artifacts.load(name, allowed), allowed)
    offered.offer(first)
    return app.build(offered, key=GIVEN["THIMBLE_API_KEY"] or None)


app = serve.deployment(
    serve.ingress(replica)(),
    name="thimble",
    num_replicas=int(GIVEN["THIMBLE_REPLICAS"]),
    max_ongoing_requests=2 * int(GIVEN["THIMBLE_SLOTS"]),
    graceful_shutdown_timeout_s=GRACE,
    ray_actor_options={"num_cpus": int(GIVEN["THIMBLE_CORES"]), "runtime_env": {"env_vars": GIVEN}},
).bind()
