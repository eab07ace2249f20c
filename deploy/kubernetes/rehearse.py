"""Runs the pods of an overlay on this machine's engine, as they are written: `scripts/kubernetes.sh rehearse`.

No cluster is here to try them on. So each pod of a rendered overlay is made of containers, its first containers before the
others, with the same images, users, capabilities, profiles, roots, limits, variables and mounts; Services are names on a
network. What it can't show: a cluster's network policies, its storage, its scheduler, cgroup v2 where this machine has v1.

`up` leaves them running, in a directory that says what there is, and `down` removes all of it.
"""

import argparse
import base64
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import yaml


def docker(*words, fine=(0,)):
    done = subprocess.run(["docker", *map(str, words)], capture_output=True, text=True)
    if done.returncode not in fine:
        sys.exit(f"error: docker {' '.join(map(str, words))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


class Rehearsal:
    def __init__(self, options):
        self.name, self.dir, self.tag, self.sandbox = options.name, options.dir, options.tag, options.sandbox
        self.ports = options.publish
        documents = [d for d in yaml.safe_load_all(options.overlay) if d]
        secrets = [s for s in yaml.safe_load_all(options.secrets) if s]
        self.documents = documents
        self.data = {(s["metadata"]["namespace"], s["metadata"]["name"]): {k: base64.b64decode(v) for k, v in s["data"].items()} for s in secrets}
        for config in (d for d in documents if d["kind"] == "ConfigMap"):
            self.data[config["metadata"]["namespace"], config["metadata"]["name"]] = {k: v.encode() for k, v in config["data"].items()}

    def up(self):
        docker("network", "create", "--label", f"rehearsal={self.name}", self.name)
        for workload in (d for d in self.documents if d["kind"] in ("StatefulSet", "DaemonSet")):
            replicas = workload["spec"].get("replicas", 1)
            for number in range(replicas):
                self.pod(workload, f"{workload['metadata']['name']}-{number}")

    def pod(self, workload, pod):
        namespace, spec = workload["metadata"]["namespace"], workload["spec"]["template"]["spec"]
        volumes = {}
        claims = [{"name": c["metadata"]["name"], "claim": {}} for c in workload["spec"].get("volumeClaimTemplates", [])]
        for volume in [*spec.get("volumes", []), *claims]:
            volumes[volume["name"]] = self.volume(pod, namespace, spec, volume)
        for container in spec.get("initContainers", []):
            self.container(workload, spec, pod, container, volumes, ["run", "--rm"])
        for container in spec["containers"]:
            self.container(workload, spec, pod, container, volumes, ["run", "-d"])

    def volume(self, pod, namespace, spec, volume):
        if "hostPath" in volume:
            path = pathlib.Path(volume["hostPath"]["path"])
            # Of a rehearsal, not of the machine.
            return path if path.name == "docker.sock" else self.dir / "host" / path.name
        group = spec.get("securityContext", {}).get("fsGroup")
        path = self.dir / pod / volume["name"]
        path.mkdir(parents=True)
        source = volume.get("secret", volume.get("configMap"))
        if source is not None:
            files = self.data[namespace, source.get("secretName", source.get("name"))]
            for name, content in files.items():
                (path / name).write_bytes(content)
                mode = source.get("defaultMode", 0o644)
                os.chmod(path / name, mode | (0o440 if group else 0))
                os.chown(path / name, 0, group or 0)
            return path
        os.chmod(path, 0o2777 if group else 0o777)
        os.chown(path, 0, group or 0)
        os.chmod(path, 0o2777 if group else 0o777)
        return path

    def container(self, workload, spec, pod, container, volumes, words):
        context = {**spec.get("securityContext", {}), **container.get("securityContext", {})}
        name = f"{self.name}-{pod}-{container['name']}"
        words += ["--name", name, "--hostname", pod, "--label", f"rehearsal={self.name}", "--network", self.name]
        for service in (d for d in self.documents if d["kind"] == "Service" and d["metadata"]["namespace"] == workload["metadata"]["namespace"]):
            labels = workload["spec"]["template"]["metadata"]["labels"]
            if all(labels.get(k) == v for k, v in service["spec"]["selector"].items()):
                words += ["--network-alias", f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"]
        words += ["--user", f"{context['runAsUser']}:{context['runAsGroup']}"]
        if context.get("fsGroup"):
            words += ["--group-add", context["fsGroup"]]
        if context.get("readOnlyRootFilesystem"):
            words.append("--read-only")
        if not context.get("allowPrivilegeEscalation", True):
            words += ["--security-opt", "no-new-privileges:true"]
        for option, value in (("seccompProfile", "seccomp"), ("appArmorProfile", "apparmor")):
            if context.get(option, {}).get("type") == "Unconfined":
                words += ["--security-opt", f"{value}=unconfined"]
        for capability in context.get("capabilities", {}).get("drop", []):
            words += ["--cap-drop", capability]
        for capability in context.get("capabilities", {}).get("add", []):
            words += ["--cap-add", capability]
        limits = container["resources"]["limits"]
        words += ["--memory", limits["memory"].removesuffix("i").lower(), "--cpus", self.cores(limits["cpu"])]
        for variable in container.get("env", []):
            value = variable.get("value", pod)
            words += ["-e", f"{variable['name']}={value}"]
        for mount in container.get("volumeMounts", []):
            words += ["-v", f"{volumes[mount['name']]}:{mount['mountPath']}{':ro' if mount.get('readOnly') else ''}"]
        for port in container.get("ports", []):
            if self.ports and container["name"] == "coordinator":
                words += ["-p", f"127.0.0.1::{port['containerPort']}"]
        command = container.get("command", [])
        if command:
            words += ["--entrypoint", command[0]]
        image = container["image"]
        image = self.sandbox if image.startswith("berth/sandbox") else f"{image.partition(':')[0]}:{self.tag}"
        began = time.monotonic()
        docker(*words, image, *command[1:], *container.get("args", []))
        print(f"{name}: started in {time.monotonic() - began:.1f} s", file=sys.stderr)

    @staticmethod
    def cores(text):
        """At most what this machine has, which an engine insists on."""
        wanted = float(text[:-1]) / 1000 if text.endswith("m") else float(text)
        return min(wanted, os.cpu_count())


def down(name, directory):
    for container in docker("ps", "-aq", "--filter", f"label=rehearsal={name}").split():
        docker("rm", "-fv", container)
    # Sandboxes that are the engine's own, by the mark of the worker that made them.
    for instance in directory.glob("host/*/state/instance"):
        mark = f"label=berth.instance={instance.read_text().strip()}"
        for container in docker("ps", "-aq", "--filter", mark).split():
            docker("rm", "-fv", container)
    for network in docker("network", "ls", "-q", "--filter", f"label=rehearsal={name}").split():
        docker("network", "rm", network)
    shutil.rmtree(directory, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description="Runs the pods of an overlay on this machine's engine.")
    parser.add_argument("what", choices=["up", "down"])
    parser.add_argument("--name", required=True, help="of the network, and the beginning of the containers'")
    parser.add_argument("--dir", type=pathlib.Path, required=True, help="for what the pods' volumes hold")
    parser.add_argument("--overlay", type=argparse.FileType(), help="a rendered overlay")
    parser.add_argument("--secrets", type=argparse.FileType(), help="what `scripts/kubernetes.sh secrets` prints")
    parser.add_argument("--tag", default="latest", help="of the components' images")
    parser.add_argument("--sandbox", default="berth/sandbox:base", help="the sandbox image")
    parser.add_argument("--publish", action="store_true", help="the coordinator's ports, on this machine's loopback")
    options = parser.parse_args()
    # Modes of volumes are a cluster's, whatever this shell's are.
    os.umask(0o022)
    if options.what == "down":
        down(options.name, options.dir)
    else:
        Rehearsal(options).up()


if __name__ == "__main__":
    main()
