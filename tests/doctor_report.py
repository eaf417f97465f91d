"""What the doctor looks at, and what it printed."""

import json

SMALL = ("-c", 256, "--no-learn")
MACHINE = {"versions", "build", "devices", "first pass"}
FILES = {"models", "target", "draft", "memory"}
ALL = MACHINE | FILES | {"load", "pair", "costs", "speed", "logits", "threads", "attention"}


def told(result):
    """What `doctor --json` printed, by section."""
    tree = json.loads(result.stdout)
    assert tree["well"] == (result.exit_code == 0)
    assert tree["exit_code"] == result.exit_code
    return tree["sections"]
