"""Devices of other machines: who is asked, what is refused, and which model gets them."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial

import llama_cpp
import pytest

from dspark_gguf import load_pair
from dspark_gguf.config import ModelOptions
from dspark_gguf.engine import library, rpc
from dspark_gguf.engine.facts import option_facts
from dspark_gguf.errors import DSparkError, UsageError
from tests.children import PROGRAM, begun, run, run_python
from tests.tiny.test_scripts import SCRIPTS

HAS_RPC = bool(llama_cpp.llama_supports_rpc())
#: What a server of this version answers: size, version, capabilities.
WELCOME = struct.pack("<Q3B25x", 28, 7, 0, 0)


@pytest.fixture
def asked(monkeypatch):
    """llama.cpp's side: what it was told, in order; it has a device for every address."""
    told = []

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)
    def add(endpoint):
        told.append(("add", endpoint.decode()))
        return 0 if endpoint.endswith(b":2") else 77

    monkeypatch.setattr(rpc, "_registry", lambda name: 5 if name == b"RPC" else 0)
    address = partial(ctypes.cast, add, ctypes.c_void_p)  # keeps the callback, too
    monkeypatch.setattr(rpc, "_procedure", lambda registry, name: address().value)
    monkeypatch.setattr(rpc, "_register", lambda devices: told.append(("register", devices)))
    monkeypatch.setattr(rpc, "_connected", set())
    return told


@contextmanager
def answering(answer):
    """A server on this machine that says `answer` to each client; None: nothing, for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            held = []
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                held.append(client)
                if answer is not None:
                    assert client.recv(99) == struct.pack("<BQ24x", 14, 24)
                    client.sendall(answer)
                    client.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_a_server_is_added_once(asked):
    """Whoever names it again, the draft or another pair, shares its devices."""
    with answering(WELCOME) as endpoint:
        rpc.connect([endpoint, endpoint])
        rpc.connect([endpoint])
    assert asked == [("add", endpoint), ("register", 77)]


def test_a_build_without_rpc(tiny_files, monkeypatch):
    """It is said before anything is loaded, with what to install."""
    monkeypatch.setattr(rpc, "_registry", lambda name: None)
    with pytest.raises(UsageError, match=r"no RPC\. .*-DGGML_RPC=ON.* llama-cpp-python$"):
        load_pair(tiny_files.target, target_options=ModelOptions(rpc=("10.0.0.2:50052",)))


@pytest.mark.skipif(HAS_RPC, reason="this build has RPC")
def test_the_command_line_without_rpc(dspark, tiny_files):
    result = dspark("run", "-m", tiny_files.target, "--rpc", "10.0.0.2:50052", "Hello")
    assert result.exit_code == 2
    assert "has no RPC" in result.stderr


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\nThis is a web server.", "not an RPC server of this"),
        (b"", "not an RPC server of this version"),
        (None, "no answer from .* in 0 s"),
    ],
    ids=["another program", "closed", "busy"],
)
def test_llama_cpp_never_talks_to_what_does_not_answer(asked, monkeypatch, answer, said):
    """It would end this process, or wait for ever."""
    monkeypatch.setattr(rpc, "_PATIENCE", 0.2)
    with answering(answer) as endpoint, pytest.raises(DSparkError, match=said):
        rpc.connect([endpoint])
    assert asked == []
    assert not rpc.is_connected()


def test_nobody_is_there(asked):
    """A closed port, and a name that nobody knows."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"127.0.0.1:{server.getsockname()[1]}"
    for endpoint in (closed, "no-such-host.invalid:50052"):
        with pytest.raises(DSparkError, match=rf"cannot connect to the RPC server {endpoint}: "):
            rpc.connect([endpoint])
    assert asked == []


def test_a_server_without_a_device(asked, monkeypatch):
    """Nothing to register; the next one is asked again."""
    monkeypatch.setattr(rpc, "_greet", lambda endpoint: None)
    for _ in range(2):
        with pytest.raises(DSparkError, match="RPC server host:2 has no device"):
            rpc.connect(["host:2"])
    assert asked == [("add", "host:2")] * 2


@pytest.mark.parametrize(
    "address", ["host", "host:", ":1", "host:0", "host:65536", "a b:1", "a:1:2"]
)
def test_no_address(dspark, tiny_files, address):
    result = dspark("run", "-m", tiny_files.target, "--rpc", address, "Hello")
    assert result.exit_code == 2
    assert f"rpc has {address!r}, which is not HOST:PORT" in result.stderr


def test_costs_belong_to_the_servers():
    """Only where there are any: what was learned without them stays known."""
    assert "rpc" not in option_facts(ModelOptions())
    assert option_facts(ModelOptions(rpc=("a:1",)))["rpc"] == ["a:1"]


def test_a_model_has_only_its_own_servers(monkeypatch):
    """llama.cpp would take those of all models in this process, and a draft would be far away."""
    names = {"CPU": (0, ""), "RPC0": (1, "a:1"), "RPC1": (1, "b:2"), "CUDA0": (1, "H100")}
    monkeypatch.setattr(library, "device_pointers", lambda: {name: name for name in names})
    monkeypatch.setattr(library, "_dev_type", lambda pointer: names[pointer][0])
    monkeypatch.setattr(library, "_description", lambda pointer: names[pointer][1])
    assert library.gpu_names() == ["CUDA0"]
    assert library.gpu_names(["b:2"]) == ["RPC1", "CUDA0"]


@pytest.fixture
def server():
    """Another process, which computes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    with begun(sys.executable, SCRIPTS / "rpc_server.py", endpoint):
        host, port = endpoint.split(":")
        for _ in range(200):
            with socket.socket() as attempt:
                if attempt.connect_ex((host, int(port))) == 0:
                    break
            time.sleep(0.1)
        yield endpoint


@pytest.mark.skipif(not HAS_RPC, reason="this build has no RPC")
def test_two_processes(tiny_files, server):
    """The target over there, the draft here: the same text as in one process."""
    words = ["run", "--json", "-m", tiny_files.target, "-d", tiny_files.draft, "--temp", 0]
    words += ["--spec", "on", "-n", 24, "-c", 128, "aaa bbb"]
    here, there = (run(*PROGRAM, *words, *more, env=os.environ) for more in ([], ["--rpc", server]))
    assert there.returncode == 0, there.stderr
    assert "RPC0" in there.stderr
    texts = [json.loads(each.stdout)["text"] for each in (here, there)]
    assert texts[0] == texts[1]


@pytest.mark.skipif(not HAS_RPC, reason="this build has no RPC")
def test_the_target_alone(tiny_files, server):
    """The draft stays here; in a process that ends before the server."""
    program = """
import sys
from dspark_gguf import ModelOptions, load_pair
with load_pair(*sys.argv[1:3], target_options=ModelOptions(rpc=(sys.argv[3],))) as pair:
    print(pair.target.place, pair.draft_cache().model.place)
"""
    ran = run_python("-c", program, tiny_files.target, tiny_files.draft, server)
    assert ran.stdout == "RPC0 CPU\n", ran.stderr
