"""What the server counts, under text-generation-inference's names; no user's text and no name of his is in it."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric

from lib import timing
from lib.metrics import rapl
from lib.serving.answers import Answer, Ask
from lib.serving.hall import Hall
from lib.serving.problems import STATUS

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
TOKENS = tuple(float(2**n) for n in range(17))
SIZES = tuple(float(2**n) for n in range(9))
_HISTOGRAMS = {
    "duration": (SECONDS, "Seconds from a request to its answer"),
    "validation_duration": (SECONDS, "Seconds until a request was checked"),
    "queue_duration": (SECONDS, "Seconds until a slot was free"),
    "inference_duration": (SECONDS, "Seconds from a slot to the last token"),
    "mean_time_per_token_duration": (SECONDS, "Seconds a token"),
    "generated_tokens": (TOKENS, "Tokens of answers"),
    "input_length": (TOKENS, "Tokens of prompts"),
    "max_new_tokens": (TOKENS, "Tokens that answers may have"),
}


class Metrics:
    """Counts for one server."""

    def __init__(self, hall: Hall):
        self.hall, self.registry = hall, CollectorRegistry()
        self.requests = self.successes = self.tokens = self.steps = 0
        self.failures = dict.fromkeys((*STATUS, "disconnected"), 0)
        self.of = {
            name: Histogram(f"tgi_request_{name}", said, buckets=buckets, registry=self.registry)
            for name, (buckets, said) in _HISTOGRAMS.items()
        }
        gauges = {
            "tgi_queue_size": ("Requests that wait", lambda: hall.waiting),
            "tgi_batch_current_size": ("Requests that are read or answered", lambda: len(hall.answers) - hall.waiting),
            "thimble_loaded_models": ("Models in memory", lambda: len(hall.loaded)),
            "thimble_weights_bytes": ("Bytes of their weights", lambda: sum(m.nbytes for m in hall.loaded.values())),
        }
        for name, (said, value) in gauges.items():
            Gauge(name, said, registry=self.registry).set_function(value)
        self.energy = rapl.Meter()
        self.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """The counters, whose names have no _total there."""
        counts = {"tgi_request_count": ("Requests for answers", [({}, self.requests)])}
        counts["tgi_request_success"] = ("Requests that were answered", [({}, self.successes)])
        failed = [({"err": kind}, count) for kind, count in self.failures.items()]
        counts["tgi_request_failure"] = ("Requests that were not", failed)
        counts["tgi_batch_inference_count"] = ("Steps of the model", [({}, self.hall.engine.steps)])
        counts["thimble_generated_tokens"] = ("Tokens of answers", [({}, self.tokens)])
        if (joules := self.energy.joules()) is not None:
            counts["thimble_joules"] = ("Energy of the machine since the server began", [({}, joules)])
        for name, (said, samples) in counts.items():
            metric = Metric(name, said, "unknown")
            for labels, value in samples:
                metric.add_sample(name, labels, value)
            yield metric

    def text(self) -> bytes:
        """All of it in Prometheus's text form."""
        return generate_latest(self.registry)

    def asked(self) -> None:
        """A request for an answer has come."""
        self.requests += 1

    def failed(self, kind: str) -> None:
        """A request gets no answer."""
        self.failures[kind] += 1

    def validated(self, seconds: float, ask: Ask) -> None:
        """A request was found to be right."""
        self.of["validation_duration"].observe(seconds)
        self.of["input_length"].observe(len(ask.prompt))
        self.of["max_new_tokens"].observe(ask.new_tokens)

    def ended(self, answers: list[Answer], begun: float) -> None:
        """Answers to one request have ended, or were left."""
        if any(each.problem for each in answers):
            return  # counted where it is told
        if any(each.generation is None for each in answers):
            self.failures["disconnected"] += 1
            return
        self.successes += 1
        self.of["duration"].observe(timing.clock() - begun)
        for each in answers:
            count, seconds = len(each.told), each.ended - each.entered
            self.tokens += count
            self.of["queue_duration"].observe(max(each.entered - each.submitted, 0.0))
            self.of["inference_duration"].observe(seconds)
            self.of["generated_tokens"].observe(count)
            self.of["mean_time_per_token_duration"].observe(seconds / max(count, 1))
