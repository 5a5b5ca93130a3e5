"""The description of the server's interface (OpenAPI 3.1), made from the tables by which requests are checked."""

from lib.serving import openai_parameters, tgi_parameters
from lib.serving.hall import Hall
from lib.serving.parameters import Table
from lib.serving.problems import STATUS

_ERRORS = {
    False: {"type": "object", "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}}},
    True: {"type": "object", "properties": {"error": {"type": "object"}}},
}
_READ = {  # GET routes and what they give
    "/info": ("The model and the limits.", "application/json"),
    "/health": ("Whether the server answers.", None),
    "/ping": ("Whether the server answers.", None),
    "/metrics": ("Counts, in Prometheus's text form.", "text/plain"),
    "/v1/models": ("The models that are offered.", "application/json"),
    "/openapi.json": ("This description.", "application/json"),
}


def document(hall: Hall) -> dict:
    """The whole description."""
    how = tgi_parameters.PARAMETERS.schema()
    posts = {
        "/": ("One answer in a list, or events.", _with(tgi_parameters.ROOT, how), True),
        "/generate": ("One answer.", _with(tgi_parameters.GENERATE, how), False),
        "/generate_stream": ("An event a token.", _with(tgi_parameters.GENERATE, how), True),
        "/tokenize": ("Tokens of a text.", tgi_parameters.TOKENIZE.schema(), False),
        "/v1/completions": ("Texts that continue prompts.", openai_parameters.COMPLETIONS.schema(), True),
        "/v1/chat/completions": ("The next message of a chat.", openai_parameters.CHAT.schema(), True),
    }
    paths = {path: {"get": _get(*said)} for path, said in _READ.items()}
    for path, (said, schema, streams) in posts.items():
        paths.setdefault(path, {})["post"] = _post(path, said, schema, streams)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Thimble", "version": "1", "description": f"Models: {', '.join(hall.names)}"},
        "paths": paths,
    }


def _with(table: Table, how: dict) -> dict:
    found = table.schema()
    found["properties"]["parameters"] = how | {"type": ["object", "null"]}
    return found


def _post(path: str, said: str, schema: dict, streams: bool) -> dict:
    openai = path.startswith("/v1/")
    answers = {"application/json": {}} | ({"text/event-stream": {}} if streams else {})
    wrong = {"application/json": {"schema": _ERRORS[openai]}}
    codes = sorted({status[1 if openai else 0] for status in STATUS.values()})
    return {
        "summary": said,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": {"description": said, "content": answers},
            **{str(code): {"description": "An error.", "content": wrong} for code in codes},
        },
    }


def _get(said: str, kind: str | None) -> dict:
    shown = {"description": said} | ({"content": {kind: {}}} if kind else {})
    return {"summary": said, "responses": {"200": shown, "401": {"description": "An error."}}}
