"""The package's layers: imports point down only, and nothing imports in a circle.

Read from the code itself, so that imports for type checkers and inside of functions count too.
"""

import ast
from pathlib import Path

import pytest

import spacy_llmner

ROOT = Path(spacy_llmner.__file__).parent
COMPONENTS = ("ember_probe", "padellm_ner", "ra_it_ner", "el4ner_ensemble")
LAYERS = (
    ("errors", "util"),
    ("models",),
    ("llm",),
    ("corpora", "decoding", "pipeline", "retrieval"),
    COMPONENTS,
    ("serve", "scale"),
    ("cli",),
    ("__main__",),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def module_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(module):
    """RETURNS (Set[str]): The modules of the package that a module imports from."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            start = ".".join(above) if node.level else ""
            source = ".".join(part for part in (start, node.module) if part)
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                found.update({whole if whole in MODULES else source} & set(MODULES))
    return found - {module}


def part_of(module):
    """RETURNS (str): The folder or module right below the package; "" is the front door."""
    return module.split(".")[1] if "." in module else ""


def test_every_module_is_in_a_layer():
    assert {part_of(module) for module in MODULES} - {""} <= set(LEVEL)


@pytest.mark.parametrize("module", [m for m in MODULES if part_of(m)])
def test_imports_point_down(module):
    part = part_of(module)
    for other in imports(module):
        assert part_of(other), f"{module} imports from the front door"
        assert part_of(other) == part or LEVEL[part_of(other)] < LEVEL[part], f"{module} -> {other}"


def test_no_circle():
    remaining = {module: imports(module) for module in MODULES}
    while remaining:
        free = [module for module, needs in remaining.items() if not needs & set(remaining)]
        assert free, f"in a circle, or import from one: {sorted(remaining)}"
        for module in free:
            del remaining[module]


def test_class_names_mean_one_thing():
    seen = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert node.name not in seen, f"{node.name} in {module} and {seen[node.name]}"
                seen[node.name] = module
