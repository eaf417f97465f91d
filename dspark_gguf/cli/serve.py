"""``dspark-gguf serve``."""

from __future__ import annotations

from importlib.util import find_spec

import click

from dspark_gguf.cli.options import ALL, SectionedCommand, settings_options
from dspark_gguf.cli.start import open_pair, say
from dspark_gguf.config import Settings
from dspark_gguf.errors import UsageError


@click.command(cls=SectionedCommand)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True,
              help="Port; 0: any free one.")  # fmt: skip
@click.option("--api-key", envvar="DSPARK_API_KEY", show_envvar=True, metavar="KEY",
              help="Require this key from clients.")  # fmt: skip
@click.option("--parallel", type=click.IntRange(min=1), metavar="N",
              help="Maximum answers at once. Default: as many as pay.")  # fmt: skip
@click.option("--queue", type=click.IntRange(min=0), default=64, show_default=True, metavar="N",
              help="Maximum waiting requests; others get 429.")  # fmt: skip
@settings_options(*ALL, without=("chat.context_shift", "chat.markdown"))
def serve(
    host: str,
    port: int,
    api_key: str | None,
    parallel: int | None,
    queue: int,
    settings: Settings,
    verbose: bool,
) -> None:
    """Serve the models over HTTP, as OpenAI and Anthropic do.

    Sampling options are defaults that requests can override. Ctrl-C ends the server, and streams
    that do not finish soon.
    """
    for package in ("fastapi", "uvicorn"):
        if find_spec(package) is None:
            hint = 'Install it: pip install "dspark-gguf[serve]".'
            raise UsageError(f"the server needs the package {package}", hint)
    if api_key is not None and not api_key.strip():
        raise UsageError("the API key is empty", "Give another, or leave --api-key out.")

    from dspark_gguf.serve.app import serve_pair

    with open_pair(settings, verbose, conversations=parallel or 16) as pair:
        serve_pair(pair, settings, host, port, api_key, parallel, queue, say)
