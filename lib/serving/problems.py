"""What a request can meet with, and how each interface says it. No message holds a path or the environment."""

from dataclasses import dataclass

STATUS = {  # kind -> (status for text-generation-inference's clients, for OpenAI's, OpenAI's name of the kind)
    "validation": (422, 400, "invalid_request_error"),
    "unauthorized": (401, 401, "authentication_error"),
    "not_found": (404, 404, "not_found_error"),
    "method": (405, 405, "invalid_request_error"),
    "timeout": (408, 408, "timeout_error"),
    "too_large": (413, 413, "invalid_request_error"),
    "media_type": (415, 415, "invalid_request_error"),
    "generation": (424, 424, "generation_error"),
    "overloaded": (429, 429, "rate_limit_error"),
    "unavailable": (503, 503, "service_unavailable_error"),
}


@dataclass
class Problem(Exception):
    """A request that gets no answer: `kind` is one of `STATUS`; param: the parameter that is wrong."""

    kind: str
    message: str
    param: str | None = None
    code: str | None = None

    def __str__(self):
        return self.message


def invalid(message: str, param: str | None = None) -> Problem:
    """A request that breaks a rule of the interface."""
    return Problem("validation", message, param)


def body(problem: Problem, openai: bool) -> dict:
    """The error as JSON, in the words of one interface."""
    if openai:
        kind = STATUS[problem.kind][2]
        code = problem.code or (None if problem.kind == "validation" else problem.kind)
        return {"error": {"message": problem.message, "type": kind, "param": problem.param, "code": code}}
    said = f"Input validation error: {problem.message}" if problem.kind == "validation" else problem.message
    return {"error": said, "error_type": problem.kind}


def status(problem: Problem, openai: bool) -> int:
    """The status code in one interface."""
    return STATUS[problem.kind][1 if openai else 0]


def headers(problem: Problem) -> dict[str, str]:
    """What a client should know beside the body."""
    if problem.kind in ("overloaded", "unavailable"):
        return {"Retry-After": "1"}
    return {"WWW-Authenticate": "Bearer"} if problem.kind == "unauthorized" else {}
