"""llama.cpp's own server out of a wheel, where it was not built: run by the environment that has `xllamacpp`.

    python lib/peers/llama_cpp_wheel.py MODEL.gguf --port 8080 --parallel 16 --context 32768 --threads 2

The wheel is compiled for many machines, with the instructions that were chosen there; what it says at its start names
them. For the fastest server build llama.cpp where it runs (`lib.peers.llama_cpp.INSTALL`).
"""

import argparse
import signal
import threading


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    for name, value in (("port", 8080), ("parallel", 16), ("context", 2048), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    import xllamacpp  # loads slowly, and only its own environment has it

    asked = xllamacpp.CommonParams()
    asked.model.path, asked.hostnames, asked.port = given.model, ["127.0.0.1"], given.port
    asked.n_parallel, asked.n_ctx, asked.n_gpu_layers = given.parallel, given.context, 0
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = given.threads
    over = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: over.set())
    server = xllamacpp.Server(asked)
    print(f"{server.listening_address}; {xllamacpp.get_system_info()}", flush=True)
    over.wait()


if __name__ == "__main__":
    main()
