"""The order of the modules, and what an import may cost."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import dspark_gguf
from tests.children import run_python

ROOT = Path(dspark_gguf.__file__).parent

#: Lowest first: a module imports only from lines above its own, or from its own folder.
ORDER = """
errors signals progress visible
paths dist arrays
naming
hub
settings_part
model_options
config
settings_files
records
tally
engine.protocol
sampling noise
verify
calibration
figures
attention_costs costs_record switch_costs
cost
learned_costs
learned schedule
engine
speedup
ending
draft
assemble
generation
decoder
prompt_cache
slots together
admission
batching
catalog
dropin
chat
llm_plugin ray
measure
doctor
train
serve
testing
cli
__main__
""".strip().splitlines()

#: Not needed before a command does its work, and slow to load.
HEAVY = (
    "llama_cpp", "numpy", "rich", "prompt_toolkit", "huggingface_hub", "fastapi",
    "uvicorn", "starlette", "jinja2", "torch", "gguf",
)  # fmt: skip


def modules():
    """Name without the package -> path, for every module but the package itself."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


MODULES = modules()


def rank(name):
    """Line of `ORDER` that a module stands on; its folder's where it has none of its own."""
    lines = {word: k for k, line in enumerate(ORDER) for word in line.split()}
    return lines[name] if name in lines else lines[name.split(".")[0]]


class Imports(ast.NodeVisitor):
    """Full names that a module imports, inside functions too; `typing`: for type checkers too."""

    def __init__(self, typing):
        self.names, self.typing = set(), typing

    def visit_If(self, node):
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for part in (*(node.body if self.typing else ()), *node.orelse):
                self.visit(part)
        else:
            self.generic_visit(node)

    def visit_Import(self, node):
        self.names |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node):
        assert node.level == 0, "imports are absolute, so that they can be searched for"
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            self.names.add(full if own(full) in MODULES else node.module)


def own(name):
    return name.removeprefix("dspark_gguf.")


def imports(source, typing=False):
    visitor = Imports(typing)
    visitor.visit(ast.parse(source))
    return visitor.names


def ours(name):
    """The modules of this package that module `name` imports, be it for type checkers alone."""
    names = imports(MODULES[name].read_text(encoding="utf-8"), typing=True)
    return {own(other) for other in names if other.startswith("dspark_gguf.")}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_above_it(name):
    """So a reader can start at the top of the list and never needs what comes later."""
    folder = name.split(".")[0]
    for other in ours(name):
        beside = other.split(".")[0] == folder and rank(other) == rank(name)
        assert rank(other) < rank(name) or beside, f"{name} imports {other}"


def test_no_two_modules_import_each_other():
    """Inside a folder there is no fixed order, but there is one: no cycle, by any detour."""
    left = {name: ours(name) & MODULES.keys() for name in MODULES}
    while left:
        ready = [name for name, needed in left.items() if not needed & left.keys()]
        assert ready, f"a cycle among {sorted(left)}"
        for name in ready:
            del left[name]


@pytest.mark.parametrize("name", MODULES)
def test_only_the_engine_and_the_drop_in_know_llama_cpp(name):
    """What llama.cpp changes from version to version is met in one place."""
    if name.split(".")[0] not in ("engine", "dropin"):
        names = imports(MODULES[name].read_text(encoding="utf-8"))
        assert not [other for other in names if other.split(".")[0] == "llama_cpp"]


def test_the_reader_of_imports_misses_none():
    """Inside functions, of submodules, in an else; type checkers' imports only where asked."""
    source = """
from typing import TYPE_CHECKING
import llama_cpp._ggml as x
from dspark_gguf.engine import library
from dspark_gguf.config import Settings
if TYPE_CHECKING:
    from dspark_gguf.decoder import Decoder
else:
    import numpy
def f():
    from dspark_gguf.catalog import load_pair
"""
    found = {
        "typing", "llama_cpp._ggml", "dspark_gguf.engine.library", "dspark_gguf.config", "numpy",
        "dspark_gguf.catalog",
    }  # fmt: skip
    assert imports(source) == found
    assert imports(source, typing=True) == found | {"dspark_gguf.decoder"}


HELP = """
from dspark_gguf.cli import main
try:
    main(["--help"])
except SystemExit as stop:
    assert not stop.code, stop.code
"""
COMMAND_HELP = HELP.replace("--help", 'run", "--help')


@pytest.mark.parametrize("program", ["import dspark_gguf", HELP, COMMAND_HELP])
def test_import_and_help_load_nothing_heavy(program):
    """`--help` answers at once; llama.cpp alone takes a second to load on some machines."""
    check = f"import sys\nprint('LOADED', *sorted(set(sys.modules) & set({HEAVY!r})))"
    done = run_python("-c", f"{program}\n{check}")
    assert done.returncode == 0, done.stderr
    output = done.stdout
    assert output.splitlines()[-1] == "LOADED"
    assert program == "import dspark_gguf" or "Usage:" in output
