"""The node: the namespaces and cgroups in which a whole cluster runs, and which end with it.

The host gives the cluster its kernel, its disk below build/e2e and nothing else: mounts, network,
processes, host name and cgroups are private, as in a virtual machine. What the cluster's parts
write to /var, /run and /sys/fs/cgroup is therefore gone with the node's first process, however it
ends. Two things are the kernel's own and outlive it: cgroup directories and a few sysctls that the
kubelet sets. They are put back here, and Snapshot proves that nothing else is left.

The functions of the first half run on the host, those of the second half inside the node.
"""

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
E2E = os.path.join(ROOT, "build", "e2e")
BIN = os.path.join(E2E, "bin")
LOGS = os.path.join(E2E, "logs")
STATE = os.path.join(E2E, "state")
PID_FILE = os.path.join(E2E, "node.pid")

CGROUP = "rubato-e2e"
# Against 1024 of every other program, and of the node's own programs against 2048 of its pods.
NODE_CPU_SHARES = 16384
SYSTEM_CPU_SHARES = 512
CGROUP_ROOT = "/sys/fs/cgroup"
NODE_NAME = "rubato-e2e"
NODE_ADDRESS = "10.250.0.1"

# The kubelet sets these for the whole kernel when it starts.
SYSCTLS = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
           "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes")

PR_SET_PDEATHSIG = 1
MS_BIND = 4096


class Ended(BaseException):
    """The user, or the machine, wants us to end. No failure of a step, so no Exception."""


def read(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def run(*argv, **options):
    """Runs a command to its end; raises with its output if it fails."""
    result = subprocess.run(argv, text=True, capture_output=True, stdin=subprocess.DEVNULL,
                            check=False, **options)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: exit {result.returncode}\n"
                           f"{result.stdout}{result.stderr}".rstrip())
    return result.stdout


# -- On the host -----------------------------------------------------------------------------------

class Hierarchy:
    """A mounted cgroup hierarchy: a version 1 controller set, or the unified one."""

    def __init__(self, path, kind, options):
        self.path = path
        self.kind = kind
        self.options = options

    @property
    def directory(self):
        return os.path.join(self.path, CGROUP)


def hierarchies():
    found = []
    for line in read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        path = before.split()[4]
        kind, _, options = after.split(None, 2)
        if kind in ("cgroup", "cgroup2") and path.startswith(CGROUP_ROOT):
            flags = [word for word in options.split(",") if word != "rw"]
            found.append(Hierarchy(path, kind, ",".join(flags)))
    return found


def check_host():
    """Raises with words if this machine cannot be a node."""
    if os.geteuid() != 0:
        raise RuntimeError("the node needs root: namespaces, mounts, cgroups. Run as root.")
    version1 = [h for h in hierarchies() if h.kind == "cgroup"]
    controllers = {word for h in version1 for word in h.options.split(",")}
    missing = {"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "pids"} - controllers
    if missing:
        raise RuntimeError(
            f"this machine has no cgroup v1 hierarchy for {', '.join(sorted(missing))}: the node "
            "gives the kubelet private v1 hierarchies (Debian: boot with "
            "systemd.unified_cgroup_hierarchy=0), pure v2 is not supported by this test")


def make_cgroups():
    for hierarchy in hierarchies():
        os.makedirs(hierarchy.directory, exist_ok=True)
        if "cpuset" in hierarchy.options.split(","):
            write(os.path.join(hierarchy.directory, "cgroup.clone_children"), "1")
            for name in ("cpuset.cpus", "cpuset.mems"):
                write(os.path.join(hierarchy.directory, name),
                      read(os.path.join(hierarchy.path, name)))
        if "cpu" in hierarchy.options.split(","):
            # The GPU is simulated on the host's cores: what else runs there delays it.
            write(os.path.join(hierarchy.directory, "cpu.shares"), str(NODE_CPU_SHARES))


def join_cgroups():
    """Moves this process into the node's cgroups."""
    for hierarchy in hierarchies():
        write(os.path.join(hierarchy.directory, "cgroup.procs"), str(os.getpid()))


def cgroup_processes():
    """Processes that still are in the node's cgroups."""
    found = set()
    for hierarchy in hierarchies():
        for folder, _, files in os.walk(hierarchy.directory):
            if "cgroup.procs" in files:
                try:
                    words = read(os.path.join(folder, "cgroup.procs")).split()
                except OSError:
                    continue
                found.update(int(word) for word in words if word != "0")
    return found


def remove_cgroups():
    for hierarchy in hierarchies():
        for folder, _, _ in os.walk(hierarchy.directory, topdown=False):
            end = time.monotonic() + 10
            while True:
                try:
                    os.rmdir(folder)
                    break
                except FileNotFoundError:
                    break
                except OSError as error:
                    # Busy until the kernel has reaped the last process in it.
                    if error.errno != errno.EBUSY or time.monotonic() > end:
                        raise
                    time.sleep(0.05)


def memory_peak_bytes():
    """The most that the node used at once, with page cache, as the memory controller counts it."""
    for hierarchy in hierarchies():
        if "memory" in hierarchy.options.split(","):
            try:
                return int(read(os.path.join(hierarchy.directory, "memory.max_usage_in_bytes")))
            except FileNotFoundError:
                return 0
    return 0


class Snapshot:
    """What a cluster could leave on a host; the difference of two is what it left."""

    PLACES = ("/etc", "/run", "/var/lib", "/var/log", "/var/run", "/opt", "/dev/shm", "/mnt",
              "/usr/local/lib", "/usr/local/bin", "/usr/libexec", "/etc/cni", "/etc/cdi",
              "/etc/kubernetes", "/lib/modules", os.path.expanduser("~"))

    def __init__(self):
        self.facts = set()
        for line in read("/proc/self/mountinfo").splitlines():
            fields = line.split()
            self.facts.add(f"mount {fields[4]} ({line.partition(' - ')[2].split()[0]})")
        for hierarchy in hierarchies():
            for folder, names, _ in os.walk(hierarchy.path):
                if CGROUP in folder or "kubepods" in folder:
                    self.facts.add(f"cgroup {folder}")
                if folder.count("/") - hierarchy.path.count("/") >= 1:
                    names.clear()
        for name in SYSCTLS:
            self.facts.add(f"sysctl {name} = {read('/proc/sys/' + name).strip()}")
        for line in run("ip", "-o", "link").splitlines():
            self.facts.add(f"network interface {line.split(':')[1].strip()}")
        for command in (("iptables-save",), ("nft", "list", "ruleset")):
            if shutil.which(command[0]):
                for line in run(*command).splitlines():
                    if not line.startswith(("#", ":")) and line.strip():
                        self.facts.add(f"firewall rule {line.strip()}")
        for place in self.PLACES:
            try:
                names = os.listdir(place)
            except OSError:
                continue
            for name in names:
                self.facts.add(f"file {os.path.join(place, name)}")
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                command = read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
            except OSError:
                continue
            if E2E in command:
                self.facts.add(f"process {pid}: {command[:100]}")

    def left(self, later):
        return sorted(later.facts - self.facts)


def clean_host():
    """Puts away what an earlier node left, also one whose runner was killed."""
    left = cgroup_processes() - {os.getpid()}
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    end = time.monotonic() + 10
    while cgroup_processes() and time.monotonic() < end:
        time.sleep(0.05)
    remove_cgroups()
    saved = os.path.join(E2E, "sysctls")
    if os.path.exists(saved):
        for line in read(saved).splitlines():
            name, _, value = line.partition("=")
            write("/proc/sys/" + name, value)
        os.unlink(saved)
    shutil.rmtree(STATE, ignore_errors=True)
    if os.path.exists(PID_FILE):
        os.unlink(PID_FILE)


def start(argv):
    """Starts the program as the second process of a new node; returns the Popen of `unshare`."""
    os.makedirs(STATE, exist_ok=True)
    shutil.rmtree(LOGS, ignore_errors=True)
    os.makedirs(LOGS)
    write(os.path.join(E2E, "sysctls"),
          "".join(f"{name}={read('/proc/sys/' + name).strip()}\n" for name in SYSCTLS))
    make_cgroups()

    def enter():
        join_cgroups()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    return subprocess.Popen(
        ["unshare", "--mount", "--net", "--ipc", "--uts", "--cgroup", "--pid", "--fork",
         "--kill-child", "--propagation", "private", sys.executable, *argv],
        preexec_fn=enter, start_new_session=True, stdin=subprocess.DEVNULL)


def first_process(unshare_pid):
    """The host's PID of the node's first process; None if there is none."""
    try:
        words = read(f"/proc/{unshare_pid}/task/{unshare_pid}/children").split()
    except OSError:
        return None
    return int(words[0]) if words else None


# -- Inside the node -------------------------------------------------------------------------------

def become_init():
    """Splits this process: the first process of the node stays behind and reaps; the second
    returns. The node ends with the second, and the second's exit code is the node's."""
    child = os.fork()
    if child == 0:
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda sig, _: os.kill(child, sig))
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            os._exit(1)
        if pid == child:
            os._exit(os.waitstatus_to_exitcode(status) & 0xff)


def mount(kind, source, target, options="defaults"):
    run("mount", "-t", kind, "-o", options, source, target)


def furnish():
    """Mounts and network of the node."""
    cgroups = hierarchies()
    mount("proc", "proc", "/proc")
    mount("sysfs", "sysfs", "/sys")
    mount("tmpfs", "cgroup", CGROUP_ROOT, "mode=755")
    for hierarchy in cgroups:
        os.makedirs(hierarchy.path, exist_ok=True)
        mount(hierarchy.kind, hierarchy.kind, hierarchy.path, hierarchy.options or "rw")
    # The cluster's own programs, in a group beside the pods', as a system's slice is.
    for hierarchy in cgroups:
        system = os.path.join(hierarchy.path, "system")
        os.makedirs(system)
        if "cpu" in hierarchy.options.split(","):
            write(os.path.join(system, "cpu.shares"), str(SYSTEM_CPU_SHARES))
        for pid in read(os.path.join(hierarchy.path, "cgroup.procs")).split():
            if pid != "0":
                write(os.path.join(system, "cgroup.procs"), pid)
    checkout = os.open(ROOT, os.O_PATH)
    for place, mode in (("/run", "755"), ("/var", "755"), ("/dev/shm", "1777"), ("/tmp", "1777")):
        mount("tmpfs", "tmpfs", place, f"mode={mode}")
    for folder in ("lib", "log", "tmp", "cache"):
        os.makedirs(f"/var/{folder}")
    if not os.path.exists(ROOT):
        # The checkout itself lies below one of the places that have just been covered.
        os.makedirs(ROOT)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(f"/proc/self/fd/{checkout}".encode(), ROOT.encode(), None, MS_BIND, None):
            raise OSError(ctypes.get_errno(), f"cannot bring {ROOT} into the node")
    os.close(checkout)
    os.symlink("/run", "/var/run")
    # On disk: images, volumes and what Rubato keeps on the host.
    for folder in ("containerd", "kubelet", "rubato", "etcd", "prometheus"):
        source = os.path.join(STATE, folder)
        os.makedirs(source, exist_ok=True)
        os.makedirs(f"/var/lib/{folder}")
        run("mount", "--bind", source, f"/var/lib/{folder}")
    # The kubelet's and containerd's mounts must be seen by containers that ask for propagation.
    run("mount", "--make-rshared", "/")

    run("hostname", NODE_NAME)
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "node0", "type", "veth", "peer", "name", "node0-peer")
    run("ip", "link", "set", "node0-peer", "up")
    run("ip", "address", "add", f"{NODE_ADDRESS}/24", "dev", "node0")
    run("ip", "link", "set", "node0", "up")
    run("ip", "route", "add", "default", "via", "10.250.0.2", "dev", "node0")
    write("/proc/sys/net/ipv4/ip_forward", "1")
