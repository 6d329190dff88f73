"""deploy/kubernetes and deploy/kserve: rendered, and held against Kubernetes's own schemas."""

import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.conftest import ROOT

# The oldest that every field exists in, and the newest whose schemas are installed.
VERSIONS = ("1.29", kubernetes_validate.latest_version())
KINDS = {
    "Deployment",
    "HorizontalPodAutoscaler",
    "Namespace",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "Service",
    "ServiceAccount",
}
# Of KServe's ComponentExtensionSpec (v1beta1); all other fields of a predictor are a pod's.
KSERVE_FIELDS = {"maxReplicas", "minReplicas", "scaleMetric", "scaleTarget", "timeout"}
DRAIN_SECONDS = 30


def kubectl():
    own = Path(sys.executable).parent / "kubectl"
    return str(own) if own.exists() else shutil.which("kubectl")


def render(folder):
    done = subprocess.run(
        [kubectl(), "kustomize", str(ROOT / "deploy" / folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {one["kind"]: one for one in yaml.safe_load_all(done.stdout)}


@pytest.fixture(scope="module")
def cluster():
    return render("kubernetes")


@pytest.fixture(scope="module")
def inference_service():
    return render("kserve")["InferenceService"]


def valid(resource):
    for version in VERSIONS:
        kubernetes_validate.validate(resource, version, strict=True)


def predictor_pod(service):
    """The pod that KServe makes of a predictor."""
    fields = service["spec"]["predictor"].items()
    spec = {name: value for name, value in fields if name not in KSERVE_FIELDS}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "predictor"}, "spec": spec}


def pods(cluster, inference_service):
    predictor = predictor_pod(inference_service)["spec"]
    return [cluster["Deployment"]["spec"]["template"]["spec"], predictor]


def test_every_resource_is_there_and_valid(cluster):
    assert set(cluster) == KINDS
    for resource in cluster.values():
        valid(resource)
        if resource["kind"] != "Namespace":
            assert resource["metadata"]["namespace"] == "vitrine"


def test_a_field_that_does_not_exist_is_noticed(cluster):
    spec = dict(cluster["Service"]["spec"], sessionAfinity="None")
    with pytest.raises(kubernetes_validate.ValidationError):
        valid({**cluster["Service"], "spec": spec})


def test_the_predictor_is_a_pod_and_what_kserve_adds(inference_service):
    assert inference_service["apiVersion"] == "serving.kserve.io/v1beta1"
    assert set(inference_service["spec"]) == {"predictor"}
    predictor = inference_service["spec"]["predictor"]
    assert predictor.keys() >= KSERVE_FIELDS
    valid(predictor_pod(inference_service))
    [container] = predictor["containers"]
    assert container["name"] == "kserve-container"
    assert {"name": "PROTOCOL", "value": "v2"} in container["env"]
    valid(render("kserve")["PersistentVolumeClaim"])


def test_models_are_mounted_where_the_server_looks_and_read_only(inference_service):
    predictor = inference_service["spec"]["predictor"]
    [container] = predictor["containers"]
    [store] = [one for one in container["volumeMounts"] if one["name"] == "models"]
    assert container["args"] == ["--model-store", store["mountPath"]]
    assert store["readOnly"]
    [volume] = [one for one in predictor["volumes"] if one["name"] == "models"]
    claim = volume["persistentVolumeClaim"]
    assert claim == {
        "claimName": render("kserve")["PersistentVolumeClaim"]["metadata"]["name"],
        "readOnly": True,
    }


def test_pods_have_no_privilege(cluster, inference_service):
    for spec in pods(cluster, inference_service):
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"].keys() == {"requests", "limits"}
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert cluster["ServiceAccount"]["automountServiceAccountToken"] is False
    labels = cluster["Namespace"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_probes_ask_what_each_is_for(cluster, inference_service):
    for spec in pods(cluster, inference_service):
        [container] = spec["containers"]
        paths = {
            name: container[f"{name}Probe"]["httpGet"]["path"]
            for name in ("startup", "liveness", "readiness")
        }
        assert paths == {
            "startup": "/v2/health/ready",
            "liveness": "/v2/health/live",
            "readiness": "/v2/health/ready",
        }


def test_there_is_time_to_drain(cluster, inference_service):
    for spec in pods(cluster, inference_service):
        [container] = spec["containers"]
        asleep = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        readiness = container["readinessProbe"]
        unready = readiness["periodSeconds"] * readiness["failureThreshold"]
        # By then no endpoint names it.
        assert asleep >= unready
        assert spec["terminationGracePeriodSeconds"] > asleep + DRAIN_SECONDS + 30


def test_selectors_select_the_pods(cluster):
    deployment = cluster["Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        cluster["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        cluster["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        cluster["Service"]["spec"]["selector"],
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()
    target = cluster["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    # The autoscaler's number would be put back at each `apply`.
    assert "replicas" not in deployment["spec"]


def test_only_the_inference_port_is_open_and_nothing_goes_out(cluster):
    policy = cluster["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policy or policy["egress"] == []
    [rule] = policy["ingress"]
    assert rule["ports"] == [{"port": "http", "protocol": "TCP"}]
    [container] = cluster["Deployment"]["spec"]["template"]["spec"]["containers"]
    [port] = container["ports"]
    assert (port["name"], port["containerPort"]) == ("http", 8080)


def test_scaling_is_by_waiting_and_by_the_processor(cluster):
    metrics = cluster["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert [one["type"] for one in metrics] == ["Pods", "Resource"]
    assert metrics[0]["pods"]["target"]["type"] == "AverageValue"
    assert metrics[1]["resource"]["name"] == "cpu"
