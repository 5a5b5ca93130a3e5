"""OpenVINO on a processor as a reader of its files, with keys and values as its own states.

Modes: "float32" computes in float32 throughout, "fast" is what OpenVINO does by itself: half-length products where the
processor has them, inputs of packed layers in 8 bits, keys and values in 8 bits.
"""

import numpy

from lib.export import reader_script, runtimes

FOLDER = "openvino"  # of its environment, in the one that THIMBLE_PEERS names
INSTALL = runtimes.command(FOLDER)
PRECISE = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}
FAST = {"INFERENCE_PRECISION_HINT": "", "KV_CACHE_PRECISION": "u8", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"}
MODES = {"float32": PRECISE, "fast": FAST}
LIMIT = 0.05  # nats: KL that products in bfloat16 and inputs, keys and values in 8 bits explain
LIMITS = {"float32": 1e-6}


class Reader:
    """A file compiled with properties, which keeps keys and values of the tokens before."""

    def __init__(self, file: str, properties: dict[str, str], threads: int = 1):
        import openvino  # only in its own environment

        core = openvino.Core()
        given = {key: value for key, value in properties.items() if value} | {"INFERENCE_NUM_THREADS": threads}
        if not properties["INFERENCE_PRECISION_HINT"]:  # the processor's own
            given["INFERENCE_PRECISION_HINT"] = core.get_property("CPU", "INFERENCE_PRECISION_HINT")
        self.model = core.compile_model(core.read_model(file), "CPU", given)
        self.inputs = {name for port in self.model.inputs for name in port.names}
        self.request = self.model.create_infer_request()

    def restart(self) -> None:
        """Begin a text: no token is behind."""
        self.request.reset_state()

    def read(self, ids: list[int], start: int) -> numpy.ndarray:
        """Logits [count, vocabulary] of the tokens `ids`, of which the first stands at `start`."""
        given = {
            "input_ids": numpy.array([ids]),
            "attention_mask": numpy.ones((1, start + len(ids)), numpy.int64),
            "position_ids": numpy.arange(start, start + len(ids))[None],
            "beam_idx": numpy.zeros(1, numpy.int32),
        }
        found = self.request.infer({name: value for name, value in given.items() if name in self.inputs})
        return numpy.array(found["logits"][0], numpy.float32)


def main() -> None:
    """Answer as `reader_script` says."""
    import openvino  # only in its own environment

    reader_script.main_beside(Reader, MODES, f"{FOLDER} {openvino.__version__}")


if __name__ == "__main__":
    main()
