"""test.py: groups of check, fingerprints of the data, devices, and errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from change.checkpoint import load_checkpoint
from change.common.errors import UserError
from change.data.check import main as check
from change.evaluation import report
from change.evaluation.evaluate import Evaluation
from change.evaluation.summary import Settings
from change.synthetic.render import draw_scene
from tests.conftest import last_line, run_program, write_pairs
from tests.evaluation.programs import load_main, read_csv, score
from tests.prediction.devices import pretend_two_gpus

pytestmark = pytest.mark.slow


def test_groups_of_check(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Intervals are over groups of connected tiles, and there are scores of images apart from train."""
    scene = draw_scene(256, 640, (4,))
    for name, part, area in (
        ("a", "train", np.s_[:, :128]),
        ("b", "val", np.s_[:, 128:256]),
        ("c", "val", np.s_[:, 256:384]),
        ("d", "val", np.s_[:, 500:628]),
    ):
        for sub, picture in zip(("A", "B", "label"), scene, strict=True):
            (tmp_path / "set" / part / sub).mkdir(parents=True, exist_ok=True)
            scale = np.uint8(255 if sub == "label" else 1)
            PIL.Image.fromarray(picture[area] * scale).save(tmp_path / "set" / part / sub / f"{name}.png")
    check([str(tmp_path / "set"), f"--save_path={tmp_path / 'check'}"])
    where = f"--check={tmp_path / 'check' / 'check.json'}"
    metrics = score(tmp_path / "set" / "val", checkpoint, tmp_path / "out", where)
    assert (metrics["intervals"]["over"], metrics["intervals"]["units"]) == ("groups of connected tiles", 2)
    rows = {row["image"]: row for row in read_csv(tmp_path / "out" / "images.csv")}
    assert {name: (row["group"], row["meets_train"]) for name, row in rows.items()} == {
        "b": ("train/a", "True"),
        "c": ("train/a", "False"),
        "d": ("val/d", "False"),
    }
    apart = metrics["apart_from_train"]
    assert apart["images"] == 2
    assert apart["counts"]["tp"] == int(rows["c"]["tp"]) + int(rows["d"]["tp"])
    with PIL.Image.open(tmp_path / "set" / "val" / "A" / "c.png") as image:
        image.transpose(PIL.Image.Transpose.ROTATE_180).save(tmp_path / "set" / "val" / "A" / "c.png")
    metrics = score(tmp_path / "set" / "val", checkpoint, tmp_path / "out", where)
    assert metrics["intervals"]["over"] == "images" and "apart_from_train" not in metrics
    assert "check.json knows nothing of c" in capsys.readouterr().err
    (tmp_path / "check" / "check.json").write_text("{}")
    with pytest.raises(UserError, match=r"check\.json was not written by"):
        score(tmp_path / "set" / "val", checkpoint, tmp_path / "out", where)


def test_fingerprint(tmp_path: Path, checkpoint: Path) -> None:
    """It is the same in another format and folder, and differs if a single pixel of a mask does."""
    root = write_pairs(tmp_path / "set", 2, seed=3)
    first = score(root, checkpoint, tmp_path / "out")["data"]["fingerprint"]
    shutil.copytree(root, tmp_path / "copy")
    with PIL.Image.open(root / "A" / "1.png") as image:
        image.save(tmp_path / "copy" / "A" / "1.tif")
    (tmp_path / "copy" / "A" / "1.png").unlink()
    assert score(tmp_path / "copy", checkpoint, tmp_path / "out")["data"]["fingerprint"] == first
    mask = np.array(PIL.Image.open(root / "label" / "0.png"))
    mask[3, 3] = 255 - mask[3, 3]
    PIL.Image.fromarray(mask).save(root / "label" / "0.png")
    assert score(root, checkpoint, tmp_path / "out")["data"]["fingerprint"] != first


def test_a_network_without_finite_probabilities(tmp_path: Path, checkpoint: Path) -> None:
    """One line names the images, with exit code 2; nothing is scored as unchanged."""
    root = write_pairs(tmp_path / "set", 2, seed=3)
    broken = load_checkpoint(checkpoint)
    name = next(name for name in broken.weights if name.startswith("head.") and name.endswith("weight"))
    broken.weights[name].fill_(torch.nan)
    broken.save(tmp_path / "broken.pth")
    arguments = (f"--test_root={root}", f"--checkpoint_path={tmp_path / 'broken.pth'}", "--test_batchsize=2")
    result = run_program("test.py", *arguments, "--device=cpu", "--workers=0", f"--save_path={tmp_path / 'out'}")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert last_line(result).startswith("error: the network gives no finite probability for 0, 1: use --amp off")
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_a_missing_template_is_reported_before_the_work(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_pairs(tmp_path / "set", 1, seed=3)
    monkeypatch.setattr(report, "TEMPLATE", tmp_path / "gone" / "report.html")
    with pytest.raises(UserError, match=r"gone/report\.html cannot be read .*install it again"):
        score(root, checkpoint, tmp_path / "out", "--report")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("checkpoint", ["resnet18"], indirect=True)  # timm builds no network on pretended GPUs
def test_device_and_precision_are_chosen_in_one_place(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two processes takes the second GPU, and `auto` is fp16 there."""
    root = write_pairs(tmp_path / "set", 1, seed=3)
    found: list[Settings] = []
    pretend_two_gpus(monkeypatch)
    monkeypatch.setattr(Evaluation, "run", lambda self, network, loader, outputs: found.append(self.settings))
    main = load_main()
    common = [f"--test_root={root}", f"--checkpoint_path={checkpoint}", "--workers=0", f"--save_path={tmp_path}"]
    assert main([*common, "--amp=auto"]) == main(common) == 0
    assert [(settings.device, settings.amp) for settings in found] == [
        (torch.device("cuda", 1), "fp16"),
        (torch.device("cuda", 1), "off"),
    ]
    assert found[0].as_dict()["precision"] == "fp16" and found[1].as_dict()["precision"] == "float32"
