"""The clients that people use, each in an environment of its own, against our server.

THIMBLE_PEERS=/some/folder     # where `make clients` installs them
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests import served

PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def server():
    with served.running(served.artifact()) as client:
        yield client


def run(name, script, server):
    """What a script prints as JSON, in the environment of a client, with `URL` as the server's address."""
    program = Path(os.environ.get("THIMBLE_PEERS", "/none")).expanduser() / name / "bin" / "python"
    if not program.is_file():
        pytest.skip(f"{name} is no requirement; it is looked for in THIMBLE_PEERS/{name} (`make clients`)")
    code = f"import json\nURL, PROMPT = {str(server.base_url)!r}, {PROMPT!r}\n{script}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run([program, "-P", "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def wanted(server, **given):
    return server.generate(PROMPT, details=True, **given).json()


OPENAI = """
import openai
client = openai.OpenAI(base_url=URL + "/v1", api_key="none", max_retries=0)
one = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=8, temperature=0, logprobs=2, echo=True)
stream = list(client.completions.create(model="tiny", prompt=PROMPT, max_tokens=8, temperature=0, stream=True,
                                        stream_options={"include_usage": True}))
messages = [{"role": "user", "content": "Hi"}]
chat = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, temperature=0.5, seed=3, n=2,
                                      logprobs=True, top_logprobs=2)
chunks = list(client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, temperature=0.5, seed=3,
                                             stream=True))
try:
    client.completions.create(model="tiny", prompt=PROMPT, suffix="x")
except openai.BadRequestError as error:
    refused = error.body
try:
    client.completions.create(model="none", prompt=PROMPT)
except openai.NotFoundError as error:
    missing = error.code
print(json.dumps({
    "text": one.choices[0].text, "scores": one.choices[0].logprobs.token_logprobs,
    "names": [m.id for m in client.models.list()],
    "stream": "".join(c.choices[0].text for c in stream if c.choices), "usage": stream[-1].usage.completion_tokens,
    "chat": [c.message.content for c in chat.choices], "places": len(chat.choices[0].logprobs.content[0].top_logprobs),
    "chunks": "".join(c.choices[0].delta.content or "" for c in chunks), "refused": refused, "missing": missing,
}))
"""


def test_openai_s_client(server):
    found = run("openai", OPENAI, server)
    text = wanted(server, max_new_tokens=8)["generated_text"]
    assert found["text"] == PROMPT + text and found["stream"] == text and found["usage"] == 8
    assert found["scores"][0] is None and len(found["scores"]) == 19 + 8 and found["names"] == ["tiny"]
    assert found["chunks"] == found["chat"][0] != found["chat"][1] and found["places"] == 2
    assert "`suffix` is not supported" in found["refused"]["message"] and found["missing"] == "model_not_found"


TEXT_GENERATION = """
from text_generation import Client
from text_generation.errors import ValidationError
client = Client(URL)
one = client.generate(PROMPT, max_new_tokens=8, decoder_input_details=True, top_n_tokens=2)
stream = list(client.generate_stream(PROMPT, max_new_tokens=8, do_sample=True, seed=4))
try:
    client.generate(PROMPT, max_new_tokens=10_000)
except ValidationError as error:
    refused = str(error)
chat = client.chat(messages=[{"role": "user", "content": "Hi"}], max_tokens=8, temperature=0.5, seed=3)
print(json.dumps({
    "text": one.generated_text, "prefill": [t.logprob for t in one.details.prefill],
    "tokens": [t.id for t in one.details.tokens],
    "top": [[t.id for t in each] for each in one.details.top_tokens], "stream": stream[-1].generated_text,
    "seed": stream[-1].details.seed, "refused": refused, "chat": chat.choices[0].message.content,
}))
"""


def test_text_generation_s_client(server):
    found = run("text-generation", TEXT_GENERATION, server)
    own = wanted(server, max_new_tokens=8)
    assert found["text"] == own["generated_text"]
    assert found["tokens"] == [each["id"] for each in own["details"]["tokens"]]
    assert found["prefill"][0] is None and len(found["prefill"]) == 19 and len(found["top"][0]) == 2
    assert found["stream"] == wanted(server, max_new_tokens=8, do_sample=True, seed=4)["generated_text"]
    assert found["seed"] == 4 and "must be <= 512" in found["refused"] and isinstance(found["chat"], str)


LANGCHAIN = """
import warnings
warnings.simplefilter("ignore")
from langchain_huggingface import HuggingFaceEndpoint
from huggingface_hub import InferenceClient
model = HuggingFaceEndpoint(endpoint_url=URL, max_new_tokens=8, temperature=0.8, top_p=0.95, typical_p=0.95, seed=9,
                            huggingfacehub_api_token="none")
plain = InferenceClient(model=URL).text_generation(PROMPT, max_new_tokens=8, details=True)
found = {"text": model.invoke(PROMPT), "stream": "".join(model.stream(PROMPT)), "plain": plain.generated_text}
print(json.dumps(found))
"""


def test_langchain_and_the_hub_s_client(server):
    found = run("langchain-huggingface", LANGCHAIN, server)
    drawn = wanted(server, max_new_tokens=8, temperature=0.8, top_p=0.95, typical_p=0.95, seed=9)["generated_text"]
    assert found["text"] == drawn and found["stream"] == drawn
    assert found["plain"] == wanted(server, max_new_tokens=8)["generated_text"]
