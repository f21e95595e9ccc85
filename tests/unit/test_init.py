"""Pretraining that starts from an encoder which is there already, and what is imported for it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from tenfold.cli.app import app
from tenfold.components.preflight.stage import Request
from tenfold.components.pretrain.stage import _start
from tenfold.config import Description, HeadConfig, InitConfig, ResNetConfig
from tenfold.errors import ConfigError, DataError, TenfoldError
from tenfold.fingerprint import digest
from tenfold.models.heads import SimCLRModel
from tenfold.models.imported import import_timm
from tenfold.models.saved import build, load, save
from tenfold.work import Work

TENFOLD = str(Path(sys.executable).parent / "tenfold")
#: A small timm model.
NAME = "resnet10t"


def resolve(*assignments: str, preset: str = "digits") -> object:
    import yaml

    from tenfold.config import compose

    _, values = compose(None, None, "", assignments)
    return Request(preset, yaml.safe_dump(values), {}).resolve()


def encoder(folder: Path, layers: int = 2, kind: str = "simclr") -> Path:
    network = ResNetConfig(depth=10, width=0.125)
    head = HeadConfig(layers=layers, features=8)
    description = Description(
        kind=kind, network=network, head=head, image_size=16, classes=["a", "b"] if kind == "classifier" else []
    )  # type: ignore[arg-type]
    save(folder, build(description), description)
    return folder


def test_the_network_and_head_are_those_of_the_encoder_that_is_there(tmp_path: Path) -> None:
    config = resolve(f"pretrain.init.path={encoder(tmp_path / 'e')}")
    assert config.pretrain.network == ResNetConfig(depth=10, width=0.125)
    assert config.pretrain.head == HeadConfig(layers=2, features=8)
    assert config.distill.network == config.pretrain.network  # distill.init is finetuned
    assert config.pretrain.init.digest


def test_what_is_fixed_in_an_encoder_s_head_stays_fixed_and_a_folder_is_read_where_it_lies(
    tmp_path: Path, make_work: Callable[..., Work]
) -> None:
    folder, work = encoder(tmp_path / "e"), make_work()
    text = (folder / "model.json").read_text()
    known = Description.model_validate_json(text)
    model, _ = _start(InitConfig(path=str(folder), digest=digest(text)), known, work)
    fixed = [name for name, parameter in build(known).named_parameters() if not parameter.requires_grad]
    assert fixed == ["head.layers.1.1.bias"]
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == fixed
    assert not work.cache.exists()


def test_another_encoder_at_the_same_place_is_another_configuration(tmp_path: Path) -> None:
    first = resolve(f"pretrain.init.path={encoder(tmp_path / 'e')}").stage_strings()["pretrain"]
    torch.manual_seed(1)
    assert resolve(f"pretrain.init.path={encoder(tmp_path / 'e')}").stage_strings()["pretrain"] != first


def test_an_encoder_that_is_to_be_a_rung_is_looked_at_before_anything_runs(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "e")
    config = resolve(f"evaluate.encoder.path={folder}")
    assert config.evaluate.encoder.digest == digest((folder / "model.json").read_text())
    assert config.pretrain.init is None, "it is measured, and nothing starts from it"
    plain = resolve().stage_strings()
    strings = config.stage_strings()
    assert {stage for stage in strings if strings[stage] != plain[stage]} == {"evaluate"}
    with pytest.raises(DataError, match=r"evaluate\.encoder\.path: there is no encoder in"):
        resolve(f"evaluate.encoder.path={tmp_path / 'nothing'}")
    with pytest.raises(DataError, match=r"evaluate\.encoder\.path: .* holds a classifier; an encoder is needed"):
        resolve(f"evaluate.encoder.path={encoder(tmp_path / 'c', kind='classifier')}")
    with pytest.raises(ConfigError, match=r"takes other pixels than data\.pixels says of the data"):
        resolve(f"evaluate.encoder.path={folder}", "data.pixels={channels: 3, bits: 16}")
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(DataError, match="are not those that its"):
        resolve(f"evaluate.encoder.path={folder}")


def test_a_head_layer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"finetune\.from_head_layer is 3, but pretrain\.head\.layers is 2"):
        resolve(f"pretrain.init.path={encoder(tmp_path / 'e')}", "finetune.from_head_layer=3")


def test_a_place_without_an_encoder_and_a_classifier_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no encoder in .*tenfold import-checkpoint"):
        resolve(f"pretrain.init.path={tmp_path}")
    with pytest.raises(DataError, match="holds a classifier"):
        resolve(f"pretrain.init.path={encoder(tmp_path / 'c', kind='classifier')}")
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(DataError, match="no description of a network"):
        resolve(f"pretrain.init.path={tmp_path}")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_timm_weights_become_an_encoder_with_the_same_features(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(NAME, num_classes=7).eval()
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": theirs.state_dict()}, file)
    else:
        save_file(theirs.state_dict(), file)
    import_timm(file, NAME, tmp_path / "encoder", 64)
    model, description = load(tmp_path / "encoder")
    assert isinstance(model, SimCLRModel)
    assert description.head == HeadConfig(layers=0)
    images = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(theirs.default_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features((images - mean) / std), pre_logits=True)
        assert torch.allclose(model.encoder(images), expected, atol=1e-5)
        assert torch.equal(model(images), model.encoder(images))


def test_weights_of_another_timm_model_and_an_unknown_name_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model("resnet14t").state_dict(), file)
    with pytest.raises(DataError, match="it is of another network"):
        import_timm(file, NAME, tmp_path / "encoder", 64)
    with pytest.raises(DataError, match=r"no model 'resnet10x'; did you mean"):
        import_timm(file, "resnet10x", tmp_path / "encoder", 64)
    assert not (tmp_path / "encoder").exists()


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (self.path,))  # type: ignore[return-value]


def test_a_hostile_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": Canary(tmp_path / "canary")}, file)
    with pytest.raises(DataError, match="no tensors that can be read safely"):
        import_timm(file, NAME, tmp_path / "encoder", 64)
    assert not (tmp_path / "canary").exists()


def test_a_timm_encoder_cannot_be_the_student_s_network(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model(NAME).state_dict(), file)
    import_timm(file, NAME, tmp_path / "encoder", 64)
    with pytest.raises(ConfigError, match=r"timm's resnet10t; set distill\.init=scratch"):
        resolve(f"pretrain.init={{path: {tmp_path / 'encoder'}, skip: true}}", "finetune.from_head_layer=0")
    config = resolve(
        f"pretrain.init={{path: {tmp_path / 'encoder'}, skip: true}}", "finetune.from_head_layer=0",
        "distill.init=scratch",
    )  # fmt: skip
    assert config.pretrain.head == HeadConfig(layers=0)


@pytest.mark.parametrize(("section", "skip"), [("pretrain", False), ("finetune", True), ("self_train", True)])
def test_rates_by_layer_of_an_encoder_that_counts_none_are_refused_before_anything_runs(
    tmp_path: Path, section: str, skip: bool
) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model(NAME).state_dict(), file)
    import_timm(file, NAME, tmp_path / "encoder", 64)
    given = [f"pretrain.init={{path: {tmp_path / 'encoder'}, skip: {str(skip).lower()}}}", "distill.init=scratch",
             "finetune.from_head_layer=0", f"{section}.optimizer.layer_decay=0.7"]  # fmt: skip
    with pytest.raises(ConfigError, match=rf"{section}\.optimizer\.layer_decay needs a network whose layers are known"):
        resolve(*given)


def test_the_command_refuses_a_folder_that_is_there_and_a_checkpoint_that_is_not(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "file").write_text("held")
    taken = [str(tmp_path / "none"), str(tmp_path / "made")]
    done = subprocess.run([TENFOLD, "import-checkpoint", *taken], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is there already" in done.stderr
    assert "Traceback" not in done.stderr
    free = [str(tmp_path / "none"), str(tmp_path / "new")]
    for arguments, message in (
        (free, "there is no TensorFlow checkpoint"),
        ([*free, "--timm", NAME, "--average"], "--average is not for --timm"),
        ([*free, "--timm", NAME, "--vit", "token"], "give one of"),
    ):
        refusal = CliRunner().invoke(app, ["import-checkpoint", *arguments]).exception
        assert isinstance(refusal, TenfoldError)
        assert message in str(refusal)
        assert refusal.exit_code == 2
    assert json.dumps([path.name for path in (tmp_path / "made").iterdir()]) == '["file"]'
