"""Configuration: its layers, what it refuses, what each method is, and the package list."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from adatsq_pipe.pipeline import config
from adatsq_pipe.pipeline.config import ClusterSettings
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.request import load_config, read_request, write_request
from adatsq_pipe.pipeline.toml_tables import parse_set
from adatsq_pipe.stages.allocation.trellis import SearchSettings, widths_of
from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.settings import LARGEST_SEED, DataSettings, ModelSettings
from adatsq_pipe.stages.base.stage import all_stages
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.stages.methods._recipe import Recipe, methods, resolve
from adatsq_pipe.stages.scenes.world.captions import SHAPES
from adatsq_pipe.stages.weights.solve import SolveSettings
from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.rundir import RunDir

ROOT = Path(__file__).parents[2]


def _load(*sets: str, preset: str | None = None, previous: dict[str, object] | None = None) -> config.RunConfig:
    return config.load(preset=preset, file=None, sets=sets, model=None, previous=previous)


def test_layers_lie_in_order(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[search]\nbudget = 3.3\nwidth = 3\n")
    made = config.load(preset="w3a3", file=file, sets=["search.budget=3.2"], model=None, previous=None)
    assert (made.settings[SearchSettings].budget, made.settings[SearchSettings].width) == (3.2, 3)
    assert made.settings[Recipe].weight_bits == 3


def test_a_previous_request_continues_until_a_preset_starts_from_scratch() -> None:
    first = _load("search.budget=3.2", preset="w3a3")
    again = _load("solve.damping=0.05", previous=dict(first.request))
    assert (again.settings[SearchSettings].budget, again.settings[SolveSettings].damping) == (3.2, 0.05)
    assert _load(preset="w3a3", previous=dict(first.request)).settings[SearchSettings].budget == 3.1


def test_the_cluster_table_does_not_change_fingerprints() -> None:
    a, b = _load(), _load("cluster.workers=7", "cluster.executor='inline'")
    for stage in all_stages().values():
        assert stage.reads(a.settings, "m") == stage.reads(b.settings, "m")


def test_held_out_captions_are_not_calibration_captions() -> None:
    """Save the captions without a colour, which are too few to hold any out."""
    made = _load("data.count=60", "evaluate.count=60")
    both = set(made.settings[DataSettings].prompts) & set(made.settings[EvaluateSettings].prompts)
    assert both <= {f"a {a}{b}" for a in SHAPES for b in ("", *(f" and a {c}" for c in SHAPES))}


def test_presets_are_whole() -> None:
    for name in config.PRESETS:
        made = _load(preset=name)
        assert made.settings[Recipe].weight_bits == int(name[1])


PARTS: dict[str, dict[str, Any]] = {
    "endpoint": {
        "transform": "hadamard",
        "transform_block": 128,
        "sensitivity": "trajectory",
        "solver": "gptq",
        "weight_clip": True,
        "weight_budget": 4.0,
        "allocation": "lagrangian",
    },
    "rtn": {},
    "smoothquant": {"smoothing": "smoothquant"},
    "quarot": {
        "transform": "hadamard",
        "transform_block": 4096,
        "solver": "gptq",
        "weight_clip": True,
        "weight_symmetric": True,
        "activation_symmetric": True,
    },
    "q_dit": {
        "weight_group": 128,
        "group_fit": True,
        "group_search": (32, 64, 128, 192, 288),
        "activation_group": 128,
    },
    "vidit_q": {
        "transform": "hadamard",
        "transform_block": 4096,
        "smoothing": "smoothquant",
        "smoothing_over": "noisiest",
        "allocation": "decoupled",
    },
    "svdquant": {
        "smoothing": "smoothquant",
        "smoothing_grid": 20,
        "rank": 32,
        "rank_rounds": 100,
        "weight_group": 64,
        "activation_group": 64,
    },
    "ptq4dit": {
        "smoothing": "smoothquant",
        "smoothing_over": "salience",
        "smoothing_skip": ("net.2", "w2", "proj_out"),
        "smoothing_fold": True,
    },
    "tq_dit": {"time_groups": 10, "time_search": True, "regions": True},
    "orbitquant": {"transform": "hadamard", "transform_block": 128, "permuted": True, "codebook": True},
    "convrot": {
        "transform": "regular",
        "transform_block": 256,
        "weight_symmetric": True,
        "activation_symmetric": True,
    },
    "permuquant": {"permuted": True, "channel_order": "moment", "weight_group": 64, "activation_group": 64},
    "magr": {
        "transform": "hadamard",
        "transform_block": 4096,
        "solver": "gptq",
        "magnitude_penalty": 0.0001,
        "weight_clip": True,
        "activation_symmetric": True,
    },
    "first_last_n": {
        "transform": "hadamard",
        "transform_block": 128,
        "solver": "gptq",
        "weight_clip": True,
        "allocation": "first_last",
        "end_steps": 2,
    },
    "tmpdiff": {
        "transform": "hadamard",
        "transform_block": 128,
        "solver": "gptq",
        "weight_clip": True,
        "allocation": "bisection",
    },
    "timestep_svdquant": {
        "smoothing": "smoothquant",
        "smoothing_grid": 20,
        "rank": 32,
        "rank_rounds": 100,
        "weight_group": 64,
        "activation_group": 64,
        "solver": "gptq",
        "clip_bins": 5,
    },
    "htg": {
        "smoothing": "smoothquant",
        "smoothing_over": "momentum",
        "smoothing_layers": "not_gelu",
        "shift_groups": 5,
    },
    "taq_dit": {
        "smoothing": "migration",
        "smoothing_layers": "gelu",
        "shift_groups": 1,
        "shift_momentum": 0.95,
    },
    "duquant": {
        "transform": "greedy",
        "transform_block": 128,
        "smoothing": "smoothquant",
        "smoothing_alpha": 0.6,
        "weight_clip": True,
    },
    "ditas": {
        "smoothing": "smoothquant",
        "smoothing_grid": 21,
        "smoothing_error": "tokens",
        "rank": 32,
        "rank_rounds": 10,
        "weight_group": 32,
    },
    "nvfp4": {"number_format": "nvfp4"},
    "mxfp4": {"number_format": "mxfp4"},
    "adatsq": {
        "transform": "hadamard",
        "transform_block": 128,
        "temporal": True,
        "solver": "gptq",
        "weight_clip": True,
        "allocation": "trellis",
    },
}
"""What each method has beyond rounding to nearest."""


def test_a_method_is_the_parts_of_its_paper_over_rounding_to_nearest() -> None:
    plain = resolve({"method": "rtn"}).model_dump()
    assert plain["solver"] == "rtn" and plain["allocation"] == "uniform" and plain["transform"] == "none"
    assert set(PARTS) == set(methods())
    for method, parts in PARTS.items():
        found = _load(f"recipe.method={method}", "recipe.weight_bits=4").settings[Recipe].model_dump()
        assert {key: value for key, value in found.items() if key != "method" and value != plain[key]} == parts, method


def test_a_later_layer_wins_and_leaves_other_keys_alone(tmp_path: Path) -> None:
    """From weak to strong: the preset, the previous request, the file, --set, --model."""
    previous = {"preset": "w3a3", "tables": {"search": {"budget": 3.2, "width": 5}, "solve": {"damping": 0.5}}}
    file = tmp_path / "c.toml"
    file.write_text("[search]\nwidth = 6\nbudget = 3.3\n[model]\npath = 'from the file'\n")
    sets = ["search.budget=3.4", "model.path='from the set'"]
    made = config.load(preset=None, file=file, sets=sets, model=str(tmp_path), previous=previous)
    search = made.settings[SearchSettings]
    assert (search.budget, search.width, made.settings[SolveSettings].damping) == (3.4, 6, 0.5)
    assert made.settings[Recipe].weight_bits == 3, "of the previous preset"
    assert made.model == tmp_path and made.request["preset"] == "w3a3"
    assert made.request["tables"]["search"] == {"budget": 3.4, "width": 6}
    assert made.request["tables"]["model"] == {"path": str(tmp_path)}
    scratch = config.load(preset="w4a4", file=None, sets=[], model=None, previous=previous)
    assert (scratch.settings[SearchSettings].width, scratch.settings[SolveSettings].damping) == (2, 0.01)
    assert scratch.request == {"preset": "w4a4", "tables": {}}
    assert _load().request["preset"] == "w4a4" and _load().settings[SearchSettings].budget == 4.0


def test_the_model_s_own_call_is_the_weakest_of_the_call_s_layers(tmp_path: Path) -> None:
    (tmp_path / "sampling.json").write_text('{"call": {"height": 64, "num_inference_steps": 9}}')
    made = config.load(
        preset=None, file=None, sets=["model.call.num_inference_steps=3"], model=str(tmp_path), previous=None
    )
    assert made.settings[ModelSettings].call == {"height": 64, "num_inference_steps": 3}
    assert made.settings[ModelSettings].world == ""
    for text in ("{", "[]", '{"world": "scenes"}', '{"call": 3}'):
        (tmp_path / "sampling.json").write_text(text)
        with pytest.raises(ConfigError, match=r"sampling\.json is not"):
            config.sampling(tmp_path)


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("search.budget=3.6", {"search": {"budget": 3.6}}),
        ("data.prompts=['a', 'b=c']", {"data": {"prompts": ["a", "b=c"]}}),
        ("recipe.method=rtn", {"recipe": {"method": "rtn"}}),
        ("model.path=/a/b c", {"model": {"path": "/a/b c"}}),
        (" model.call.eta =0.5", {"model": {"call": {"eta": 0.5}}}),
        ("fisher.gradient_checkpointing=true", {"fisher": {"gradient_checkpointing": True}}),
        ("model.path=", {"model": {"path": ""}}),
    ],
)
def test_a_set_is_toml_and_else_text(text: str, table: dict[str, Any]) -> None:
    assert parse_set([text]) == table


def test_sets_of_one_table_are_merged_and_the_last_wins() -> None:
    assert parse_set(["search.width=3", "search.budget=3.6", "search.width=4"]) == {
        "search": {"width": 4, "budget": 3.6}
    }


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["budget=3"], r"--set takes table\.key=value, e\.g\. search\.budget=3\.6; got 'budget=3'"),
        (["search.budget"], r"--set takes table\.key=value.* got 'search\.budget'"),
        (["serach.budget=3"], r"there is no table \[serach\]; did you mean 'search'\?"),
        (["zzzzzz.budget=3"], r"there is no table \[zzzzzz\]; there are assemble, capture, cluster, compute, data,"),
        (["search.budgte=3"], r"\[search\] has no key 'budgte'; did you mean 'budget'\?"),
        (["search.width=0"], r"search\.width: .*greater than or equal to 1 \(got 0\)"),
        (["search.width=two"], r"search\.width: .*valid integer.* \(got 'two'\)"),
        (["recipe.method=quark"], r"unknown recipe\.method 'quark'; choose from adatsq, "),
        (["recipe.method=tq_dit", "recipe.allocation=trellis"], r"needs allocation = 'uniform'"),
        (["recipe.rank=2"], r"trajectory' .* needs no rank, codebook, time_groups or group_search"),
        (["recipe.smoothing=smoothquant", "recipe.smoothing_fold=true"], r"trajectory' .* smoothing_fold = false"),
        (["recipe.smoothing=smoothquant", "recipe.smoothing_grid=3"], r"needs smoothing_error = 'tokens' or"),
        (["recipe.method=rtn", "recipe.smoothing_error=tokens"], r"'tokens' chooses a smoothing exponent; it needs"),
        (["recipe.method=ptq4dit", "recipe.transform=greedy"], r"'greedy' needs smoothing_fold = false and channel"),
        (["recipe.method=permuquant", "recipe.transform=greedy"], r"'greedy' needs .* channel_order = 'random'"),
        (["recipe.rotation_steps=0"], r"recipe\.rotation_steps: .*greater than or equal to 1 \(got 0\)"),
        (["data.inputs=[{}]"], r"data\.inputs comes from a manifest; name it: --set data\.prompts_file=FILE\.jsonl"),
        (["cluster.executor=slurm"], r"cluster\.executor: .*'ray' or 'inline'"),
        (
            ["model.path=scenes/flux-dve"],
            r"there is no built-in model 'scenes/flux-dve'; did you mean 'scenes/flux-dev'",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_what_may_be_written(sets: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _load(*sets)


def test_a_table_that_is_a_value_and_a_preset_that_is_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("search = 3\n")
    with pytest.raises(ConfigError, match=r"search is a table, not 3; write search\.<key>"):
        config.load(preset=None, file=file, sets=[], model=None, previous=None)
    file.write_text("search = [")
    with pytest.raises(ConfigError, match=r"c\.toml is not TOML"):
        config.load(preset=None, file=file, sets=[], model=None, previous=None)
    with pytest.raises(ConfigError, match=r"--config .*none\.toml: there is no such file"):
        config.load(preset=None, file=tmp_path / "none.toml", sets=[], model=None, previous=None)
    with pytest.raises(ConfigError, match=r"preset is 'w5a5'; there are w4a4, w3a3"):
        _load(preset="w5a5")


def test_prompts_come_from_the_settings_or_the_file_or_the_captions_that_ship(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("one\n\ntwo\n")

    def load(*sets: str) -> config.RunConfig:
        return config.load(preset=None, file=None, sets=sets, model=str(tmp_path), previous=None)

    made = load(f"data.prompts_file={file}", "evaluate.prompts=['three']")
    assert (made.settings[DataSettings].prompts, made.settings[EvaluateSettings].prompts) == (
        ("one", "two"),
        ("three",),
    )
    for kind in (DataSettings, EvaluateSettings):
        assert not {"count", "prompts_file", "inputs"} & set(made.settings[kind].identity()), "they bear no identity"
    assert made.settings[DataSettings].batch == 8 and made.images == {}
    ours = load("data.count=3", "evaluate.count=2").settings
    lines = (ROOT / "pipeline" / "presets" / "captions.txt").read_text().splitlines()
    assert ours[DataSettings].prompts == (lines[0], lines[2], lines[4])
    assert ours[EvaluateSettings].kinds == ("text in the picture", "hands"), "the first stress captions"
    assert not set(ours[EvaluateSettings].prompts) & set(lines)


def test_what_the_built_in_world_cannot_draw_is_refused() -> None:
    made = _load("data.prompts=['a red circle']")
    assert made.settings[ModelSettings].world == "scenes" and made.settings[DataSettings].prompts == ("a red circle",)
    with pytest.raises(ConfigError, match=r"evaluate\.prompts: .*a purple cow"):
        _load("evaluate.prompts=['a purple cow']")


def test_arguments_that_every_prompt_comes_with_are_the_call_s(tmp_path: Path) -> None:
    inputs = [{"call": {"a": 1, "b": 2}, "images": {"image": "x"}}, {"call": {"a": 1}, "images": {"image": "y"}}]
    settings = RunSettings([DataSettings(inputs=tuple(inputs)), EvaluateSettings(), ModelSettings(call={"c": 1})])
    made = config.RunConfig(settings=settings, cluster=ClusterSettings(), model=tmp_path, request={}, images={})
    assert made.prompt_arguments(DataSettings) == {"a", "image", "c"}
    assert made.prompt_arguments() == {"c"}, "the held-out prompts come with nothing"


@pytest.mark.parametrize(("asked", "share"), [("auto", 1.0), ("0", 1.0), ("0.25", 0.25), ("2", 1.0)])
def test_a_worker_counts_on_its_share_of_a_device(asked: str, share: float) -> None:
    assert _load(f"cluster.gpus_per_worker={asked}").cluster.device_share == share


def test_a_previous_request_that_is_torn_is_named(tmp_path: Path) -> None:
    assert read_request(tmp_path) is None
    (tmp_path / "config.toml").write_text("preset = ")
    with pytest.raises(StorageError, match=r"config\.toml is not TOML"):
        read_request(tmp_path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff\xfe\x00\x81", "is not TOML .*--preset"),
        (b"a = " + b"[" * 100_000, "is not TOML"),
        (b"[search]\nbudget = 3.5", r"holds search; it takes preset = .* \[tables\.search\]"),
        (b"tables = 5", "holds tables"),
    ],
    ids=["random bytes", "a deep nest", "tables without their name", "a number"],
)
def test_a_stored_request_that_is_none_is_named_and_a_preset_replaces_it(
    data: bytes, words: str, tmp_path: Path
) -> None:
    run = RunDir(tmp_path)
    run.create()
    (tmp_path / "config.toml").write_bytes(data)
    with pytest.raises(StorageError, match=words):
        load_config(run, None, None, None, ())
    write_request(run, load_config(run, None, "w3a3", None, ()))
    assert read_request(tmp_path) == {"preset": "w3a3", "tables": {}}


def test_the_configuration_is_written_only_where_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    write_request(RunDir(tmp_path), _load("search.width=3"))
    stamp = path.stat().st_mtime_ns
    write_request(RunDir(tmp_path), _load("search.width=3"))
    assert path.stat().st_mtime_ns == stamp
    write_request(RunDir(tmp_path), _load("search.width=4"))
    assert tomllib.loads(path.read_text()) == {"preset": "w4a4", "tables": {"search": {"width": 4}}}


def test_the_package_list_is_the_folders() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [
        p.parent.relative_to(ROOT)
        for room in ("pipeline", "stages", "storage", "cluster")
        for p in (ROOT / room).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted("adatsq_pipe." + ".".join(p.parts) for p in found)


def test_a_call_may_hold_lists_and_nothing(tmp_path: Path) -> None:
    sets = [
        "model.call.steps=[1, 2]",
        "model.call.schedule=null",
        "model.call.eta=0.5",
        "model.call.dynamic=true",
        "model.call.how={a=1}",
    ]
    loaded = _load(*sets)
    call = loaded.settings[ModelSettings].call
    assert (call["steps"], call["schedule"], call["eta"], call["dynamic"]) == ([1, 2], None, 0.5, True)
    assert call["how"] == {"a": 1}
    place = RunDir(tmp_path)
    write_request(place, loaded)
    again = _load(previous=read_request(tmp_path))
    assert again.settings[ModelSettings].call == call
    with pytest.raises(ConfigError, match=r"model\.call"):
        _load("model.call.x={a={b=1}}")


def test_a_budget_below_the_fewest_widths_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"budget of 2\.9 mean bits cannot be met.*'trellis' is 3"):
        _load("recipe.method=adatsq", "search.bits=[]", "search.budget=2.9")
    assert _load("recipe.method=rtn", "search.bits=[]", "search.budget=2.9").settings[SearchSettings].budget == 2.9
    made = _load("recipe.method=endpoint", "search.bits=[]", "search.budget=2.9")
    assert widths_of(made.settings[SearchSettings], "lagrangian") == (2, 3, 4, 5, 6, 8)


def test_weight_bits_set_alone_are_the_weight_budget_of_a_method_that_has_one() -> None:
    assert _load("recipe.method=endpoint", "recipe.weight_bits=3").settings[Recipe].weight_budget == 3.0
    both = _load("recipe.method=endpoint", "recipe.weight_bits=4", "recipe.weight_budget=0.0").settings[Recipe]
    assert (both.weight_bits, both.weight_budget) == (4, 0.0)
    assert _load("recipe.method=adatsq", "recipe.weight_bits=3").settings[Recipe].weight_budget == 0.0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("search.candidates=[]", "search.candidates: Tuple should have at least 1 item"),
        ("search.candidates=[[1e308, 0]]", "must be two numbers of at least 0 and at most 16"),
        ("search.batches=1000000000000", "the 32 calibration captions make 4 of 8; lower search.batches"),
        ("search.width=1000000000", "search.width: Input should be less than or equal to 1024"),
        ("search.budget=1e300", "search.budget: Input should be less than or equal to 16"),
        ("data.seed=-1", "data.seed: Input should be greater than or equal to 0"),
        ("evaluate.seed=-7", "evaluate.seed: Input should be greater than or equal to 0"),
        ("fisher.seed=-1", "fisher.seed: Input should be greater than or equal to 0"),
        ("data.seed=18446744073709551616", "data.seed: Input should be less than"),
        ("evaluate.seed=18446744073709551616", "evaluate.seed: Input should be less than"),
        ("fisher.seed=18446744073709551616", "fisher.seed: Input should be less than"),
        ("evaluate.seeds=1000000000", "evaluate.seeds: Input should be less than or equal to 1000"),
        ("evaluate.seeds=true", "seeds is a number, not true"),
        ("fisher.draws=1000000000", "fisher.draws: Input should be less than or equal to 1000"),
        ("recipe.group_search=[-4]", "group_search has -4; write sizes of 1 or more"),
        ("recipe.weight_bits='four'", "recipe.weight_bits: Input should be 2, 3, 4, 5, 6 or 8"),
        ("recipe.weight_bits=[4]", "recipe.weight_bits: Input should be 2, 3, 4, 5, 6 or 8"),
        ("compute.threads=1000000000000", "compute.threads: Input should be less than or equal to 1024"),
        *((f"compute.device='{name}'", "compute.device: ") for name in ("", "gpu", "mps", "xla", "meta", "cuda:x")),
        ("cluster.address=''", "cluster.address"),
        ("cluster.workers=1000000000", "cluster.workers"),
        ("cluster.gpus_per_worker=1e308", "from 0 to 1000, or auto"),
        *((f"model.call.num_inference_steps={n}", "whole number from 1 to 10000") for n in ("0", "-1", "2.5", "'a'")),
        *((f"model.call.num_{n}_per_prompt=2", "draw more of each with evaluate.seeds") for n in ("images", "videos")),
        ("model.call.num_images_per_prompt='two'", "one picture is drawn of every prompt"),
        ("model.call.num_inference_steps=true", "num_inference_steps is True; write a whole number"),
        ("model.call.height=-16", "height is -16; write a whole number from 1 to 65536"),
        ("model.call.width=1e9", "width is 1000000000.0; write a whole number"),
        ("model.call.prompt='mine'", "prompt is set by the run itself"),
        ("model.call.output_type='latent'", "output_type is set by the run itself"),
    ],
)
def test_a_setting_that_is_absurd_is_refused_at_the_start_in_one_line(setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _load(setting)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "setting",
    [
        "data.seed=8796093022207", "evaluate.seed=0", "fisher.seed=9223372036854775807", "evaluate.seeds=1000",
        "search.bits=[]", "recipe.group_search=[]", "model.call.num_inference_steps=1", "model.call.height='null'",
        "data.batch=1000000000000", "search.batches=4", "compute.device='cuda:7'",
    ],
)  # fmt: skip
def test_the_largest_and_the_least_that_can_be_are_taken(setting: str) -> None:
    _load(setting)


def test_the_largest_seed_leaves_every_caption_a_seed_that_torch_and_tables_hold() -> None:
    captions, seeds = 100_000, 1_000
    assert 1_000_003 * (LARGEST_SEED + seeds) + captions < 2**63
