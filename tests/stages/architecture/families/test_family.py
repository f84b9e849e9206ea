"""A family from another distribution, found by its entry point; what is none is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

import adatsq_pipe.stages.runtime  # noqa: F401  (registers the quantizer)
from adatsq_pipe.stages.runtime.policy_hook import PolicyHook
from tests.whole import harness

GOOD = (
    '"""The first block of a tiny Flux is to stay, which no rule could know."""\n'
    "from adatsq_pipe.stages.architecture.families._family import Family\n"
    "FAMILY = Family(transformer='FluxTransformer2DModel', why='a test', blocks=('single_transformer_blocks',),"
    " leave=('proj_out',))\n"
)


def _distribution(folder: Path, code: str) -> Path:
    """A folder of packages with an installed distribution: one module and its entry point."""
    told = folder / "elsewhere-1.0.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text("[adatsq_pipe.families]\nelsewhere = elsewhere_family\n")
    (folder / "elsewhere_family.py").write_text(code)
    return folder


@pytest.mark.run
def test_a_family_from_elsewhere_changes_what_is_quantized(tiny_flux: Path, tmp_path: Path) -> None:
    site = _distribution(tmp_path / "site", GOOD)
    (told,) = json.loads(harness.run("inspect", str(tiny_flux), "--no-call", "--json", site=site).stdout)["denoisers"]
    patterns = {group["pattern"] for group in told["groups"]}
    assert patterns and all(pattern.startswith("single_transformer_blocks.") for pattern in patterns)
    assert not any(pattern.endswith("proj_out") for pattern in patterns)
    assert any(rest["why"] == "left by the family" for rest in told["left"])
    assert "single_transformer_blocks" in told["family"] and "a test" in told["family"]

    (plain,) = json.loads(harness.run("inspect", str(tiny_flux), "--no-call", "--json").stdout)["denoisers"]
    run = tmp_path / "run"
    assert plain["family"] == "" and {group["pattern"] for group in plain["groups"]} > patterns
    done = harness.run(*harness.tiny(run, tiny_flux), site=site)
    assert done.returncode == 0, done.stderr
    config = json.loads((run / "model" / "transformer" / "config.json").read_text())
    names = set(config["quantization_config"]["layers"])
    assert names and all(name.startswith("single_") and not name.endswith("proj_out") for name in names)
    without = harness.run("why", "--run-dir", str(run)).stdout
    assert "families" in without.splitlines()[0], without


TIMED = (
    '"""Its noise level has a name that no rule would take for one."""\n'
    "from adatsq_pipe.stages.architecture.families._family import Family\n"
    "FAMILY = Family(transformer='FluxTransformer2DModel', why='a test', timestep='guidance')\n"
)


@pytest.mark.run
def test_a_family_names_the_timestep(tiny_flux: Path, tmp_path: Path) -> None:
    """Told that it is the guidance, which is the same in every call, everything reads that, the loaded model too."""
    site = _distribution(tmp_path / "site", TIMED)
    (told,) = json.loads(harness.run("inspect", str(tiny_flux), "--no-call", "--json", site=site).stdout)["denoisers"]
    assert told["timestep"][0] == "guidance" and "the timestep is guidance" in told["family"]
    done = harness.run(*harness.tiny(tmp_path / "run", tiny_flux, "--stages", "capture..assemble"), site=site)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "model" / "transformer" / "config.json").read_text())
    said = config["quantization_config"]
    assert said["timestep"] == "guidance" and said["timesteps"] == [3.5], "steps of one timestep are one step"
    transformer = FluxTransformer2DModel.from_pretrained(tmp_path / "run" / "model" / "transformer")
    (hook,) = [hook for hook in transformer._forward_pre_hooks.values() if isinstance(hook, PolicyHook)]
    with pytest.raises(TypeError, match="none of the arguments guidance"):
        hook(transformer, (), {"timestep": torch.tensor([0.5])})
    hook(transformer, (), {"guidance": torch.tensor([3.5])})
    transformer.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    assert again["timestep"] == "guidance"


@pytest.mark.run
def test_what_is_no_family_is_named(tiny_flux: Path, tmp_path: Path) -> None:
    site = _distribution(tmp_path / "site", "FAMILY = 3\n")
    done = harness.run("inspect", str(tiny_flux), "--no-call", site=site)
    assert done.returncode == 1 and "elsewhere = elsewhere_family" in done.stderr and "Traceback" not in done.stderr
