"""Record, replay and teleport are bit-exact on every family, with CFG, multi-step schedulers and list inputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from adatsq_pipe.stages.architecture.layers import known_to_repeat, quantizable_linears
from adatsq_pipe.stages.denoiser.call import Call
from adatsq_pipe.stages.denoiser.conditions import Conditions
from adatsq_pipe.stages.denoiser.denoiser import Denoiser, Output
from adatsq_pipe.stages.denoiser.hooks import survey
from adatsq_pipe.stages.denoiser.outputs import leaves, rebuild, structure
from adatsq_pipe.stages.numerics import products
from adatsq_pipe.storage.errors import StorageError
from tests.conftest import FAMILIES
from tests.support.mapping import MAPS, file_of


def _open(folder: Path) -> Denoiser:
    call = json.loads((folder / "sampling.json").read_text())["call"]
    return Denoiser(str(folder), dtype="float32", device="cpu", call=call)


def _conditions(name: str) -> Conditions:
    prompts = ("207", "3") if name == "dit" else ("a red circle", "a blue square above a green cross")
    return Conditions(prompts=prompts, seeds=(5, 6))


def _halved(output: Output) -> Output:
    return rebuild(structure(output), iter([leaf / 2 for leaf in leaves(output)]))


@pytest.mark.skipif(not MAPS.exists(), reason="the kernel does not say what it maps")
@pytest.mark.parametrize(("stored", "shared"), [("float32", True), ("bfloat16", False)])
def test_workers_share_weights_that_are_stored_as_they_are_computed(
    stored: str, shared: bool, family: Callable[[str], Path], tmp_path: Path
) -> None:
    """They lie in the model's files, mapped privately ("p"): a change in place is the process's own."""
    folder = tmp_path / "model"
    DiffusionPipeline.from_pretrained(family("dit"), dtype=getattr(torch, stored)).save_pretrained(folder)
    shutil.copy(family("dit") / "sampling.json", folder)
    parts = _open(folder).parts["transformer"]
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    before = path.read_bytes()
    found = {file_of(parameter) for parameter in parts.parameters()}
    assert (found == {("rw-p", str(path.resolve()))}) is shared
    next(parts.parameters()).data.zero_()
    assert not any(next(parts.parameters()).flatten()) and path.read_bytes() == before


@pytest.mark.parametrize("name", FAMILIES)
def test_record_replay_teleport_are_bit_exact(name: str, family: Callable[[str], Path]) -> None:
    denoiser, conditions = _open(family(name)), _conditions(name)
    inputs: list[Call] = []
    run = denoiser.record(conditions, see=lambda j, call: inputs.append(call))
    calls_per_step = 2 if name == "wan" else 1
    assert run.steps == tuple(i // calls_per_step for i in range(len(run.outputs)))
    assert len(set(run.timesteps)) == run.steps[-1] + 1

    latents, _ = denoiser.replay(conditions, run.outputs)
    assert torch.equal(latents, run.latents)
    seen: list[int] = []
    again = denoiser.record(conditions, after=run.outputs[:-1], see=lambda j, call: seen.append(j))
    assert torch.equal(again.latents, run.latents) and seen == list(range(len(run.outputs)))
    halved = denoiser.record(conditions, after=[_halved(output) for output in run.outputs[:1]])
    assert not torch.equal(halved.latents, run.latents), "what is known is not computed"

    for j in range(len(run.outputs) + 1):
        arrived = denoiser.teleport(conditions, run.outputs[:j])
        if j == len(run.outputs):
            assert isinstance(arrived, torch.Tensor) and torch.equal(arrived, run.latents)
            break
        assert isinstance(arrived, Call) and arrived.step == run.steps[j]
        with torch.no_grad():
            output = denoiser.transformer.forward(*arrived.args, **arrived.kwargs)
        for got, wanted in zip(leaves(output), leaves(run.outputs[j]), strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", FAMILIES)
def test_recording_equals_the_plain_pipeline(name: str, family: Callable[[str], Path]) -> None:
    """The stand-in changes nothing: the same pictures come out of an untouched call."""
    denoiser, conditions = _open(family(name)), _conditions(name)
    recorded = denoiser.record(conditions, decode=True).pictures
    key = "class_labels" if name == "dit" else "prompt"
    given = [int(p) for p in conditions.prompts] if name == "dit" else list(conditions.prompts)
    call = json.loads((family(name) / "sampling.json").read_text())["call"]
    generators = [torch.Generator().manual_seed(seed) for seed in conditions.seeds]
    plain = denoiser.pipe(**{key: given}, **call, generator=generators, output_type="np")
    assert torch.equal(recorded, torch.from_numpy(next(iter(plain.values()))))


def test_a_draw_can_do_without_its_outputs(family: Callable[[str], Path]) -> None:
    denoiser, conditions = _open(family("flux")), _conditions("flux")
    kept, places = denoiser.record(conditions), list[int]()
    drawn = denoiser.record(conditions, keep=False, see=lambda j, call: places.append(j))
    assert drawn.outputs == () and torch.equal(drawn.latents, kept.latents) and drawn.steps == kept.steps
    assert places == list(range(len(kept.outputs)))


def test_a_different_output_leads_elsewhere(family: Callable[[str], Path]) -> None:
    denoiser, conditions = _open(family("flux")), _conditions("flux")
    run = denoiser.record(conditions)
    changed = (tuple(x + 0.1 for x in run.outputs[0]), *run.outputs[1:])
    assert not torch.equal(denoiser.replay(conditions, changed)[0], run.latents)


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_survive_as_plain_structure_and_tensors(name: str, family: Callable[[str], Path]) -> None:
    denoiser, conditions = _open(family(name)), _conditions(name)
    outputs = denoiser.record(conditions).outputs
    again = tuple(rebuild(json.loads(json.dumps(structure(output))), iter(leaves(output))) for output in outputs)
    latents, _ = denoiser.replay(conditions, again)
    assert torch.equal(latents, denoiser.record(conditions).latents)


def test_only_classes_of_diffusers_are_made_from_a_name() -> None:
    from adatsq_pipe.stages.base.errors import StageError

    with pytest.raises(StageError, match="subprocess"):
        rebuild({"kind": "subprocess:Popen", "items": {}}, iter([]))


def test_a_folder_that_is_no_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no diffusers pipeline folder"):
        Denoiser(str(tmp_path), dtype="float32", device="cpu", call={})


@pytest.mark.parametrize("faster", [True, False])
def test_the_denoisers_layers_multiply_by_the_faster_library(
    faster: bool, tiny_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "ONEDNN", faster)
    opened = _open(tiny_flux)
    kinds = {type(layer) for layer in quantizable_linears(opened.transformer).values()}
    assert kinds == {products.Linear if faster else nn.Linear}


def test_the_family_of_dit_names_the_layers_that_run_twice(family: Callable[[str], Path]) -> None:
    """So that capture need not make the first call once more to find out."""
    opened = _open(family("dit"))
    layers, call = quantizable_linears(opened.transformer), opened.rehearse(_conditions("dit"))[0]
    seen = survey(lambda: opened.run(call), layers, 2)
    assert len(seen.repeated) == 2 and sorted(known_to_repeat(opened.transformer, layers)) == sorted(seen.repeated)
