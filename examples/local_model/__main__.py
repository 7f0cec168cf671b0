"""`python -m examples.local_model`: serve the model over the OpenAI-compatible protocol on loopback until SIGTERM."""

import os
import signal
import sys
import threading
from importlib import import_module
from typing import Any

from examples.local_model.parts import MODEL, PORT_VARIABLE, Missing, weights


def main() -> None:
    """Raises SystemExit(1) with a plain sentence when a part is missing."""
    try:
        server = _serve(int(os.environ.get(PORT_VARIABLE, "0")))
    except Missing as missing:
        print(f"local model: {missing}", file=sys.stderr)
        raise SystemExit(1) from None
    print(f"{MODEL} at {server.listening_address}/v1", flush=True)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    # The server's own threads do not end by themselves.
    os._exit(0)


def _serve(port: int) -> Any:
    path = weights()
    # By name, as it is no part of the usual set-up.
    runtime: Any = import_module("xllamacpp")
    parameters = runtime.CommonParams()
    parameters.model.path = str(path)
    parameters.model_alias = {MODEL}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.n_parallel = 1
    parameters.n_ctx = 2048
    # With two threads, half of the cold starts stalled on two cores.
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    parameters.offline, parameters.ui, parameters.fit_params = True, False, False
    return runtime.Server(parameters)


if __name__ == "__main__":
    main()
