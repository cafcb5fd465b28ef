#!/usr/bin/env python3
"""What a shim's binary asks of the process it is loaded into, and what it shows there.

An LD_PRELOAD library is a guest in every program of a container: an unmet symbol version ends the
tenant before main, a stray export changes which function a tenant calls, an imported `exit` can end
it. So the linked file itself is read, with readelf, after everything that headers and flags promise.

    shim_binary_test.py --library librubato-cuda.so --exports exports-cuda.txt

The list of exports is generated from the hook table; imports are listed in allowed_imports.txt.
"""

import argparse
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
GLIBC_FLOOR = (2, 28)

# Never, whatever the list of allowed imports says: ends or changes the host, or allocates in it.
BANNED = re.compile(
    r"^(_?exit|_Exit|quick_exit|abort|__assert_fail|raise|kill|tgkill|signal|sigaction|"
    r"__sysv_signal|sigsetjmp|umask|v?fork|_Fork|posix_spawnp?|exec[vl][pe]*|execveat?|system|popen|"
    r"atexit|on_exit|__cxa_atexit|at_quick_exit|malloc|calloc|realloc|free|reallocarray|"
    r"posix_memalign|aligned_alloc|memalign|strn?dup|v?asprintf|sem_.*|pthread_mutex_.*|"
    r"pthread_rwlock_.*|pthread_cond_.*|v?f?printf|puts|perror|fopen(64)?|"
    r"_Zn[wa].*|_Zd[la].*|_ZSt.*|_ZNSt.*|_ZNKSt.*|__cxa_(throw|guard_.*|pure_virtual|begin_catch)|"
    r"__gxx_personality_v0|_Unwind_.*|__.*_chk)$")
CHECKED_BY_COMPILER = {"__stack_chk_fail"}
ALLOWED_NEEDED = re.compile(r"^(libc|libdl|libpthread|librt|ld-linux-[\w-]+)\.so\.\d+$")


def readelf(library, *flags):
    return subprocess.run(["readelf", "--wide", *flags, str(library)], stdout=subprocess.PIPE,
                          check=True, text=True, env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"}).stdout


def symbols(table):
    """Yields (name, version, binding, visibility, defined) of each dynamic symbol."""
    for line in table.splitlines():
        fields = line.split()
        if len(fields) < 8 or not fields[0].rstrip(":").isdigit():
            continue
        name, _, version = fields[7].partition("@")
        yield name, version.lstrip("@"), fields[4], fields[5], fields[6] != "UND"


def listed(file):
    lines = (line.split("#")[0].strip() for line in file.read_text().splitlines())
    return {line for line in lines if line}


def export_faults(found, wanted):
    for name in sorted(found - wanted):
        yield f"exports {name}, which the hook table does not have"
    for name in sorted(wanted - found):
        yield f"does not export {name}, which the hook table has"


def import_faults(imports, allowed):
    for name, version in sorted(imports):
        if BANNED.match(name) and name not in CHECKED_BY_COMPILER:
            yield f"imports {name}: banned in a tenant's process"
        elif name not in allowed:
            yield f"imports {name}, which tests/abi/allowed_imports.txt does not have"
        match = re.match(r"GLIBC_(\d+)\.(\d+)", version)
        if match and (int(match.group(1)), int(match.group(2))) > GLIBC_FLOOR:
            yield (f"imports {name}@{version}: newer than glibc "
                   f"{GLIBC_FLOOR[0]}.{GLIBC_FLOOR[1]}; bind the older version with .symver")
        elif version and not match:
            yield f"imports {name}@{version}: a version that is not the C library's"


def needed_faults(dynamic):
    for name in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic):
        if not ALLOWED_NEEDED.match(name):
            yield f"needs {name}: only the C library may be needed"
    if re.search(r"\((RPATH|RUNPATH)\)", dynamic):
        yield "has a run path: a preloaded library must not search folders"
    if re.search(r"\(TEXTREL\)", dynamic):
        yield "has text relocations"


def self_check():
    """Each rule fires on what it is for; a test that cannot fail proves nothing."""
    assert list(export_faults({"a"}, {"a"})) == []
    assert len(list(export_faults({"a", "b"}, {"a", "c"}))) == 2
    allowed = {"dlsym", "exit", "memcpy"}
    assert list(import_faults({("dlsym", "GLIBC_2.2.5"), ("memcpy", "GLIBC_2.14")}, allowed)) == []
    for bad in (("dlsym", "GLIBC_2.34"), ("exit", "GLIBC_2.2.5"), ("pthread_kill", "GLIBC_2.2.5"),
                ("memcpy", "GLIBCXX_3.4")):
        assert len(list(import_faults({bad}, allowed))) == 1, bad
    for name in ("malloc", "_Znwm", "_ZdlPv", "abort", "sigaction", "fork", "__cxa_atexit",
                 "pthread_mutex_lock", "_Unwind_Resume", "__memcpy_chk"):
        assert BANNED.match(name), name
    line = " 0x0000000000000001 (NEEDED)             Shared library: [%s]"
    assert list(needed_faults(line % "libc.so.6")) == []
    for name in ("libstdc++.so.6", "libgcc_s.so.1", "libcuda.so.1", "libm.so.6"):
        assert len(list(needed_faults(line % name))) == 1, name


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", type=pathlib.Path, required=True)
    parser.add_argument("--exports", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    self_check()
    for file in (arguments.library, arguments.exports):
        if not file.is_file():
            sys.exit(f"{file} was not built")
    table = list(symbols(readelf(arguments.library, "--dyn-syms")))
    exports = {name for name, _, _, _, defined in table if defined and name}
    imports = {(name, version.split(" ")[0]) for name, version, _, _, defined in table
               if not defined and name}
    wanted = listed(arguments.exports)
    if not wanted:
        sys.exit(f"{arguments.exports} is empty")
    faults = list(export_faults(exports, wanted))
    for name, version, _, _, defined in table:
        # A reference with a version tag would skip an entry whose node has a name.
        if defined and version:
            faults.append(f"exports {name}@{version}: the version script's node must be anonymous")
    faults += import_faults(imports, listed(HERE / "allowed_imports.txt"))
    faults += needed_faults(readelf(arguments.library, "--dynamic"))
    if re.search(r"GNU_STACK.*\bRWE\b", readelf(arguments.library, "--program-headers")):
        faults.append("asks for an executable stack")
    for fault in faults:
        print(f"{arguments.library.name}: {fault}", file=sys.stderr)
    print(f"{arguments.library.name}: {len(exports)} exports, {len(imports)} imports, "
          f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
