"""The shipped cluster files: valid by Ray's own schema, by RayJob's, and in what they ask of this package."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from adatsq_pipe.cluster import wheel
from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.pipeline.commands.remote import NAME, entrypoint
from tests.cluster.rayjob_schema import RAYJOB

EXAMPLES = resources.files("adatsq_pipe.cluster") / "examples"


def _read(name: str) -> Any:
    return yaml.safe_load((EXAMPLES / name).read_text())


@pytest.fixture
def launcher() -> Any:
    return _read("ray-cluster.yaml")


@pytest.fixture
def rayjob() -> Any:
    return _read("kuberay-rayjob.yaml")


def _ray_schema() -> Any:
    import ray

    return json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


def test_the_launcher_file_by_rays_schema_and_by_its_own_reader(launcher: Any) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    jsonschema.validate(launcher, _ray_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**launcher, "head_setup_comands": []}, _ray_schema())
    prepared = prepare_config(copy.deepcopy(launcher))
    validate_config(prepared)
    assert prepared["available_node_types"]["local.cluster.node"]["max_workers"] == 2


def test_the_launcher_file_asks_for_a_token_and_opens_no_dashboard(launcher: Any) -> None:
    starts = [c for k in ("head", "worker") for c in launcher[f"{k}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    installed = next(c for c in launcher["setup_commands"] if "ray[default]" in c)
    assert wheel.requirement_on(NAME, "ray").specifier.contains(installed.rpartition("==")[2].strip('"'))


def test_the_launcher_files_own_command_can_be_submitted() -> None:
    text = (EXAMPLES / "ray-cluster.yaml").read_text()
    shown = text[text.index("adatsq-pipe submit") : text.index("# /mnt/shared")].replace("\\\n#", " ").replace("#", " ")
    assert "/mnt/shared/run" in entrypoint(main, shlex.split(shown.partition(" -- ")[2]))


def test_the_rayjob(rayjob: Any) -> None:
    jsonschema.validate(rayjob, RAYJOB)
    spec, cluster = rayjob["spec"], rayjob["spec"]["rayClusterSpec"]
    assert spec["backoffLimit"] > 0 and spec["shutdownAfterJobFinishes"] and cluster["authOptions"] == {"mode": "token"}
    words = shlex.split(spec["entrypoint"])
    assert words[0] == "adatsq-pipe" and "auto" in words
    entrypoint(main, words[1:])
    assert wheel.requirement_on(NAME, "ray").specifier.contains(cluster["rayVersion"])
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["image"].endswith(f"ray{cluster['rayVersion']}")
            assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
            assert "/shared" in {mount["mountPath"] for mount in container["volumeMounts"]}
        assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == "adatsq-shared"
    gpus = [g["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0) for g in groups]
    assert gpus == [0, 1] and f"cluster.workers={cluster['workerGroupSpecs'][0]['maxReplicas']}" in words


def _misspell(job: Any) -> None:
    job["spec"]["backofLimit"] = job["spec"].pop("backoffLimit")


def _number(job: Any) -> None:
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-gpus"] = 0


def _relative(job: Any) -> None:
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"][0][
        "mountPath"
    ] = "shared"


def _nameless(job: Any) -> None:
    del job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["groupName"]


def _amount(job: Any) -> None:
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"][
        "memory"
    ] = "16 GB"


@pytest.mark.parametrize("spoil", [_misspell, _number, _relative, _nameless, _amount])
def test_the_rayjob_schema_refuses(spoil: Callable[[Any], None], rayjob: Any) -> None:
    spoil(rayjob)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(rayjob, RAYJOB)
