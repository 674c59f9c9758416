"""The promises of the code base about itself: layers, sizes, imports, forbidden calls."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import consilience

ROOT = Path(consilience.__file__).parent
LAYERS = (
    "typing errors data io simulators blocks models train predict plots analysis workflow report catalogue config "
    "studies cli"
).split()
FILES = sorted(ROOT.rglob("*.py"))

# third-party module -> the only places that may import it
CONFINED = {
    "matplotlib": ("plots/",),
    "zuko": ("blocks/flows.py",),
    "astropy.io": ("io/",),
    "pyarrow": ("io/", "data/samples.py"),  # Samples.to_arrow, inside the function
    "h5py": ("io/",),
    "hats": ("io/",),
}
NEVER = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CONSTRUCTORS = {"__init__", "__new__", "modality"}  # modality: the checked constructor of Modality, field by field


def name_of(path: Path) -> str:
    return ".".join(("consilience", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {name_of(path): path for path in FILES}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, except what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from runtime_nodes(child)


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Full names of what is imported, `from a.b import c` as a.b.c."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_modules(names: Iterator[str]) -> set[str]:
    """The modules of this package behind imported names (a class stands for its module)."""
    found = {name if name in MODULES else name.rpartition(".")[0] for name in names if name.startswith("consilience")}
    return found & set(MODULES)


def layer_of(module: str) -> str:
    return module.split(".")[1]


def under(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    first = node.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = first.end_lineno - first.lineno + 1 if is_docstring and isinstance(first.value.value, str) else 0
    return node.end_lineno - node.lineno + 1 - docstring


def arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [argument.arg for argument in every if argument.arg not in ("self", "cls")]


each_file = pytest.mark.parametrize("path", FILES, ids=relative)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"consilience"}))  # the package itself names every layer
def test_imports_only_from_layers_to_the_left(module):
    layer = layer_of(module)
    assert layer in LAYERS, f"{module} is in no layer"
    # what only a type checker reads counts here: a type is a dependency too
    right = [
        other
        for other in own_modules(imported(ast.walk(tree_of(MODULES[module]))))
        if other != "consilience" and LAYERS.index(layer_of(other)) > LAYERS.index(layer)
    ]
    assert not right, f"{module} imports {right} from layers to its right"


def test_no_import_cycle():
    edges = {
        name: own_modules(imported(runtime_nodes(tree_of(path)))) - {name, "consilience"}
        for name, path in MODULES.items()
        if name != "consilience"
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


@each_file
def test_confined_packages_are_imported_only_where_they_belong(path):
    for name in imported(runtime_nodes(tree_of(path))):
        for package, places in CONFINED.items():
            if under(name, package):
                assert relative(path).startswith(places), f"{name} belongs in {places}"


@each_file
def test_nothing_is_ever_unpickled(path):
    wrong = {name for name in imported(ast.walk(tree_of(path))) if name.split(".")[0] in NEVER}
    assert not wrong
    for name, call in calls(path):
        assert name not in ("torch.load", "torch.save", "eval", "exec"), f"line {call.lineno}: {name}"
        for keyword in call.keywords:
            allows = keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
            assert not allows, f"line {call.lineno}: allow_pickle"


@each_file
def test_no_guessing_no_printing_no_silent_failure(path):
    named = {name for name, _ in calls(path)}
    for name, call in calls(path):
        assert name != "hasattr", f"line {call.lineno}: hasattr"
        assert name != "print" or relative(path) == "cli.py", f"line {call.lineno}: print"
        assert name not in ("np.random.seed", "random.seed"), f"line {call.lineno}: {name}"
        # torch's global seed is set only where the caller's state is put back
        assert name != "torch.manual_seed" or "torch.random.fork_rng" in named, f"line {call.lineno}: {name}"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = "" if node.type is None else ast.unparse(node.type)
            broad = {"", "Exception", "BaseException"} & set(caught.strip("()").replace(" ", "").split(","))
            assert not broad, f"line {node.lineno}: except {caught}"


@each_file
def test_sizes(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{relative(path)} has {lines} lines"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert code_lines(node) <= 60, f"{node.name} has {code_lines(node)} lines of code"
            names = arguments(node)
            # an option of a command is an argument of its function
            exempt = node.name in CONSTRUCTORS or any("app.command" in ast.unparse(d) for d in node.decorator_list)
            assert len(names) <= 7 or exempt, f"{node.name} takes {len(names)} arguments: {names}"


@each_file
def test_every_module_says_what_it_offers(path):
    assert ast.get_docstring(tree_of(path)), f"{relative(path)} has no docstring"
    assert path.name not in ("utils.py", "helpers.py", "misc.py", "common.py")
    assigned = [
        ast.literal_eval(node.value)
        for node in tree_of(path).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    if path.name == "__init__.py" and not assigned:
        return
    assert len(assigned) == 1, f"{relative(path)} needs one __all__"
    assert len(set(assigned[0])) == len(assigned[0])
    missing = [name for name in assigned[0] if name not in dir(importlib.import_module(name_of(path)))]
    assert not missing, f"{relative(path)} offers {missing}, which it lacks"


def test_the_checks_see_what_they_look_for(tmp_path):
    """A check that cannot fail is none: each helper finds its own offence."""
    source = tmp_path / "a.py"
    source.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pyarrow\n"
        "def f(a, b, *, c):\n    '''Doc.\n\n    More.\n    '''\n    import consilience.data.schema\n"
        "    from consilience.io import read\n    return hasattr(a, b)\n"
    )
    tree = tree_of(source)
    assert "pyarrow" in set(imported(ast.walk(tree)))
    assert "pyarrow" not in set(imported(runtime_nodes(tree)))
    assert own_modules(imported(ast.walk(tree))) == {"consilience.data.schema", "consilience.io"}
    assert [name for name, _ in calls(source)] == ["hasattr"]
    function = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    assert code_lines(function) == 4
    assert arguments(function) == ["a", "b", "c"]


@pytest.mark.parametrize("heavy", ["torch", "pydantic", "numpy", "matplotlib", "astropy", "pyarrow"])
def test_importing_the_package_imports_nothing_heavy(heavy):
    code = f"import sys, consilience; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
