"""The fields of KServe's objects that deploy/kubernetes/overlays/kserve uses.

Written from the custom resource definitions that KServe publishes (config/crd/full in github.com/kserve/kserve, commit
aaac4e2 of August 2026, two megabytes); the overlay was validated with these once. What is in a container's probes,
resources and security context is Kubernetes' own, and its schema of a pod is asked about it.
"""

from __future__ import annotations

from typing import Any

_TEXT = {"type": "string"}
_FLAG = {"type": "boolean"}
_COUNT = {"type": "integer", "format": "int32"}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}


def _object(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


_METADATA = _object(("name",), name=_TEXT, annotations=_TEXTS, labels=_TEXTS)
_CONTAINER = _object(
    ("name",),
    name=_TEXT,
    image=_TEXT,
    args=_list(_TEXT),
    env=_list(_object(("name",), name=_TEXT, value=_TEXT)),
    ports=_list(
        _object(
            ("containerPort",), name=_TEXT, containerPort=_COUNT, protocol={"enum": ["TCP", "UDP", "SCTP"]}
        )
    ),
    securityContext={"type": "object"},
    startupProbe={"type": "object"},
    livenessProbe={"type": "object"},
    readinessProbe={"type": "object"},
    resources={"type": "object"},
    volumeMounts=_list({"type": "object"}),
)


def _kind(group_version: str, kind: str, specification: dict[str, Any]) -> dict[str, Any]:
    return _object(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": group_version},
        kind={"const": kind},
        metadata=_METADATA,
        spec=specification,
    )


SCHEMAS = {
    ("ServingRuntime", "serving.kserve.io/v1alpha1"): _kind(
        "serving.kserve.io/v1alpha1",
        "ServingRuntime",
        _object(
            ("containers",),
            annotations=_TEXTS,
            supportedModelFormats=_list(_object(("name",), name=_TEXT, version=_TEXT, autoSelect=_FLAG)),
            protocolVersions=_list(_TEXT),
            containers=_list(_CONTAINER),
            volumes=_list({"type": "object"}),
        ),
    ),
    ("InferenceService", "serving.kserve.io/v1beta1"): _kind(
        "serving.kserve.io/v1beta1",
        "InferenceService",
        _object(
            ("predictor",),
            predictor=_object(
                minReplicas=_COUNT,
                terminationGracePeriodSeconds={"type": "integer", "format": "int64"},
                automountServiceAccountToken=_FLAG,
                enableServiceLinks=_FLAG,
                model=_object(
                    ("modelFormat",),
                    modelFormat=_object(("name",), name=_TEXT, version=_TEXT),
                    runtime=_TEXT,
                    protocolVersion=_TEXT,
                    storageUri=_TEXT,
                ),
            ),
        ),
    ),
}
