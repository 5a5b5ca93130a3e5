"""Stock llama.cpp as a reader of GGUF files: compiled into the wheels of `cyllama`, so that no compiler is needed.

Modes: "float32 cache" keeps keys and values in float32 and computes attention step by step; "fast" is what llama.cpp
does by itself: a half-precision cache and fused attention. Both round the inputs of quantized layers to 8 bits.
"""

from lib.export import reader_script

PACKAGE, VERSION = "cyllama", "0.2.18"
FOLDER = "llama-cpp"  # of its environment, in the one that THIMBLE_PEERS names
INSTALL = (
    f"python3 -m venv $THIMBLE_PEERS/{FOLDER}",
    f"$THIMBLE_PEERS/{FOLDER}/bin/pip install --only-binary :all: {PACKAGE}=={VERSION} numpy",
)
MODES = ("float32 cache", "fast")
LIMIT = 0.02  # nats: KL that rounding a layer's inputs to 8 bits explains
_F32, _OFF = 0, 0


class Reader:
    """A file opened by llama.cpp, for texts of up to `length` tokens."""

    def __init__(self, file: str, length: int):
        from cyllama.llama import llama_cpp  # only in its own environment

        self.program, self.length = llama_cpp, length
        settings = llama_cpp.LlamaModelParams()
        settings.n_gpu_layers = 0
        # its contexts ask their model for a number that only the vocabulary has
        model = type("Model", (llama_cpp.LlamaModel,), {"n_vocab": property(lambda self: self.get_vocab().n_vocab)})
        self.model = model(file, settings, verbose=False)
        self.vocabulary = self.model.get_vocab()

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text, with what the file says that texts begin with."""
        return self.vocabulary.tokenize(text, True, True)

    def mode(self, name: str):
        """`forward` of a mode: ids of a whole text to logits [length, vocabulary]."""
        import numpy  # beside the late import of llama.cpp

        settings = self.program.LlamaContextParams()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = self.length
        settings.n_threads = settings.n_threads_batch = 1
        if name == "float32 cache":
            settings.type_k = settings.type_v = _F32
            settings.flash_attn_type = _OFF
        context = self.program.LlamaContext(self.model, settings, verbose=False)

        def forward(ids):
            context.kv_cache_clear()
            batch = self.program.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
            for place, token in enumerate(ids):
                batch.add(token, place, [0], True)
            context.decode(batch)
            return numpy.array([context.get_logits_ith(place) for place in range(len(ids))], numpy.float32)

        return forward


def main() -> None:
    """Answer as `reader_script` says."""
    from cyllama.llama import llama_cpp  # only in its own environment

    asked = reader_script.arguments()
    reader = Reader(asked["file"], max(map(len, asked["prompts"])) + asked["new_tokens"])
    version = f"{PACKAGE} {VERSION}, llama.cpp {llama_cpp.ggml_version()} ({llama_cpp.ggml_commit()})"
    modes = {name: lambda name=name: reader.mode(name) for name in MODES}
    reader_script.main(reader.tokenize, modes, version)


if __name__ == "__main__":
    main()
