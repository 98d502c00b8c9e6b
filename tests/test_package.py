"""The package as a whole: every module loads, imports point one way, what only declares does not need torch."""

import ast
import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import reformer_lab

ROOT = Path(reformer_lab.__file__).parent
KERNELS = [f"reformer_lab.ops.lsh_attention.triton.{name}" for name in ("attention", "blocks", "sorting")]
EXTRAS = {
    **dict.fromkeys(KERNELS, "triton"),
    "reformer_lab.integrations.huggingface_cache": "transformers",
    "reformer_lab.integrations.huggingface_model": "transformers",
    "reformer_lab.integrations.fastai": "fastai",
    "reformer_lab.runner.cluster": "ray",
}
"""Modules that import an extra, and are themselves imported when they are used."""
MODULES = sorted(
    module.name for module in pkgutil.walk_packages([str(ROOT)], "reformer_lab.")
    if not module.name.endswith("__main__") and (module.name not in EXTRAS or importlib.util.find_spec(EXTRAS[module.name]))
)  # fmt: skip
MAY_IMPORT = {
    "ops": {"ops"},
    "layers": {"ops", "layers"},
    "models": {"ops", "layers", "models"},
    "data": {"data"},
    "evaluation": {"ops", "layers", "models", "data", "training", "evaluation"},
    "training": {"ops", "layers", "models", "data", "training", "evaluation"},
    "reporting": {"reporting", "experiments"},
    "experiments": {"ops", "layers", "models", "data", "training", "reporting", "experiments"},
    "benchmarks": {"ops", "layers", "models", "data", "training", "benchmarks"},
    "integrations": {"ops", "layers", "models", "data", "evaluation", "integrations"},
    "runner": {"models", "data", "training", "evaluation", "benchmarks", "reporting", "experiments", "runner"},
}
"""Folders that a folder may import from, beside the modules of the package itself; the command line may import all."""
TORCH_FREE = (
    "reformer_lab", "reformer_lab.cli.main", "reformer_lab.cli.list", "reformer_lab.models.config",
    "reformer_lab.models.presets", "reformer_lab.data.config", "reformer_lab.training.config", "reformer_lab.training.ending",
    "reformer_lab.experiments.registry", "reformer_lab.reporting.records", "reformer_lab.reporting.page",
)  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_every_module_loads(name: str) -> None:
    importlib.import_module(name)


def imported_folders(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    folders = {name.split(".")[1] for name in names if name.startswith("reformer_lab.")}
    return folders - {"errors", "files", "folders", "locks", "seeds", "terminal"}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_one_way(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        assert imported_folders(path) <= MAY_IMPORT[folder], path


@pytest.mark.parametrize("folder", ["ops", "layers"])
def test_the_parts_need_torch_alone(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        allowed = {"torch", "reformer_lab"} | set(sys.stdlib_module_names)
        if path in [ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py") for name in KERNELS]:
            allowed.add("triton")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, path
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.split(".")[0] in allowed, path


@pytest.mark.parametrize("name", TORCH_FREE)
def test_what_only_declares_does_not_load_torch(name: str) -> None:
    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
