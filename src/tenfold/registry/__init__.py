"""The model registry: versions and aliases in MLflow, the gate, and promotions that a ledger guards."""

from __future__ import annotations

from tenfold.registry.decision import Check, Decision, decide
from tenfold.registry.desk import Desk
from tenfold.registry.ledger import By, Entry, Ledger
from tenfold.registry.models import (
    APPROVAL_TAG,
    CHALLENGER,
    CHAMPION,
    ENCODER_TAG,
    GATE_TAG,
    TEST_SPLIT_TAG,
    WEIGHTS_TAG,
    Registered,
    Registry,
)
from tenfold.registry.promotion import Outcome, promote, settle
from tenfold.registry.results import Results, judge

__all__ = ["APPROVAL_TAG", "CHALLENGER", "CHAMPION", "ENCODER_TAG", "GATE_TAG", "TEST_SPLIT_TAG", "WEIGHTS_TAG", "By",
           "Check", "Decision", "Desk", "Entry", "Ledger", "Outcome", "Registered", "Registry", "Results", "decide",
           "judge", "promote", "settle"]  # fmt: skip
