"""The bench of full-size models: the published sizes, weights that keep activations alive, figures of a made-up run."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import click
import pytest
import torch
from diffusers import DiTTransformer2DModel, WanTransformer3DModel

from tests.bench import full_size, full_size_models, two_commits
from tests.bench.full_size import StageCost
from tests.bench.status import make_run


def test_dit_xl_has_the_published_sizes() -> None:
    with torch.device("meta"):
        found = DiTTransformer2DModel.from_config(full_size_models._config("dit-xl-2"))
    block = found.transformer_blocks[0]
    assert (len(found.transformer_blocks), block.attn1.to_q.in_features) == (28, 1152)
    attention, modulation = 4 * 1152 * (1152 + 1), 6 * 1152 * (1152 + 1)
    feed_forward = 4608 * (1152 + 1) + 1152 * (4608 + 1)
    timesteps, classes = 1152 * (256 + 1) + 1152 * (1152 + 1), 1001 * 1152
    parameters = sum(p.numel() for p in block.parameters())
    assert parameters == attention + modulation + feed_forward + timesteps + classes


def test_wan_has_the_published_sizes() -> None:
    with torch.device("meta"):
        found = WanTransformer3DModel.from_config(full_size_models._config("wan2.1-t2v-1.3b"))
    linears = [part for part in found.blocks[0].modules() if isinstance(part, torch.nn.Linear)]
    assert len(found.blocks) == 30
    assert sum(part.weight.numel() for part in linears) == 8 * 1536**2 + 2 * 1536 * 8960
    assert 1.41e9 < sum(p.numel() for p in found.parameters()) < 1.43e9


def test_fewer_blocks_have_the_full_width() -> None:
    with torch.device("meta"):
        found = DiTTransformer2DModel.from_config(full_size_models._config("dit-xl-2", 3))
    assert (len(found.transformer_blocks), found.transformer_blocks[0].attn1.to_q.in_features) == (3, 1152)


@torch.no_grad()
def test_scaled_weights_keep_the_size_of_activations_over_many_blocks() -> None:
    torch.manual_seed(0)
    layers = 12
    model = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=layers, sample_size=16,
        patch_size=2, num_embeds_ada_norm=10, attention_bias=True, activation_fn="gelu-approximate",
        norm_type="ada_norm_zero", norm_elementwise_affine=False,
    )  # fmt: skip
    full_size_models.scale_weights(model, layers)
    sizes = list[float]()
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda module, args, output: sizes.append(float(output.std())))
    drawn = model(torch.randn(8, 4, 16, 16), timestep=torch.full((8,), 5), class_labels=torch.arange(8)).sample
    assert min(sizes) > 0.5 and max(sizes) < 2
    assert 0.5 < float(drawn.std()) < 3


def test_costs_add_up_what_markers_and_files_say(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 25)  # five units of 1 s of model and 1.5 s in all in each of five stages
    found = {one.stage: one for one in full_size.costs(run.path)}
    assert list(found) == ["capture", "fisher", "hessian", "solve", "search", "assemble", "reference", "evaluate"]
    solve = found["solve"]
    assert (solve.units, solve.total, solve.model, solve.algebra, solve.overhead) == (5, 7.5, 5.0, 0.0, 2.5)
    units = [path for path in (run.path / "solve").rglob("made/*/*") if path.is_file()]
    assert units and solve.disk >= sum(path.stat().st_size for path in units) and solve.files == 5 + 5
    assert (found["evaluate"].units, found["evaluate"].disk) == (0, 0)


def test_the_table_ends_with_sums_and_the_most_memory() -> None:
    one = StageCost(
        stage="capture", units=2, total=10.0, cpu=9.0, model=7.0, algebra=1.0, memory=3 * 10**9, disk=2_000_000, files=4
    )
    other = StageCost(
        stage="solve", units=3, total=5.0, cpu=6.0, model=0.0, algebra=4.5, memory=10**9, disk=500_000, files=1
    )
    lines = full_size.table([one, other]).splitlines()
    assert lines[2] == "| capture | 2 | 9.0 | 10.0 | 7.0 | 1.0 | 2.0 | 3.00 | 2.0 | 4 |"
    assert lines[-1] == "| in all | 5 | 15.0 | 15.0 | 7.0 | 5.5 | 2.5 | 3.00 | 2.5 | 5 |"


def test_settings_take_different_captions_for_calibration_and_evaluation() -> None:
    sets = full_size.settings("wan-1.3b", steps=3, captions=2, seeds=1, threads=2, call={"num_frames": 9})
    assert "data.prompts=['a red circle', 'a blue square']" in sets
    assert "evaluate.prompts=['two red squares', 'a blue circle']" in sets
    assert {"model.call.num_inference_steps=3", "model.call.num_frames=9", "data.batch=2"} <= set(sets)
    with pytest.raises(click.BadParameter, match=r"7 captions, and as many held-out ones: wan-1\.3b has 6 in all"):
        full_size.settings("wan-1.3b", steps=3, captions=7, seeds=1, threads=2, call={})


def test_two_commits_are_compared_stage_by_stage() -> None:
    old = {stage: {"cpu": 20.0, "memory": 3e9} for stage in two_commits.STAGES}
    new = {stage: {"cpu": 8.0, "memory": 2e9} for stage in two_commits.STAGES}
    new["solve"] = {"cpu": 4.0, "memory": 4e9}
    lines = two_commits.table({"before": old, "after": new}, two_commits.STAGES).splitlines()
    assert lines[0] == "| stage | before, CPU s | after, CPU s | ratio | before, GB | after, GB |"
    assert "| solve | 20.0 | 4.0 | 0.20 | 3.00 | 4.00 |" in lines
    assert lines[-1] == "| in all | 140.0 | 52.0 | 0.37 | 3.00 | 4.00 |"  # 7 x 20; 6 x 8 + 4


def test_a_stage_is_charged_with_the_processor_time_and_memory_of_its_command(tmp_path: Path) -> None:
    words = tmp_path / "words"
    command = tmp_path / "adatsq-pipe"
    command.write_text(
        f"#!{sys.executable}\nimport sys, time\nopen({str(words)!r}, 'w').write(' '.join(sys.argv[1:]))\n"
        "held = b'1' * 200_000_000\nwhile time.process_time() < 0.5: pass\n"
    )
    command.chmod(0o755)
    found = two_commits.measured(str(command), Path("/model"), tmp_path / "run", "hessian", ("data.batch=2",))
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # a process counts what it was started from, too
    assert 0.5 <= found["cpu"] < 3 and 2e8 < found["memory"] < max(own, 5e8) + 1e8
    said = words.read_text()
    assert "--stages hessian --set compute.threads=1 --set data.batch=2" in said and "--executor inline" in said
