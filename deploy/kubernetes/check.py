"""Checks what is deployed to Kubernetes, without a cluster and without a network: `scripts/kubernetes.sh check`.

Each overlay is rendered by kustomize, held to the API's schemas (strictly: an unknown field is an error), and to what no
schema knows: that names lead somewhere, that no container has more than the documents say, and that Berth itself takes the
settings. All problems are told, one a line, each with the object that it is in.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import kubernetes_validate
import yaml

# The oldest that has all fields that are used (appArmorProfile), and the newest that there are schemas of.
VERSIONS = ["1.31", "1.37"]
WORKLOADS = {"Deployment", "StatefulSet", "DaemonSet"}
CLUSTER_WIDE = {"Namespace"}
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def render(directory):
    tools = [["kubectl", "kustomize"], ["kustomize", "build"]]
    tool = next((tool for tool in tools if shutil.which(tool[0])), None)
    if tool is None:
        sys.exit("error: neither kubectl nor kustomize is here\nhint: install one of them; it renders the overlays")
    done = subprocess.run([*tool, str(directory)], capture_output=True, text=True)
    if done.returncode != 0:
        raise Problem(f"can't be rendered: {done.stderr.strip()}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


class Problem(Exception):
    pass


def seconds(text):
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "": 1}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([0-9.]+)(ms|s|m|h|)", text))


def matches(selector, labels):
    """A label selector, as far as it is used here."""
    if set(selector or {}) - {"matchLabels"}:
        raise Problem(f"a selector with {sorted(selector)}: check.py knows matchLabels alone")
    return all(labels.get(name) == value for name, value in (selector or {}).get("matchLabels", {}).items())


class Overlay:
    def __init__(self, directory, options):
        self.name, self.options, self.problems = directory.name, options, []
        self.documents = []
        try:
            self.documents = render(directory)
        except Problem as problem:
            self.problems.append(f"{self.name}: {problem}")

    def of(self, *kinds):
        return [document for document in self.documents if document["kind"] in kinds]

    def find(self, kind, namespace, name):
        found = (d for d in self.of(kind) if d["metadata"]["name"] == name and d["metadata"].get("namespace") == namespace)
        return next(found, None)

    def pods(self, namespace=None):
        """The workloads that make pods, there or anywhere."""
        return [w for w in self.of(*WORKLOADS) if namespace in (None, w["metadata"]["namespace"])]

    def selected(self, selector, namespace=None):
        return [w for w in self.pods(namespace) if matches(selector, w["spec"]["template"]["metadata"]["labels"])]

    def check(self):
        for document in self.documents:
            here = f"{document['kind']}/{document['metadata']['name']}"
            checks = [self.schema, self.namespaced]
            by_kind = {
                "Service": self.service,
                "PodDisruptionBudget": self.budget,
                "NetworkPolicy": self.policy,
                "HorizontalPodAutoscaler": self.autoscaler,
            }
            if document["kind"] in by_kind:
                checks.append(by_kind[document["kind"]])
            if document["kind"] in WORKLOADS:
                checks += [self.workload, self.volumes, self.reached, self.containers]
            for check in checks:
                # What one check can't make sense of is a problem of its own, and hides no other.
                told = []
                try:
                    for text in check(document):
                        told.append(text)
                except Exception as problem:
                    told.append(f"{check.__name__}: {type(problem).__name__}: {problem}")
                self.problems += [f"{self.name}: {here}: {text}" for text in told]
        self.problems += [f"{self.name}: {text}" for text in self.whole()]
        return self.problems

    # ---- what holds for every object ----

    def schema(self, document):
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                path = ".".join(str(part) for part in error.path)
                yield f"not of the API {version}: {path}: {error.message}"
            except kubernetes_validate.SchemaNotFoundError:
                yield f"not of the API {version}: there is no {document['apiVersion']} {document['kind']}"

    def namespaced(self, document):
        namespace = document["metadata"].get("namespace")
        if document["kind"] in CLUSTER_WIDE:
            return
        if namespace is None:
            yield "it names no namespace"
        elif not self.find("Namespace", None, namespace):
            yield f"there is no namespace {namespace}"

    def whole(self):
        seen = set()
        for document in self.documents:
            key = (document["kind"], document["metadata"].get("namespace"), document["metadata"]["name"])
            if key in seen:
                yield f"{key} is there twice"
            seen.add(key)
        for namespace in self.of("Namespace"):
            name = namespace["metadata"]["name"]
            if "pod-security.kubernetes.io/enforce" not in namespace["metadata"].get("labels", {}):
                yield f"Namespace/{name}: it enforces no pod security standard"
            denies = [
                p
                for p in self.of("NetworkPolicy")
                if p["metadata"]["namespace"] == name and p["spec"]["podSelector"] == {} and not p["spec"].get("ingress")
                and not p["spec"].get("egress") and set(p["spec"]["policyTypes"]) == {"Ingress", "Egress"}
            ]
            if not denies:
                yield f"Namespace/{name}: no policy denies what none allows"
        for needed in ("berth-coordinator", "berth-worker"):
            if not any(w["metadata"]["name"] == needed for w in self.pods()):
                yield f"there is no {needed}"
            if not any(b["metadata"]["name"] == needed for b in self.of("PodDisruptionBudget")):
                yield f"there is no disruption budget of {needed}"

    # ---- who is meant ----

    def service(self, service):
        pods = self.selected({"matchLabels": service["spec"]["selector"]}, service["metadata"]["namespace"])
        if not pods:
            yield "its selector selects no pods"
        for port in service["spec"].get("ports", []):
            for pod in pods:
                yield from self.port(pod, port["targetPort"])

    def port(self, workload, port):
        declared = [p for c in workload["spec"]["template"]["spec"]["containers"] for p in c.get("ports", [])]
        if not any(port in (p["name"], p["containerPort"]) for p in declared):
            yield f"{workload['metadata']['name']} has no port {port}"

    def budget(self, budget):
        if not self.selected(budget["spec"]["selector"], budget["metadata"]["namespace"]):
            yield "its selector selects no pods"

    def policy(self, policy):
        spec = policy["spec"]
        pods = self.selected(spec["podSelector"], policy["metadata"]["namespace"])
        if not pods:
            yield "its selector selects no pods"
        for rule in spec.get("ingress", []):
            for port in rule.get("ports", []):
                for pod in pods:
                    yield from self.port(pod, port["port"])
        for rule in [*spec.get("ingress", []), *spec.get("egress", [])]:
            for peer in rule.get("from", rule.get("to", [])):
                name = peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
                ours = name and self.find("Namespace", None, name)
                if name and name.startswith("berth") and not ours:
                    yield f"it means a namespace {name}, which is not there"
                if ours and not self.selected(peer.get("podSelector"), name):
                    yield f"it means pods of {name} which are not there: {peer['podSelector']}"

    def autoscaler(self, scaler):
        namespace, target = scaler["metadata"]["namespace"], scaler["spec"]["scaleTargetRef"]
        workload = self.find(target["kind"], namespace, target["name"])
        if workload is None:
            yield f"there is no {target['kind']}/{target['name']}"
            return
        if "replicas" in workload["spec"]:
            yield f"{target['kind']}/{target['name']} says how many replicas it has: each apply would undo what this does"
        rules = yaml.safe_load((self.options.root / "components/autoscale/prometheus-adapter.yaml").read_text())
        served = {rule["name"]["as"]: rule for rule in rules["rules"]["external"]}
        for metric in scaler["spec"]["metrics"]:
            name = metric["external"]["metric"]["name"]
            if name not in served:
                yield f"prometheus-adapter.yaml has no metric {name}"
                continue
            places = environment(workload["spec"]["template"]["spec"]["containers"][0]).get("MAX_SESSIONS")
            if metric["external"]["target"]["averageValue"] != places:
                yield f"its target is not the places of a worker, MAX_SESSIONS={places}"
            for counted in ("berth_queue_depth", "berth_workers_places_free"):
                if counted not in served[name]["metricsQuery"]:
                    yield f"the query of {name} does not ask for {counted}"

    # ---- pods ----

    def workload(self, workload):
        spec, namespace = workload["spec"], workload["metadata"]["namespace"]
        pod = spec["template"]["spec"]
        if not matches(spec["selector"], spec["template"]["metadata"]["labels"]):
            yield "its selector does not select its own pods"
        service = spec.get("serviceName")
        if service is not None and not self.find("Service", namespace, service):
            yield f"there is no service {service}"
        if not self.find("ServiceAccount", namespace, pod.get("serviceAccountName")):
            yield f"there is no service account {pod.get('serviceAccountName')}"
        if pod.get("automountServiceAccountToken") is not False:
            yield "its pods get a token of the cluster's"
        if pod.get("enableServiceLinks") is not False:
            yield "it gets a variable for each service, as BERTH_COORDINATOR_PORT, which Berth refuses"
        for name in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(name):
                yield f"{name} is set"
        for container in pod["containers"]:
            env = environment(container)
            drains = env.get("BERTH_ON_STOP", "drain") == "drain" and container["name"] == "worker"
            grace = seconds(env.get("BERTH_SHUTDOWN_GRACE", "10s" if drains else "5s"))
            if pod["terminationGracePeriodSeconds"] <= grace:
                yield f"it is killed after {pod['terminationGracePeriodSeconds']} s, and has {grace:.0f} s to stop by itself"

    def volumes(self, workload):
        pod, namespace = workload["spec"]["template"]["spec"], workload["metadata"]["namespace"]
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        claims = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
        mounted = set()
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            for mount in container.get("volumeMounts", []):
                mounted.add(mount["name"])
                if mount["name"] not in volumes and mount["name"] not in claims:
                    yield f"{container['name']} mounts {mount['name']}, which is no volume"
        for name in sorted((set(volumes) | claims) - mounted):
            yield f"the volume {name} is mounted nowhere"
        for volume in volumes.values():
            if "configMap" in volume and not self.find("ConfigMap", namespace, volume["configMap"]["name"]):
                yield f"there is no config map {volume['configMap']['name']}"
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"the volume {volume['name']} has no limit"
            if "secret" in volume:
                yield from self.secret(pod, namespace, volume)

    def secret(self, pod, namespace, volume):
        """It is one that `scripts/kubernetes.sh secrets` makes, and has the files that a container names."""
        if self.options.secrets is None:
            return
        name = volume["secret"]["secretName"]
        made = next((s for s in self.options.secrets if (s["metadata"]["namespace"], s["metadata"]["name"]) == (namespace, name)), None)
        if made is None:
            yield f"no secret {namespace}/{name} is made by `scripts/kubernetes.sh secrets`"
            return
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] != volume["name"]:
                    continue
                text = " ".join([*container.get("command", []), *container.get("args", [])])
                for file in re.findall(re.escape(mount["mountPath"]) + r"/([\w.$-]+)", text):
                    file = file.replace("$WORKER_ID", "berth-worker-0")
                    if file not in made["data"]:
                        yield f"{container['name']} reads {file} of the secret {name}, which has {sorted(made['data'])}"

    def reached(self, workload):
        """The coordinator that its settings name is a service here, and both policies let it be dialled."""
        namespace = workload["metadata"]["namespace"]
        for container in workload["spec"]["template"]["spec"]["containers"]:
            address = environment(container).get("COORDINATOR_ADDR")
            if address is None:
                continue
            host, _, port = address.rpartition(":")
            name, _, rest = host.partition(".")
            there = rest.split(".")[0]
            service = self.find("Service", there, name)
            ports = [p for p in service["spec"]["ports"] if str(p["port"]) == port] if service else []
            if not ports:
                yield f"COORDINATOR_ADDR is {address}, and there is no such service"
                continue
            for pod in self.selected({"matchLabels": service["spec"]["selector"]}, there):
                declared = pod["spec"]["template"]["spec"]["containers"][0]["ports"]
                meant = [p for p in declared if ports[0]["targetPort"] in (p["name"], p["containerPort"])]
                if not meant:
                    # Told of the service.
                    continue
                number, word = meant[0]["containerPort"], meant[0]["name"]
                if not self.allowed("egress", "to", workload, pod, {number}):
                    yield f"no policy lets it dial {pod['metadata']['name']}:{number}"
                if not self.allowed("ingress", "from", pod, workload, {number, word}):
                    yield f"no policy lets it in at {pod['metadata']['name']}:{number}"

    def allowed(self, direction, side, of, peer, ports):
        labels = peer["spec"]["template"]["metadata"]["labels"]
        namespace = {"kubernetes.io/metadata.name": peer["metadata"]["namespace"]}
        for policy in self.of("NetworkPolicy"):
            if policy["metadata"]["namespace"] != of["metadata"]["namespace"] or of not in self.selected(policy["spec"]["podSelector"]):
                continue
            for rule in policy["spec"].get(direction, []):
                meant = any(
                    "ipBlock" not in p and matches(p.get("namespaceSelector"), namespace) and matches(p.get("podSelector"), labels)
                    for p in rule.get(side, [])
                )
                if meant and any(port["port"] in ports for port in rule["ports"]):
                    return True
        return False

    # ---- containers ----

    def containers(self, workload):
        pod = workload["spec"]["template"]["spec"]
        documented = (REPOSITORY / "docs/kubernetes.md").read_text()
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            here, context = container["name"], container.get("securityContext", {})
            for kind in ("cpu", "memory"):
                for bound in ("limits", "requests"):
                    if kind not in container.get("resources", {}).get(bound, {}):
                        yield f"{here} has no {bound} of {kind}"
            if context.get("privileged"):
                yield f"{here} is privileged"
            if context.get("readOnlyRootFilesystem") is not True:
                yield f"{here} may write to its root"
            if "allowPrivilegeEscalation" not in context:
                yield f"{here} does not say whether it may gain privileges"
            capabilities = context.get("capabilities", {})
            if capabilities.get("drop") != ["ALL"]:
                yield f"{here} keeps capabilities that it does not name"
            for added in capabilities.get("add", []):
                if f"| `{added}`" not in documented:
                    yield f"{here} has {added}, and docs/kubernetes.md does not say what for"
            profile = context.get("seccompProfile", pod.get("securityContext", {}).get("seccompProfile", {}))
            if profile.get("type") not in ("RuntimeDefault", "Localhost") and "`seccompProfile: Unconfined`" not in documented:
                yield f"{here} has no seccomp profile, and docs/kubernetes.md does not say why"
            if workload["metadata"]["name"] == "berth-coordinator":
                if pod["securityContext"].get("runAsNonRoot") is not True or context.get("allowPrivilegeEscalation") is not False:
                    yield f"{here} may be, or become, root"
                if capabilities.get("add"):
                    yield f"{here} has capabilities"
            yield from self.image(container)
        for container in pod["containers"]:
            yield from self.probes(container)
            yield from self.settings(container)

    def image(self, container):
        name, _, tag = container["image"].partition(":")
        if tag in ("", "latest"):
            yield f"{container['name']}: {container['image']} names no version"
        version = re.search(r'^version = "(.*)"', (REPOSITORY / "Cargo.toml").read_text(), re.M).group(1)
        if name in ("berth/coordinator", "berth/worker") and tag != version:
            yield f"{container['name']}: {container['image']} is not of this version, {version}"

    def probes(self, container):
        for probe, asked in (("startupProbe", "started"), ("livenessProbe", "live"), ("readinessProbe", "ready")):
            command = container.get(probe, {}).get("exec", {}).get("command")
            wanted = [f"/usr/bin/{container['name']}", "health", asked]
            if command != wanted:
                yield f"{container['name']}: its {probe} is {command}, and not {wanted}"
        if self.options.bin is None:
            return
        with tempfile.TemporaryDirectory() as nobody:
            binary = self.options.bin / container["name"]
            for asked in ("started", "live", "ready"):
                # 1: nobody answers there. 2 would be: it knows no such question.
                done = run([binary, "--state-dir", nobody, "health", asked], {})
                if done.returncode != 1:
                    yield f"{container['name']}: `health {asked}` ended with {done.returncode}: {done.stderr.strip()}"

    def settings(self, container):
        """Berth itself takes each of them, name and value."""
        if self.options.bin is None:
            return
        env = environment(container)
        done = run([self.options.bin / container["name"], "--print-config"], env)
        if done.returncode != 0:
            yield f"{container['name']} does not take its settings: {done.stderr.strip()}"
        elif done.stdout.count("environment") < len(env):
            yield f"{container['name']} does not read all of {sorted(env)}: {done.stdout}"


def environment(container):
    """Its variables. What comes of the pod itself has a value that could be one."""
    return {variable["name"]: variable.get("value", "berth-worker-0") for variable in container.get("env", [])}


def run(command, env):
    return subprocess.run([str(word) for word in command], env=env, capture_output=True, text=True, timeout=60)


def main():
    parser = argparse.ArgumentParser(description="Checks the overlays of deploy/kubernetes.")
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent)
    parser.add_argument("--bin", type=pathlib.Path, help="where coordinator and worker are, which then say whether they take the settings")
    parser.add_argument("--secrets", type=argparse.FileType(), help="what `scripts/kubernetes.sh secrets` prints")
    options = parser.parse_args()
    options.secrets = None if options.secrets is None else list(yaml.safe_load_all(options.secrets))
    problems, objects = [], 0
    overlays = sorted(path.parent for path in options.root.glob("overlays/*/kustomization.yaml"))
    if not overlays:
        sys.exit(f"error: there are no overlays in {options.root}")
    for directory in overlays:
        overlay = Overlay(directory, options)
        problems += overlay.check()
        objects += len(overlay.documents)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)
    print(f"{len(overlays)} overlays, {objects} objects: all well (API {', '.join(VERSIONS)})")


if __name__ == "__main__":
    main()
