"""What the node runs, built on the host: Kubernetes and etcd from their Go modules.

Each program is built once; a stamp beside it names what it was built from (the module file and the
sums, the flags, the compiler), so that a second run builds nothing.
"""

import hashlib
import os
import subprocess
import time

import cluster
import node

MODULE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cluster")
KUBERNETES = ("kubelet", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy",
              "kubectl")


def _version_flags():
    major, minor, _ = cluster.KUBERNETES_VERSION.lstrip("v").split(".")
    package = "k8s.io/component-base/version"
    values = {"gitVersion": cluster.KUBERNETES_VERSION, "gitMajor": major, "gitMinor": minor,
              "gitTreeState": "clean"}
    return " ".join(["-s -w", *(f"-X {package}.{key}={value}" for key, value in values.items())])


def programs(say):
    """Builds what is missing or stale."""
    os.makedirs(node.BIN, exist_ok=True)
    wanted = [(name, f"k8s.io/kubernetes/cmd/{name}", _version_flags()) for name in KUBERNETES]
    wanted.append(("etcd", "go.etcd.io/etcd/server/v3", "-s -w"))
    go = node.run(os.path.join(node.ROOT, "tools", "get_go")).strip()
    sources = node.run(go, "version", cwd=MODULE) + "".join(node.read(os.path.join(MODULE, name)) for name in ("go.mod", "go.sum"))
    # The sums are part of the tree, so no service that keeps sums is asked; a static program needs
    # no C compiler of another machine.
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -trimpath"}
    for name, package, flags in wanted:
        path = os.path.join(node.BIN, name)
        stamp = hashlib.sha256(f"{sources}{package}{flags}".encode()).hexdigest()
        if os.path.exists(path) and os.path.exists(path + ".stamp") and \
                node.read(path + ".stamp") == stamp:
            continue
        say(f"building {name} (the first time takes minutes)")
        begun = time.monotonic()
        result = subprocess.run(
            ["nice", go, "build", "-buildvcs=false", "-p", str(os.cpu_count() or 1), "-ldflags",
             flags, "-o", path, package],
            cwd=MODULE, env=environment, text=True, capture_output=True, check=False)
        if result.returncode != 0:
            raise RuntimeError(f"go build {package}:\n{result.stderr}")
        node.write(path + ".stamp", stamp)
        say(f"built {name} in {time.monotonic() - begun:.0f} s")


def tenant(say):
    """The program that the tenants run, of the integration tests; returns its path. The release
    build, which the image is made of, has no tests."""
    folder = os.path.join(node.E2E, "tenant")
    if not os.path.exists(os.path.join(folder, "build.ninja")):
        node.run("cmake", "-S", node.ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                 "-DRUBATO_TESTS=ON")
    node.run("nice", "ninja", "-C", folder, "rubato-test-tenant")
    say("built the tenants' program")
    return os.path.join(folder, "bin", "tests", "rubato-test-tenant")


def helm():
    node.run(os.path.join(node.ROOT, "tools", "get_helm"))
