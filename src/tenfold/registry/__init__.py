"""The model registry: versions and aliases in MLflow, the gate, and promotions that a ledger guards."""

from __future__ import annotations

from tenfold.registry.decision import Decision, decide
from tenfold.registry.ledger import Entry, Ledger
from tenfold.registry.models import CHALLENGER, CHAMPION, ENCODER_TAG, WEIGHTS_TAG, Registered, Registry
from tenfold.registry.promotion import Outcome, promote, settle

__all__ = ["CHALLENGER", "CHAMPION", "ENCODER_TAG", "WEIGHTS_TAG", "Decision", "Entry", "Ledger", "Outcome",
           "Registered", "Registry", "decide", "promote", "settle"]  # fmt: skip
