"""The stubs describe the module: every name and keyword argument, and nothing else."""

import ast
import subprocess
import sys
from importlib import resources

import diffae
import pytest


def members(body):
    return {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def stub_tree():
    return ast.parse(resources.files(diffae).joinpath("__init__.pyi").read_text())


def test_stubs_and_module_have_the_same_names():
    assert resources.files(diffae).joinpath("py.typed").is_file()
    tree = stub_tree()
    stubs = {name for name in members(tree.body) if not name.startswith("_")}
    public = {name for name in dir(diffae) if not name.startswith("_")} - {"diffae"}
    assert stubs == public
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in ("Model", "Codes"):
            here = {name for name in vars(getattr(diffae, node.name)) if not name.startswith("_")}
            assert {name for name in members(node.body) if not name.startswith("_")} == here, node.name


def keywords_in_stubs():
    """Returns the keyword arguments of each call with **settings, by its name and, if there is one, its measure."""
    classes = {node.name: node for node in stub_tree().body if isinstance(node, ast.ClassDef)}

    def keys(name):
        bases = [base.id for base in classes[name].bases if base.id in classes]
        own = {node.target.id for node in classes[name].body if isinstance(node, ast.AnnAssign)}
        return own.union(*map(keys, bases))

    found = {}
    for node in ast.walk(stub_tree()):
        if isinstance(node, ast.FunctionDef) and node.args.kwarg:
            measures = [arg.annotation.slice.value for arg in node.args.args if arg.arg == "measure"]
            call = (node.name, *measures)
            assert call not in found
            found[call] = keys(node.args.kwarg.annotation.slice.id)
    return found


def test_stubs_and_calls_have_the_same_keyword_arguments(model):
    stubs = keywords_in_stubs()
    arguments = {
        "encode": [None],
        "decode": [None],
        "edit": [None, {}],
        "interpolate": [None, None, 2],
        "sample": [1],
        "variations": [None, 1],
        "train": [],
    }
    calls = {(name,): values for name, values in arguments.items()}
    calls |= {("evaluate", measure): [measure, "folder"] for measure in ("recon", "inversion", "z_usage")}
    assert stubs.keys() == calls.keys()
    for call, values in calls.items():
        function = getattr(diffae if call == ("train",) else model, call[0])
        with pytest.raises(TypeError, match="unexpected keyword argument") as raised:
            function(*values, nonsense=1)
        assert set(str(raised.value).partition("; there are ")[2].split(", ")) == stubs[call], call


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
