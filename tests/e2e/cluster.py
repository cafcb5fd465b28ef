"""The cluster's processes inside the node: etcd, the control plane, containerd, the kubelet.

Each part is the real program with the settings of a one-node cluster: own certificates, RBAC and
node authorisation, NodeRestriction, service accounts. A Cluster starts the parts in order, waits
for each one's readiness, restarts single ones for the scenario, and ends them in reverse order.
"""

import json
import os
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request

import images
import node

KUBERNETES_VERSION = "v1.34.4"
SERVICE_ADDRESS = "10.96.0.1"
DIRECTORY = os.path.join(node.STATE, "cluster")
PKI = os.path.join(DIRECTORY, "pki")
ADMIN = os.path.join(DIRECTORY, "admin.kubeconfig")

# Only a hang reaches it.
DEADLINE_S = 180


class StepFailed(Exception):
    """What was waited for did not come, or what came was wrong."""


def wait_until(condition, what, deadline_s=DEADLINE_S, poll_s=0.1):
    """Returns the first true value of the condition."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise StepFailed(f"did not happen in {deadline_s} s: {what}")
        time.sleep(poll_s)


class Part:
    """One process of the cluster, with its log."""

    def __init__(self, name, argv, ready, environment=None):
        self.name = name
        self.argv = argv
        self.ready = ready
        self.environment = environment
        self.process = None
        self.log_path = os.path.join(node.LOGS, name + ".log")

    def start(self):
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **(self.environment or {})}, cwd="/")

        def check():
            if self.process.poll() is not None:
                tail = "".join(node.read(self.log_path).splitlines(True)[-15:])
                raise StepFailed(f"{self.name} ended with {self.process.returncode}:\n{tail}")
            return self.ready()

        wait_until(check, f"{self.name} is ready, see {self.log_path}")

    def stop(self, number=signal.SIGTERM, patience_s=20):
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def answers(url, context=None):
    try:
        with urllib.request.urlopen(url, timeout=2, context=context) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


class Cluster:
    def __init__(self):
        self.parts = {}

    # -- Certificates --------------------------------------------------------------------------

    def _authority(self):
        os.makedirs(PKI, exist_ok=True)
        node.run("openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out",
                 f"{PKI}/ca.key")
        node.run("openssl", "req", "-x509", "-new", "-key", f"{PKI}/ca.key", "-subj",
                 "/CN=rubato-e2e", "-days", "30", "-out", f"{PKI}/ca.crt")
        node.run("openssl", "genrsa", "-out", f"{PKI}/service-accounts.key", "2048")
        node.run("openssl", "rsa", "-in", f"{PKI}/service-accounts.key", "-pubout", "-out",
                 f"{PKI}/service-accounts.pub")

    def _certificate(self, name, subject, names=()):
        node.run("openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out",
                 f"{PKI}/{name}.key")
        node.run("openssl", "req", "-new", "-key", f"{PKI}/{name}.key", "-subj", subject, "-out",
                 f"{PKI}/{name}.csr")
        extensions = "extendedKeyUsage=clientAuth,serverAuth\n"
        if names:
            extensions += f"subjectAltName={','.join(names)}\n"
        node.write(f"{PKI}/{name}.ext", extensions)
        node.run("openssl", "x509", "-req", "-in", f"{PKI}/{name}.csr", "-CA", f"{PKI}/ca.crt",
                 "-CAkey", f"{PKI}/ca.key", "-CAcreateserial", "-days", "30", "-extfile",
                 f"{PKI}/{name}.ext", "-out", f"{PKI}/{name}.crt")

    def _kubeconfig(self, name, subject):
        self._certificate(name, subject)
        path = os.path.join(DIRECTORY, f"{name}.kubeconfig")
        node.write(path, json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "e2e",
            "clusters": [{"name": "e2e", "cluster": {
                "server": "https://127.0.0.1:6443", "certificate-authority": f"{PKI}/ca.crt"}}],
            "users": [{"name": name, "user": {"client-certificate": f"{PKI}/{name}.crt",
                                              "client-key": f"{PKI}/{name}.key"}}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": name}}],
        }, indent=1))
        return path

    def make_credentials(self):
        self._authority()
        self._certificate("apiserver", "/CN=kube-apiserver", [
            "DNS:kubernetes", "DNS:kubernetes.default", "DNS:kubernetes.default.svc",
            "DNS:localhost", "IP:127.0.0.1", f"IP:{SERVICE_ADDRESS}", f"IP:{node.NODE_ADDRESS}"])
        self._certificate("apiserver-kubelet", "/O=system:masters/CN=apiserver-kubelet")
        self._kubeconfig("admin", "/O=system:masters/CN=admin")
        self._kubeconfig("scheduler", "/CN=system:kube-scheduler")
        self._kubeconfig("controller-manager", "/CN=system:kube-controller-manager")
        self._kubeconfig("proxy", "/CN=system:kube-proxy")
        self._kubeconfig("kubelet", f"/O=system:nodes/CN=system:node:{node.NODE_NAME}")

    # -- The parts -----------------------------------------------------------------------------

    def _add(self, name, argv, ready, environment=None):
        self.parts[name] = Part(name, argv, ready, environment)
        return self.parts[name]

    def _tls(self):
        context = ssl.create_default_context(cafile=f"{PKI}/ca.crt")
        context.load_cert_chain(f"{PKI}/admin.crt", f"{PKI}/admin.key")
        return context

    def define(self):
        program = lambda name: os.path.join(node.BIN, name)
        config = lambda name: os.path.join(DIRECTORY, name)
        tls = self._tls()

        self._add("etcd", [
            program("etcd"), "--data-dir=/var/lib/etcd", "--unsafe-no-fsync",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380"],
                  lambda: answers("http://127.0.0.1:2379/health"))

        self._add("kube-apiserver", [
            program("kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379",
            "--service-cluster-ip-range=10.96.0.0/16", "--allow-privileged=true",
            f"--advertise-address={node.NODE_ADDRESS}", "--secure-port=6443",
            "--kubelet-preferred-address-types=InternalIP",
            "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
            f"--client-ca-file={PKI}/ca.crt", f"--tls-cert-file={PKI}/apiserver.crt",
            f"--tls-private-key-file={PKI}/apiserver.key",
            f"--service-account-key-file={PKI}/service-accounts.pub",
            f"--service-account-signing-key-file={PKI}/service-accounts.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--kubelet-client-certificate={PKI}/apiserver-kubelet.crt",
            f"--kubelet-client-key={PKI}/apiserver-kubelet.key", "--profiling=false"],
                  lambda: answers("https://127.0.0.1:6443/readyz", tls))

        self._add("kube-controller-manager", [
            program("kube-controller-manager"), f"--kubeconfig={config('controller-manager.kubeconfig')}",
            "--leader-elect=false", "--use-service-account-credentials=true",
            f"--service-account-private-key-file={PKI}/service-accounts.key",
            "--flex-volume-plugin-dir=/var/lib/kubelet/volumeplugins",
            f"--root-ca-file={PKI}/ca.crt", "--bind-address=127.0.0.1", "--profiling=false"],
                  lambda: self.object("serviceaccount", "default", "default"))

        self._add("kube-scheduler", [
            program("kube-scheduler"), f"--kubeconfig={config('scheduler.kubeconfig')}",
            "--leader-elect=false", "--bind-address=127.0.0.1"],
                  lambda: self._port_open(10259))

        node.write(config("containerd.toml"), f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{images.PAUSE}"
  disable_apparmor = true
  # Virtual machines lent without CAP_SYS_RESOURCE may not lower it as far as the kubelet asks.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/run/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
""")
        os.makedirs("/run/cni/net.d", exist_ok=True)
        node.write("/run/cni/net.d/10-e2e.conflist", json.dumps({
            "cniVersion": "1.0.0", "name": "e2e", "plugins": [
                {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False,
                 "hairpinMode": True, "ipam": {
                     "type": "host-local", "dataDir": "/run/cni/ipam",
                     "ranges": [[{"subnet": "10.244.0.0/24"}]],
                     "routes": [{"dst": "0.0.0.0/0"}]}},
                {"type": "portmap", "capabilities": {"portMappings": True}}]}))
        self._add("containerd", ["containerd", "--config", config("containerd.toml")],
                  lambda: subprocess.run(["ctr", "version"], capture_output=True,
                                         check=False).returncode == 0)

        node.write(config("resolv.conf"), "")
        node.write(config("kubelet.yaml"), json.dumps({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "cgroupDriver": "cgroupfs", "failCgroupV1": False, "failSwapOn": False,
            "authentication": {"x509": {"clientCAFile": f"{PKI}/ca.crt"},
                               "webhook": {"enabled": True}, "anonymous": {"enabled": False}},
            "authorization": {"mode": "Webhook"},
            # Nobody answers there: no part of Rubato looks names up.
            "clusterDNS": ["10.96.0.10"], "resolvConf": config("resolv.conf"), "readOnlyPort": 0,
            "volumePluginDir": "/var/lib/kubelet/volumeplugins",
            "nodeStatusUpdateFrequency": "5s", "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%",
                             "imagefs.available": "1%", "nodefs.inodesFree": "1%"},
        }, indent=1))
        self._add("kubelet", [
            program("kubelet"), f"--config={config('kubelet.yaml')}",
            f"--kubeconfig={config('kubelet.kubeconfig')}",
            f"--hostname-override={node.NODE_NAME}", f"--node-ip={node.NODE_ADDRESS}"],
                  lambda: answers("http://127.0.0.1:10248/healthz"))

        node.write(config("proxy.yaml"), json.dumps({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": config("proxy.kubeconfig")},
            "mode": "iptables", "clusterCIDR": "10.244.0.0/16",
            "hostnameOverride": node.NODE_NAME,
            # The table's size belongs to the host.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s",
                          "tcpCloseWaitTimeout": "0s"},
        }))
        self._add("kube-proxy", [program("kube-proxy"), f"--config={config('proxy.yaml')}"],
                  lambda: answers("http://127.0.0.1:10256/healthz"))

    @staticmethod
    def _port_open(port):
        return any(line.split()[3] == "0A" and int(line.split()[1].rpartition(":")[2], 16) == port
                   for path in ("/proc/net/tcp", "/proc/net/tcp6")
                   for line in node.read(path).splitlines()[1:])

    # -- Life ------------------------------------------------------------------------------------

    def start(self, image_names, say):
        self.make_credentials()
        self.define()
        for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler",
                     "containerd"):
            begun = time.monotonic()
            self.parts[name].start()
            say(f"{name} is ready after {time.monotonic() - begun:.1f} s")
        for image in image_names:
            images.load(image)
        say(f"{len(image_names)} images imported")
        for name in ("kubelet", "kube-proxy"):
            begun = time.monotonic()
            self.parts[name].start()
            say(f"{name} is ready after {time.monotonic() - begun:.1f} s")
        self.wait_node_ready()

    def wait_node_ready(self):
        def ready():
            found = self.object("node", node.NODE_NAME)
            conditions = found["status"].get("conditions", []) if found else []
            return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

        wait_until(ready, "the node is Ready")

    def stop(self):
        for name in ("kube-scheduler", "kube-controller-manager", "kubelet", "kube-proxy"):
            if name in self.parts:
                self.parts[name].stop()
        if "containerd" in self.parts and self.parts["containerd"].process:
            # Containers live on without containerd; the node's end is what ends the rest.
            subprocess.run(["ctr", "--namespace", "k8s.io", "tasks", "list", "-q"],
                           capture_output=True, check=False)
        for name in ("containerd", "kube-apiserver", "etcd"):
            if name in self.parts:
                self.parts[name].stop()

    # -- kubectl ---------------------------------------------------------------------------------

    def kubectl(self, *arguments, check=True, text_in=None, timeout_s=DEADLINE_S):
        result = subprocess.run(
            [os.path.join(node.BIN, "kubectl"), f"--kubeconfig={ADMIN}", *arguments],
            text=True, capture_output=True, input=text_in, timeout=timeout_s, check=False)
        if check and result.returncode != 0:
            raise StepFailed(f"kubectl {' '.join(arguments)}: {result.stderr.strip()}")
        return result.stdout

    def object(self, kind, name, namespace=None):
        """The object as a dictionary; None if there is none."""
        where = ["--namespace", namespace] if namespace else []
        text = self.kubectl("get", kind, name, *where, "--ignore-not-found", "--output=json",
                            check=False)
        return json.loads(text) if text.strip() else None

    def objects(self, kind, namespace=None, selector=None):
        where = ["--namespace", namespace] if namespace else ["--all-namespaces"]
        if selector:
            where += ["--selector", selector]
        return json.loads(self.kubectl("get", kind, *where, "--output=json"))["items"]

    def apply(self, *manifests):
        self.kubectl("apply", "--filename=-",
                     text_in="\n---\n".join(json.dumps(manifest) for manifest in manifests))
