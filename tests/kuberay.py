"""The fields of KubeRay's custom resources, ray.io/v1 of KubeRay 1.4 to 1.7, as far as the files in cluster/ go.

A JSON schema in which a field that is not known is an error: Kubernetes would drop it without a word. Of pods, the
fields in use are known, with their types; not every field that Kubernetes has.
"""

from __future__ import annotations

from typing import Any

TEXT, WHOLE, YES_NO = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
QUANTITY = {"type": ["string", "integer"]}
ANYTHING: dict[str, Any] = {}


def some(kind: dict[str, Any]) -> dict[str, Any]:
    """A map of names to values of one kind."""
    return {"type": "object", "additionalProperties": kind}


def each(kind: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": kind}


def one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


def fields(*required: str, **known: dict[str, Any]) -> dict[str, Any]:
    """An object with these fields and no other."""
    return {"type": "object", "properties": known, "required": list(required), "additionalProperties": False}


CONTAINER = fields(
    "name",
    "image",
    name=TEXT,
    image=TEXT,
    ports=each(fields("containerPort", containerPort=WHOLE, name=TEXT, protocol=TEXT)),
    env=each(
        fields("name", name=TEXT, value=TEXT, valueFrom=fields(secretKeyRef=fields("name", "key", name=TEXT, key=TEXT)))
    ),
    resources=fields(requests=some(QUANTITY), limits=some(QUANTITY)),
    volumeMounts=each(fields("name", "mountPath", name=TEXT, mountPath=TEXT, subPath=TEXT, readOnly=YES_NO)),
)
POD = fields(
    "containers",
    containers=each(CONTAINER),
    securityContext=fields(
        runAsNonRoot=YES_NO,
        runAsUser=WHOLE,
        runAsGroup=WHOLE,
        fsGroup=WHOLE,
        fsGroupChangePolicy=one_of("OnRootMismatch", "Always"),
    ),
    volumes=each(
        fields(
            "name",
            name=TEXT,
            persistentVolumeClaim=fields("claimName", claimName=TEXT, readOnly=YES_NO),
            emptyDir=fields(medium=one_of("", "Memory"), sizeLimit=QUANTITY),
        )
    ),
)
TEMPLATE = fields("spec", metadata=ANYTHING, spec=POD)
GROUP = {"template": TEMPLATE, "rayStartParams": some(TEXT), "resources": some(TEXT), "labels": some(TEXT)}
CLUSTER = fields(
    "headGroupSpec",
    rayVersion=TEXT,
    enableInTreeAutoscaling=YES_NO,
    autoscalerOptions=fields(
        version=one_of("v1", "v2"),
        idleTimeoutSeconds=WHOLE,
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
        image=TEXT,
        imagePullPolicy=TEXT,
        resources=ANYTHING,
        env=ANYTHING,
        envFrom=ANYTHING,
        securityContext=ANYTHING,
        volumeMounts=ANYTHING,
    ),
    headServiceAnnotations=some(TEXT),
    gcsFaultToleranceOptions=ANYTHING,
    suspend=YES_NO,
    managedBy=TEXT,
    headGroupSpec=fields(
        "template", "rayStartParams", **GROUP, headService=ANYTHING, enableIngress=YES_NO, serviceType=TEXT
    ),
    workerGroupSpecs=each(
        fields(
            *("groupName", "template", "rayStartParams", "minReplicas", "maxReplicas"),
            **GROUP,
            groupName=TEXT,
            replicas=WHOLE,
            minReplicas=WHOLE,
            maxReplicas=WHOLE,
            idleTimeoutSeconds=WHOLE,
            numOfHosts=WHOLE,
            scaleStrategy=ANYTHING,
            suspend=YES_NO,
        )
    ),
)
SPECS = {
    "RayJob": fields(
        entrypoint=TEXT,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        backoffLimit=WHOLE,
        rayClusterSpec=CLUSTER,
        clusterSelector=some(TEXT),
        shutdownAfterJobFinishes=YES_NO,
        ttlSecondsAfterFinished=WHOLE,
        submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        submitterPodTemplate=ANYTHING,
        submitterConfig=ANYTHING,
        runtimeEnvYAML=TEXT,
        jobId=TEXT,
        metadata=some(TEXT),
        entrypointNumCpus={"type": "number"},
        entrypointNumGpus={"type": "number"},
        entrypointResources=TEXT,
        deletionStrategy=ANYTHING,
        suspend=YES_NO,
        managedBy=TEXT,
    ),
    "RayService": fields(
        "serveConfigV2",
        serveConfigV2=TEXT,
        rayClusterConfig=CLUSTER,
        serveService=ANYTHING,
        upgradeStrategy=ANYTHING,
        deploymentUnhealthySecondThreshold=WHOLE,
        serviceUnhealthySecondThreshold=WHOLE,
        rayClusterDeletionDelaySeconds=WHOLE,
        excludeHeadPodFromServeSvc=YES_NO,
        suspend=YES_NO,
        managedBy=TEXT,
    ),
}


def schema(kind: str) -> dict[str, Any]:
    """Of a whole document: kind RayJob or RayService."""
    return fields(
        *("apiVersion", "kind", "metadata", "spec"),
        apiVersion=one_of("ray.io/v1"),
        kind=one_of(kind),
        metadata=fields("name", name=TEXT, namespace=TEXT, labels=some(TEXT), annotations=some(TEXT)),
        spec=SPECS[kind],
    )
