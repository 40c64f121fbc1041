"""The stubs describe the module: every name, and nothing else."""

import ast
import subprocess
import sys
from importlib import resources

import diffae


def members(body):
    return {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_stubs_and_module_have_the_same_names():
    package = resources.files(diffae)
    assert package.joinpath("py.typed").is_file()
    tree = ast.parse(package.joinpath("__init__.pyi").read_text())
    stubs = {name for name in members(tree.body) if not name.startswith("_")}
    public = {name for name in dir(diffae) if not name.startswith("_")} - {"diffae"}
    assert stubs == public
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in ("Model", "Codes"):
            here = {name for name in vars(getattr(diffae, node.name)) if not name.startswith("_")}
            assert {name for name in members(node.body) if not name.startswith("_")} == here, node.name


def test_everything_has_documentation():
    for name in dir(diffae):
        thing = getattr(diffae, name)
        if name.startswith("_") or name == "diffae":
            continue
        assert thing.__doc__, name
        for member in vars(thing) if isinstance(thing, type) else []:
            if not member.startswith("_"):
                assert getattr(thing, member).__doc__, f"{name}.{member}"


def test_the_import_is_quick():
    script = "import numpy, time; start = time.perf_counter(); import diffae; print(time.perf_counter() - start)"
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) < 0.2
