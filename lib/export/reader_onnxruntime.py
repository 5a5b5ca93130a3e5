"""onnxruntime as a reader of ONNX files, with keys and values of earlier tokens given back to it.

Modes: "float32" computes products of quantized layers in float32 (accuracy level 1), "fast" rounds the inputs of these
layers to 8 bits (level 4), whatever level the file says: the session is opened on the graph with that level.
"""

from pathlib import Path

import numpy

from lib.export import reader_script

PACKAGE, VERSION = "onnxruntime", "1.31.1"
INSTALL = (f"pip install onnx onnxruntime=={VERSION}",)
MODES = {"float32": 1, "fast": 4}
LIMIT = 0.02  # nats: KL that rounding a layer's inputs to 8 bits explains
LIMITS = {"float32": 1e-6}  # nothing is rounded but sums


class Reader:
    """A file opened with an accuracy level."""

    def __init__(self, file: str, level: int, threads: int = 1):
        import onnx  # load slowly, only in a process that reads
        import onnxruntime  # likewise: loads slowly

        graph = onnx.load(file, load_external_data=False)
        for node in graph.graph.node:
            if node.op_type == "MatMulNBits":
                others = [each for each in node.attribute if each.name != "accuracy_level"]
                del node.attribute[:]
                node.attribute.extend([*others, onnx.helper.make_attribute("accuracy_level", level)])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(Path(file).parent))
        self.session = onnxruntime.InferenceSession(
            graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.names = [each.name for each in self.session.get_outputs()]
        self.past = {each.name: each.shape for each in self.session.get_inputs() if each.name.startswith("past")}
        self.inputs = {each.name for each in self.session.get_inputs()} - self.past.keys()
        self.restart()

    def restart(self) -> None:
        """Begin a text: no token is behind."""
        self.state = {name: numpy.zeros((1, shape[1], 0, shape[3]), numpy.float32) for name, shape in self.past.items()}

    def read(self, ids: list[int], start: int) -> numpy.ndarray:
        """Logits [count, vocabulary] of the tokens `ids`, of which the first stands at `start`."""
        given = {
            "input_ids": numpy.array([ids]),
            "attention_mask": numpy.ones((1, start + len(ids)), numpy.int64),
            "position_ids": numpy.arange(start, start + len(ids))[None],
        }
        found = dict(zip(self.names, self.session.run(None, {n: given[n] for n in self.inputs} | self.state)))
        self.state = {name: found[name.replace("past_key_values", "present")] for name in self.past}
        return found["logits"][0]


def main() -> None:
    """Answer as `reader_script` says."""
    import onnxruntime  # loads slowly, only in a process that reads

    reader_script.main_beside(Reader, MODES, f"{PACKAGE} {onnxruntime.__version__}")


if __name__ == "__main__":
    main()
