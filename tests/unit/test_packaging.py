"""The wheel has one top-level name, the stages are inside, and no module escapes the import contracts."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, files.split("\0")):
        path = ROOT / name
        if not path.is_symlink() and not path.exists():
            continue  # deleted, not committed yet
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            target.symlink_to(path.readlink())
        else:
            target.write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_has_exactly_one_top_level_name(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tenfold"}


def test_the_wheel_holds_stages_presets_template_and_golden_pipeline(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for name in (
        "tenfold/components/pretrain/stage.py", "tenfold/components/pretrain/component.py",
        "tenfold/pipelines/semi_supervised.py", "tenfold/pipelines/presets/digits.yaml",
        "tenfold/pipelines/compiled/semi_supervised.yaml", "tenfold/pipelines/compiled/retrain.yaml",
        "tenfold/report/report.html.j2", "tenfold/report/page.html.j2",
    ):  # fmt: skip
        assert name in names


def test_importing_the_library_imports_neither_kfp_nor_torch_nor_mlflow() -> None:
    code = (
        "import sys, tenfold.config, tenfold.data.build, tenfold.components.preflight.stage, "
        "tenfold.components.shard.stage, tenfold.components.promote.stage, tenfold.components.novelty.stage, "
        "tenfold.components.preflight.champion; "
        "sys.exit(' '.join({'kfp', 'torch', 'mlflow'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def modules(folder: str) -> set[str]:
    """Return the packages and modules in a folder of src/tenfold, by their whole names."""
    root = ROOT / "src/tenfold" / folder
    found = {each.parent for each in root.glob("*/__init__.py")} | {*root.glob("*.py")} - {root / "__init__.py"}
    return {".".join(each.relative_to(ROOT / "src").with_suffix("").parts) for each in found}


@pytest.mark.parametrize(
    ("contract", "field", "folder", "exceptions"),
    [
        ("Only pipelines, components and the command line know kfp", "source_modules", "",
         {"tenfold.pipelines", "tenfold.components", "tenfold.cli"}),
        ("Only tracking, the registry and serving talk to MLflow", "source_modules", "",
         {"tenfold.tracking", "tenfold.registry", "tenfold.serving"}),
        ("A component imports no other one", "modules", "components", set()),
    ],
)  # fmt: skip
def test_an_import_contract_holds_for_every_module_on_disk_but_those_it_names(
    contract: str, field: str, folder: str, exceptions: set[str]
) -> None:
    assert exceptions <= modules("")
    assert set(listed(contract, field)) == modules(folder) - exceptions


def test_the_contract_on_stages_holds_for_every_component() -> None:
    stages = {f"{each}.stage" for each in modules("components")}
    assert set(listed("A stage's work imports no kfp", "source_modules")) == stages


def listed(contract: str, field: str) -> list[str]:
    """Return the modules that an import contract of pyproject.toml lists."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (found,) = [each for each in contracts if each["name"] == contract]
    return list(found[field])


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "self_train", "distill"])
def test_a_training_stage_loads_nothing_that_takes_seconds_and_that_it_may_not_need(stage: str) -> None:
    """Each task of a run is a process of its own, and of a distributed one each rank."""
    heavy = ["sklearn", "pandas", "timm", "torchvision", "torch._dynamo", "torch.distributed.tensor", "mlflow", "kfp"]
    script = f"import sys, tenfold.components.{stage}.stage\nprint([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
