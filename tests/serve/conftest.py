"""Fixtures of the server's tests; without its packages, there are none."""

from __future__ import annotations

import pytest

from tests.tiny_gguf import Tiny, write_llama

try:
    import fastapi  # noqa: F401
    import httpx  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError:
    collect_ignore_glob = ["test_*.py"]
else:
    from dspark_gguf.serve import engine
    from tests.serve.running import THINKING, running


@pytest.fixture(scope="session", autouse=True)
def each_pass_is_handed_out():
    """Tiny models say all in one moment, which would be one event."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_UPDATE_SECONDS", 0.0)
        yield


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory):
    """A target whose template can open a thought, and a draft that often agrees."""
    folder = tmp_path_factory.mktemp("serve")
    tiny = Tiny(context=1024, template=THINKING)
    return write_llama(folder / "target.gguf", tiny), write_llama(
        folder / "draft.gguf", tiny.but(noise=0.05)
    )


@pytest.fixture(scope="session")
def server(tiny_pair):
    with running(tiny_pair) as one:
        yield one


@pytest.fixture
def client(server):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one
