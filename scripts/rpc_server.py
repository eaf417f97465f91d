"""Offer this machine's devices to llama.cpp on other machines, as its own ``rpc-server`` does.

    python scripts/rpc_server.py 127.0.0.1:50052

Needs llama-cpp-python built with RPC. Anyone who can reach the port can read and write the memory
of this process: use it in trusted networks only. One client at a time; Ctrl-C ends it.
"""

from __future__ import annotations

import ctypes
import signal
import sys

from dspark_gguf.engine import library, rpc
from dspark_gguf.errors import DSparkError


def serve(endpoint: str) -> None:
    kinds = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    start = ctypes.CFUNCTYPE(None, *kinds)(rpc.procedure("ggml_backend_rpc_start_server"))
    pointers, gpus = library.device_pointers(), library.gpu_names()
    devices = [pointers[name] for name in gpus or ["CPU"]]
    array = (ctypes.c_void_p * len(devices))(*devices)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python cannot handle it: `start` never returns
    start(endpoint.encode(), None, library.physical_cores(), len(devices), array)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/rpc_server.py HOST:PORT")
    try:
        serve(sys.argv[1])
    except DSparkError as error:
        sys.exit(str(error))
