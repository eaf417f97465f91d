"""Devices of other machines, through llama.cpp's RPC servers.

llama.cpp ends the process if it cannot talk to a server, so the handshake of its protocol
(``ggml-rpc.cpp``) is tried here first. A server has one client at a time.
"""

from __future__ import annotations

import ctypes
import re
import socket
import struct
from collections.abc import Sequence
from threading import Lock

from dspark_gguf.engine.library import ggml, install_command
from dspark_gguf.errors import DSparkError, UsageError

_ADDRESS = re.compile(r"[\w.-]+:(\d{1,5})", re.ASCII)
#: Seconds to wait; a free server answers in milliseconds.
_PATIENCE = 5.0
#: RPC_CMD_HELLO, the size of the payload, and no capabilities: plain TCP.
_HELLO = struct.pack("<BQ24x", 14, 24)
#: The answer: its size, the protocol version (three bytes), capabilities.
_ANSWER = struct.Struct("<Q3B25x")

_registry = ggml("ggml_backend_reg_by_name", ctypes.c_void_p, ctypes.c_char_p)
_procedure = ggml(
    "ggml_backend_reg_get_proc_address", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p
)
_register = ggml("ggml_backend_register", None, ctypes.c_void_p)
_ADD_SERVER = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)
_lock, _connected = Lock(), set[str]()


def connect(endpoints: Sequence[str]) -> None:
    """Add the devices of servers (``host:port``) to those of this process: RPC0, RPC1, ...

    Servers that were added before are skipped. Raises a UsageError if an endpoint is not an address
    or this build of llama.cpp has no RPC, a DSparkError if no server answers.
    """
    with _lock:
        for endpoint in endpoints:
            if endpoint not in _connected:
                _add(endpoint)
                _connected.add(endpoint)


def is_connected() -> bool:
    """Whether this process has devices of other machines."""
    return bool(_connected)


def procedure(name: str) -> int:
    """The address of a function of llama.cpp's RPC; a UsageError if this build has no RPC."""
    registry = _registry(b"RPC")
    address = registry and _procedure(registry, name.encode())
    if not address:
        hint = f"Build it with RPC: {install_command('-DGGML_RPC=ON')}"
        raise UsageError("this build of llama.cpp has no RPC", hint)
    return int(address)


def _add(endpoint: str) -> None:
    found = _ADDRESS.fullmatch(endpoint)
    if not found or not 0 < int(found[1]) < 2**16:
        raise UsageError(f"rpc has {endpoint!r}, which is not HOST:PORT", "Correct the address.")
    add = _ADD_SERVER(procedure("ggml_backend_rpc_add_server"))
    _greet(endpoint)
    devices = add(endpoint.encode())
    if not devices:
        raise DSparkError(f"the RPC server {endpoint} has no device", "Start it with one.")
    _register(devices)


def _greet(endpoint: str) -> None:
    """Raise a `DSparkError` unless a free RPC server answers there."""
    host, _, port = endpoint.rpartition(":")
    try:
        with socket.socket(socket.AF_INET) as connection:  # as llama.cpp does
            connection.settimeout(_PATIENCE)
            connection.connect((host, int(port)))
            connection.sendall(_HELLO)
            answer = connection.makefile("rb").read(_ANSWER.size)
    except TimeoutError:
        problem = f"no answer from {endpoint} in {_PATIENCE:.0f} s"
        hint = "Check the address; an RPC server that has a client answers when that is gone."
        raise DSparkError(problem, hint) from None
    except OSError as error:
        problem = f"cannot connect to the RPC server {endpoint}: {error.strerror or error}"
        raise DSparkError(problem, "Start it there, or correct the address.") from None
    if len(answer) < _ANSWER.size or _ANSWER.unpack(answer)[0] != _ANSWER.size - 8:
        problem = f"{endpoint} is not an RPC server of this version of llama.cpp"
        raise DSparkError(problem, "Correct the address, or use one version on both machines.")
