from __future__ import annotations

import hashlib
import math
import os
import shutil
from pathlib import Path

import pytest

from tenfold.fingerprint import canonical_json, digest, fingerprint, source_digest


def test_canonical_json_has_sorted_keys_and_no_spaces() -> None:
    assert canonical_json({"b": [1, 2.5], "a": {"é": None}}) == '{"a":{"é":null},"b":[1,2.5]}'


def test_canonical_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": math.nan})


def test_a_digest_is_the_sha256_of_text_or_bytes() -> None:
    assert digest("é") == digest("é".encode()) == hashlib.sha256("é".encode()).hexdigest()


def test_a_fingerprint_changes_with_everything_that_decides_the_result() -> None:
    base = fingerprint("distill", "{}", {"dataset": "d", "teacher": None}, "code")
    assert base == fingerprint("distill", "{}", {"teacher": None, "dataset": "d"}, "code")
    others = {
        fingerprint("finetune", "{}", {"dataset": "d", "teacher": None}, "code"),
        fingerprint("distill", '{"a":1}', {"dataset": "d", "teacher": None}, "code"),
        fingerprint("distill", "{}", {"dataset": "e", "teacher": None}, "code"),
        fingerprint("distill", "{}", {"dataset": "d", "teacher": "t"}, "code"),
        fingerprint("distill", "{}", {"dataset": "d"}, "code"),
        fingerprint("distill", "{}", {"dataset": "d", "teacher": None}, "other"),
    }
    assert len(others | {base}) == 7


def test_the_source_digest_is_a_sha256_and_the_same_again() -> None:
    first = source_digest()
    source_digest.cache_clear()
    assert first == source_digest()
    assert len(first) == 64


def test_the_code_digest_hangs_on_every_source_file_wherever_the_package_lies(tmp_path: Path) -> None:
    import subprocess
    import sys

    import tenfold

    # below a folder called "presets", which must not count as one of the package's own
    package = tmp_path / "presets" / "tenfold"
    shutil.copytree(Path(tenfold.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from tenfold.fingerprint import source_digest; print(source_digest())"

    def digest_there() -> str:
        environment = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    before = digest_there()
    for name in ("losses/nt_xent.py", "components/pretrain/stage.py", "pipelines/semi_supervised.py"):
        file = package / name
        file.write_text(file.read_text() + "\n# changed\n")
        assert digest_there() != before, name
        before = digest_there()
    preset = package / "pipelines" / "presets" / "digits.yaml"
    preset.write_text(preset.read_text() + "\n# changed\n")
    assert digest_there() == before
