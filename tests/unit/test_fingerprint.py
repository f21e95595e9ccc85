from __future__ import annotations

import hashlib
import math

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
