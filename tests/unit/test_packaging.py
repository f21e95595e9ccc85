"""The wheel has one top-level name, and the stages are inside."""

from __future__ import annotations

import subprocess
import sys
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
