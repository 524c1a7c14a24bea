"""The layers of the package, read from its import statements, those inside functions too."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "airstreams"

# From the bottom to the top. A module belongs to the longest name that it starts with.
LAYERS = (
    ("version", "errors", "percent", "plural", "estimate"),
    ("console",),
    ("files", "machine"),
    ("towers",),
    ("config", "old_keys"),
    ("old_keys",),
    ("recipe",),
    ("distributed",),
    ("data",),
    ("models.cpu_bfloat16", "models.checkpointing"),
    ("models.flow", "models.tvl1", "models.tvl1_cpu", "models.tvl1_gpu", "models.segmenter", "models.tower"),
    ("representations", "models.representations"),
    ("models",),
    ("runs",),
    ("teachers",),
    ("evaluation",),
    ("training",),
    ("inference",),
    ("experiments",),
    ("viewing",),
    ("api",),
    ("commands",),
    ("cli",),
    ("__init__", "__main__"),
)


def modules():
    """Each module's name below the package, such as `data.video`, with its file."""
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        yield ".".join(parts) if len(parts) == 1 else ".".join(parts).removesuffix(".__init__"), path


MODULES = dict(modules())


def imports(path):
    """The modules of the package that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    own = {name.removeprefix("airstreams").removeprefix(".") for name in names if name.split(".")[0] == "airstreams"}
    return {name if name in MODULES else name.rpartition(".")[0] or "__init__" for name in own}


def layer_of(module):
    found = [
        (len(name), number)
        for number, names in enumerate(LAYERS)
        for name in names
        if module == name or module.startswith(name + ".")
    ]
    assert found, f"{module} has no layer: add it to LAYERS"
    return max(found)[1]


def test_no_module_imports_from_a_higher_layer():
    upward = [
        f"{module} imports {imported}"
        for module, path in MODULES.items()
        for imported in sorted(imports(path))
        if layer_of(imported) > layer_of(module)
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: imports(path) for module, path in MODULES.items()}
    assert set(TopologicalSorter(graph).static_order()) == set(MODULES)  # raises CycleError, which names the circle
    assert "training.loop" in graph["api"]
    assert "data.sources" in graph["commands.check_data"]  # inside a function
