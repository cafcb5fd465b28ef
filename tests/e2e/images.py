"""Container images from folders, without a registry and without a container engine's build.

umoci packs a folder as one layer of an OCI layout; the node imports the layout into containerd
under the given name. Everything is made on the host before the node starts.
"""

import os
import shutil
import subprocess
import tarfile

import node

FOLDERS = os.path.join(node.E2E, "rootfs")
LAYOUTS = os.path.join(node.E2E, "images")

PAUSE = "localhost/pause:e2e"
BUSYBOX = "localhost/busybox:e2e"
RUBATO = "localhost/rubato:e2e"
# The same programs with another shim: what an upgrade brings.
RUBATO_NEXT = "localhost/rubato:e2e-next"
TENANT = "localhost/tenant:e2e"
APPLETS = ("sh", "sleep", "cat", "ls", "wget", "echo", "true", "false", "id", "env", "mkfifo", "nc")


def folder(name):
    """An empty folder for the root filesystem of an image."""
    path = os.path.join(FOLDERS, name)
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    return path


def archive(image):
    return os.path.join(LAYOUTS, image.replace("/", "_").replace(":", "_") + ".tar")


def pack(image, root, entrypoint=None, environment=()):
    """Packs the folder as an image's only layer, into one archive."""
    layout = archive(image)[:-len(".tar")]
    shutil.rmtree(layout, ignore_errors=True)
    os.makedirs(LAYOUTS, exist_ok=True)
    node.run("umoci", "init", "--layout", layout)
    reference = f"{layout}:{image.rpartition(':')[2]}"
    node.run("umoci", "new", "--image", reference)
    node.run("umoci", "insert", "--image", reference, root, "/")
    settings = [f"--config.entrypoint={word}" for word in entrypoint or ()]
    settings += [f"--config.env={word}" for word in environment]
    if settings:
        node.run("umoci", "config", "--image", reference, *settings)
    with tarfile.open(archive(image), "w") as tar:
        for name in sorted(os.listdir(layout)):
            tar.add(os.path.join(layout, name), arcname=name)
    shutil.rmtree(layout)


def pack_pause():
    root = folder("pause")
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pause", "pause.c")
    node.run("gcc", "-static", "-Os", "-Wall", "-Wextra", "-o", os.path.join(root, "pause"), source)
    pack(PAUSE, root, entrypoint=["/pause"])


def pack_busybox():
    root = folder("busybox")
    _busybox_into(root)
    for name in ("tmp", "etc", "proc", "sys", "dev"):
        os.makedirs(os.path.join(root, name))
    node.write(os.path.join(root, "etc", "passwd"), "root:x:0:0:root:/:/bin/sh\n")
    pack(BUSYBOX, root, environment=["PATH=/bin"])


def load(image):
    """Inside the node: gives containerd the image under its name."""
    name = image.rpartition(":")[0]  # The tag is in the archive.
    with open(archive(image), "rb") as tar:
        result = subprocess.run(
            ["ctr", "--namespace", "k8s.io", "images", "import", "--base-name", name, "-"],
            stdin=tar, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"ctr images import {image}: {result.stderr}")


def _busybox_into(root):
    os.makedirs(os.path.join(root, "bin"), exist_ok=True)
    shutil.copy("/bin/busybox", os.path.join(root, "bin", "busybox"))
    for applet in APPLETS:
        os.symlink("busybox", os.path.join(root, "bin", applet))


def _libraries(program):
    """The shared libraries that a program needs, and its loader, by their absolute paths."""
    for line in node.run("ldd", program).splitlines():
        words = line.split()
        for word in words:
            if word.startswith("/"):
                yield word
                break


def pack_tenant(program):
    """An image as users have them: a C library, a shell and a program; nothing of Rubato's."""
    root = folder("tenant")
    _busybox_into(root)
    # Every image with glibc has these, whether its programs name them or not.
    whole = [f"/lib/x86_64-linux-gnu/{name}" for name in (
        "libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "librt.so.1", "libgcc_s.so.1")]
    for path in (program, *whole):
        for library in [path, *_libraries(path)]:
            target = root + ("/bin/" + os.path.basename(program) if library == program else library)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy(os.path.realpath(library), target)
    for name in ("tmp", "etc", "proc", "sys", "dev", "run"):
        os.makedirs(os.path.join(root, name))
    os.chmod(os.path.join(root, "tmp"), 0o1777)
    node.run("ldconfig", "-r", root)
    pack(TENANT, root, environment=["PATH=/bin"])


def pack_rubato(build_dir):
    """The image of Rubato itself: the folder that its Dockerfile's last stage is."""
    root = os.path.join(FOLDERS, "rubato")
    node.run(os.path.join(node.ROOT, "deploy", "docker", "rootfs"), build_dir, root)
    pack(RUBATO, root)
    for shim in ("librubato-cuda.so", "librubato-hip.so"):
        path = os.path.join(root, "usr", "lib", "rubato", shim)
        node.run("objcopy", f"--add-section=.rubato.next={node.__file__}",
                 "--set-section-flags=.rubato.next=noload,readonly", path)
    pack(RUBATO_NEXT, root)


def prepare(options, tenant_program, say):
    """On the host: every image that the node will import."""
    pack_pause()
    pack_busybox()
    if not options.cluster_only:
        pack_tenant(tenant_program)
        pack_rubato(options.build_dir)
    say("images packed")
