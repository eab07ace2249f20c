"""Prints what the released programs are made of, as a CycloneDX 1.6 bill of materials: scripts/release.sh uses it.

The packages are those that cargo builds into them (`cargo tree`, without what only builds or tests), with the checksums of
Cargo.lock and the licences that the packages name. The same sources print the same bytes: there is no time and no chance in it.
"""

import argparse
import json
import re
import subprocess
import sys
import uuid

# The programs are of these two, each built by itself (scripts/build.sh): features of one are none of the other's.
ROOTS = ["berth-cli", "berth-agent"]


def cargo(*words):
    done = subprocess.run(["cargo", *words, "--locked"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"error: cargo {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def tree(root, target):
    """Edges between `name version`, from the depth that each line begins with."""
    lines = cargo("tree", "-p", root, "-e", "normal", "--target", target, "--prefix", "depth", "-f", "|{p}", "--no-dedupe")
    packages, edges, path = set(), set(), []
    for line in lines.splitlines():
        depth, _, rest = line.partition("|")
        if not depth.isdigit():
            continue
        name, version = rest.split()[:2]
        package = (name, version.removeprefix("v"))
        path[int(depth):] = [package]
        packages.add(package)
        if int(depth):
            edges.add((path[int(depth) - 1], package))
    return packages, edges


def checksums():
    """Of each package of Cargo.lock that is not ours."""
    found = {}
    for block in open("Cargo.lock", encoding="utf-8").read().split("[[package]]")[1:]:
        fields = dict(re.findall(r'^(name|version|checksum) = "(.*)"$', block, re.M))
        found[fields["name"], fields["version"]] = fields.get("checksum")
    return found


def main():
    parser = argparse.ArgumentParser(description="Prints the bill of materials of the released programs.")
    parser.add_argument("--version", required=True)
    parser.add_argument("--target", required=True, help="the triple that they are built for")
    options = parser.parse_args()
    packages, edges = set(), set()
    for root in ROOTS:
        more = tree(root, options.target)
        packages |= more[0]
        edges |= more[1]
    metadata = json.loads(cargo("metadata", "--format-version", "1", "--filter-platform", options.target))
    told = {(package["name"], package["version"]): package for package in metadata["packages"]}
    sums = checksums()
    reference = "pkg:cargo/{}@{}".format
    components = []
    for name, version in sorted(packages):
        package = told[name, version]
        component = {"type": "library", "bom-ref": reference(name, version), "name": name, "version": version}
        component["purl"] = reference(name, version)
        if package.get("license"):
            # An old way to write it: MIT/Apache-2.0.
            component["licenses"] = [{"expression": re.sub(r"\s*/\s*", " OR ", package["license"])}]
        if sums[name, version]:
            component["hashes"] = [{"alg": "SHA-256", "content": sums[name, version]}]
        components.append(component)
    depends = [
        {
            "ref": reference(*package),
            "dependsOn": sorted({reference(*to) for of, to in edges if of == package}),
        }
        for package in sorted(packages)
    ]
    itself = reference("berth", options.version)
    depends.insert(0, {"ref": itself, "dependsOn": sorted(reference(*p) for p in packages if p[0] in ROOTS)})
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": itself,
                "name": "berth",
                "version": options.version,
                "licenses": [{"expression": "Apache-2.0"}],
            },
            "properties": [{"name": "cargo:target", "value": options.target}],
        },
        "components": components,
        "dependencies": depends,
    }
    bill["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(bill, sort_keys=True))}"
    print(json.dumps(bill, indent=2, sort_keys=True))


if __name__ == "__main__":
    main()
