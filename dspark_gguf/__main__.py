"""``python -m dspark_gguf``: the commands, where the script's folder is not on the path."""

from dspark_gguf.cli import main

main(prog_name="dspark-gguf")
