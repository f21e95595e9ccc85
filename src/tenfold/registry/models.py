"""One registered model of MLflow's registry: its versions and aliases."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold import __version__
from tenfold.config.run import MODEL_NAME
from tenfold.environment import Environment
from tenfold.errors import ConfigError, TrackingError
from tenfold.tracking import Explained, client

CHAMPION, CHALLENGER = "champion", "challenger"
#: Tags of a version: the digest of its weights, and where the encoder that it came from is kept.
WEIGHTS_TAG, ENCODER_TAG = "tenfold.weights", "tenfold.encoder"
#: Tags of a version: the test split that it was measured on, the gate that it was asked to pass, and whether it waits
#: for somebody's approval.
TEST_SPLIT_TAG, GATE_TAG, APPROVAL_TAG = "tenfold.test_split", "tenfold.gate", "tenfold.approval"


def is_version(text: str) -> bool:
    """Tell whether a text is a version's number, and no alias."""
    return text.isascii() and text.isdigit()


@dataclass(frozen=True)
class Registered:
    """A version in the registry: its number, the digest of its weights, its tags, and when it was made (Unix time)."""

    version: str
    weights: str
    tags: Mapping[str, str]
    created: float = 0.0


class Registry:
    """One registered model of MLflow's registry."""

    def __init__(self, environment: Environment, name: str, *, patient: bool = True) -> None:
        """Open the model.

        Args:
            environment: gives MLflow's address.
            name: of the model; it need not be there yet.
            patient: repeat what failed for a minute, since nothing here is done later; False for a check that must
                answer within seconds.

        Raises:
            ConfigError: no model can have that name.
        """
        if not re.match(MODEL_NAME, name):
            raise ConfigError(f"no model can be called {name!r}: MLflow's names hold no quote, slash, colon or @")
        self.name, self._environment = name, environment
        self._client = client(environment, repeats=5) if patient else client(environment, timeout=3)

    def _call(self, doing: str, call: Any, *arguments: Any, **named: Any) -> Any:
        with Explained(f"{doing} '{self.name}' in MLflow's registry"):
            return call(*arguments, **named)

    def _registered(self, version: Any) -> Registered:
        tags = dict(version.tags or {})
        return Registered(str(version.version), tags.get(WEIGHTS_TAG, ""), tags, version.creation_timestamp / 1000)

    def by_alias(self, alias: str) -> Registered | None:
        """Return the version that holds ``alias``; None if none does."""
        if not self.exists():
            return None
        aliases = self._call("reading", self._client.get_registered_model, self.name).aliases
        if alias not in aliases:
            return None
        return self._registered(self._call("reading", self._client.get_model_version, self.name, aliases[alias]))

    def by_version(self, version: str) -> Registered | None:
        """Return a version; None if it is not there, or not any more."""
        condition = f"name = '{self.name}' and version_number = {version}"
        found = self._call("searching", self._client.search_model_versions, condition)
        return self._registered(found[0]) if found else None

    def by_weights(self, weights: str) -> Registered | None:
        """Return the version with these weights; None if there is none."""
        condition = f"name = '{self.name}' and tags.`{WEIGHTS_TAG}` = '{weights}'"
        found = self._call("searching", self._client.search_model_versions, condition)
        return self._registered(found[0]) if found else None

    def exists(self) -> bool:
        """Tell whether the model is registered."""
        found = self._call("searching", self._client.search_registered_models, f"name = '{self.name}'")
        return bool(found)

    def register(
        self, student: Path, example: bytes, weights: str, run_id: str | None, tags: Mapping[str, str]
    ) -> Registered:
        """Log the student as an MLflow model of the run and register it as a new version.

        Args:
            student: folder of the classifier.
            example: an encoded image, the model's input example.
            weights: digest of its weights.
            run_id: MLflow run that it belongs to.
            tags: lineage, set on the version.
        """
        import mlflow
        import pandas as pd
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, DataType, Schema
        from mlflow.types.schema import Map

        mlflow.set_tracking_uri(self._environment.tracking_uri)
        mlflow.set_registry_uri(self._environment.tracking_uri)
        signature = ModelSignature(
            Schema([ColSpec(DataType.binary, "image")]),
            Schema([ColSpec(DataType.string, "label"), ColSpec(DataType.double, "probability"),
                    ColSpec(Map(DataType.double), "probabilities")]),
        )  # fmt: skip

        def log() -> Any:
            with mlflow.start_run(run_id=run_id):
                return mlflow.pyfunc.log_model(
                    name="student", python_model=str(Path(__file__).parents[1] / "serving.py"),
                    artifacts={"student": str(student)}, signature=signature,
                    input_example=pd.DataFrame({"image": [example]}),
                    pip_requirements=[f"tenfold=={__version__}"], registered_model_name=self.name,
                )  # fmt: skip

        info = self._call("registering", log)
        version = str(info.registered_model_version)
        for key, value in {**tags, WEIGHTS_TAG: weights}.items():
            self.tag(version, key, value)
        return Registered(version, weights, dict(tags), time.time())

    def point(self, alias: str, version: str) -> None:
        """Let ``alias`` name ``version``."""
        self._call("setting an alias of", self._client.set_registered_model_alias, self.name, alias, version)

    def tag(self, version: str, key: str, value: str) -> None:
        """Set a tag of ``version``."""
        self._call("tagging", self._client.set_model_version_tag, self.name, version, key, value)

    def describe(self, version: str, text: str) -> None:
        """Give ``version`` a description, in Markdown; MLflow's databases hold 5,000 characters of it."""
        self._call("describing", self._client.update_model_version, self.name, version, text[:5000])

    def unpoint(self, alias: str, version: str) -> None:
        """Remove ``alias`` if it names ``version``."""
        held = self.by_alias(alias)
        if held is not None and held.version == version:
            self._call("removing an alias of", self._client.delete_registered_model_alias, self.name, alias)

    def download(self, alias_or_version: str, folder: Path) -> Path:
        """Fetch a version's student folder below ``folder``."""
        import mlflow

        separator = "/" if is_version(alias_or_version) else "@"
        mlflow.set_tracking_uri(self._environment.tracking_uri)
        mlflow.set_registry_uri(self._environment.tracking_uri)
        uri = f"models:/{self.name}{separator}{alias_or_version}"
        local = self._call("downloading", mlflow.artifacts.download_artifacts, artifact_uri=uri, dst_path=str(folder))
        found = sorted(Path(local).rglob("model.json"))
        if not found:
            raise TrackingError(f"{uri} holds no tenfold student")
        return found[0].parent
