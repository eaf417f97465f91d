"""A real server on a free port, with tiny models."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from time import monotonic, sleep

import httpx

from dspark_gguf import ModelOptions, Sampling, load_pair
from dspark_gguf.config import DraftOptions, Settings, Speculation
from dspark_gguf.serve.app import make_server
from dspark_gguf.serve.engine import Engine
from dspark_gguf.serve.service import Service
from tests.crowd import EXACT

#: Random models repeat themselves and end early unless told not to.
LIVELY = Sampling(temperature=0.8, repeat_penalty=1.5, repeat_last_n=32, ignore_eos=True, seed=1)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking %}<think>\n"
    "{% endif %}"
)


class Running:
    """A server in a thread."""

    def __init__(self, pair, settings, **options):
        key, most, queue = (options.get(k) for k in ("key", "parallel", "queue"))
        self.pair = pair
        self.engine = Engine(pair, settings.speculation, most or 4, 64 if queue is None else queue)
        self.service = Service(pair, settings, self.engine)
        ready = threading.Event()
        addresses = []

        def note(address):
            addresses.append(address)
            ready.set()

        self.server = make_server(self.service, "127.0.0.1", 0, key, note)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve()))
        self.thread.start()
        assert ready.wait(20)
        self.url = addresses[0]
        headers = {"Authorization": f"Bearer {key}".encode()} if key else {}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def close(self):
        self.http.close()
        self.server.should_exit = True
        self.thread.join(20)
        self.engine.close()
        self.service.close()
        assert not self.thread.is_alive()

    def slowed(self, seconds):
        """Each pass takes so much longer, until the event that this returns is set."""
        step, done = self.engine.batcher.step, threading.Event()

        def slowly():
            done.wait(seconds)
            return step()

        self.engine.batcher.step = slowly
        return done

    def chat(self, text="hello", **body):
        messages = [{"role": "user", "content": text}]
        return self.http.post("/v1/chat/completions", json={"messages": messages, **body})

    def until(self, condition, seconds=10):
        """Wait for what another thread does."""
        ends = monotonic() + seconds
        while not condition():
            assert monotonic() < ends, "it did not come about"
            sleep(0.01)

    def is_idle(self):
        return self.engine.running == 0 and self.engine.waiting == 0


@contextmanager
def running(files, conversations=4, n_ctx=1024, settings=None, **options):
    always = Speculation(mode="on", draft_min_prob=0.0, draft_max=3, learn=False)
    settings = settings or Settings(sampling=LIVELY, speculation=always)
    with load_pair(
        *files,
        target_options=ModelOptions(n_ctx=n_ctx, **EXACT),
        draft_options=DraftOptions(**EXACT),
        conversations=conversations,
    ) as pair:
        server = Running(pair, settings, **options)
        try:
            yield server
        finally:
            server.close()
