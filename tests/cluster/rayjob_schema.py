"""The parts of RayJob (ray.io/v1, KubeRay 1.5) and of a pod that our manifest may use, as a closed JSON schema.

Names, types and what is required are those of the public definitions; anything that is not listed is refused, so a
misspelt key cannot pass, and a new one has to be looked up first.
"""

from __future__ import annotations

from typing import Any

TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITY: dict[str, Any] = {
    "anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?$"}]
}
NAME: dict[str, Any] = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
PATH: dict[str, Any] = {"type": "string", "pattern": "^/"}


def _closed(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": list(required), "additionalProperties": False,
    }  # fmt: skip


def _listed(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


AMOUNTS: dict[str, Any] = {"type": "object", "additionalProperties": QUANTITY}
CONTAINER = _closed(
    ("name", "image"),
    name=NAME,
    image=TEXT,
    resources=_closed(requests=AMOUNTS, limits=AMOUNTS),
    volumeMounts=_listed(_closed(("name", "mountPath"), name=NAME, mountPath=PATH, readOnly={"type": "boolean"})),
)
VOLUME = _closed(
    ("name",),
    name=NAME,
    persistentVolumeClaim=_closed(("claimName",), claimName=NAME, readOnly={"type": "boolean"}),
    emptyDir=_closed(medium={"enum": ["", "Memory"]}, sizeLimit=QUANTITY),
)
TOLERATION = _closed(
    key=TEXT,
    operator={"enum": ["Exists", "Equal"]},
    value=TEXT,
    effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
)
POD = _closed(
    ("spec",),
    spec=_closed(
        ("containers",),
        containers=_listed(CONTAINER),
        volumes=_listed(VOLUME),
        tolerations=_listed(TOLERATION),
        nodeSelector=TEXTS,
        terminationGracePeriodSeconds=COUNT,
    ),
)
CLUSTER = _closed(
    ("headGroupSpec",),
    rayVersion=TEXT,
    authOptions=_closed(mode={"enum": ["disabled", "token"]}),
    headGroupSpec=_closed(("rayStartParams", "template"), rayStartParams=TEXTS, template=POD),
    workerGroupSpecs=_listed(
        _closed(
            ("groupName", "rayStartParams", "template", "minReplicas", "maxReplicas"),
            groupName=NAME, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT, numOfHosts=COUNT,
            rayStartParams=TEXTS, template=POD,
        )
    ),
)  # fmt: skip
RAYJOB = _closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_closed(("name",), name={**NAME, "maxLength": 47}, namespace=NAME, labels=TEXTS, annotations=TEXTS),
    spec=_closed(
        ("entrypoint", "rayClusterSpec"),
        entrypoint=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
        submitterConfig=_closed(backoffLimit=COUNT),
        backoffLimit=COUNT,
        activeDeadlineSeconds={**COUNT, "minimum": 1},
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        suspend={"type": "boolean"},
        runtimeEnvYAML=TEXT,
        jobId=TEXT,
        metadata=TEXTS,
        rayClusterSpec=CLUSTER,
    ),
)
