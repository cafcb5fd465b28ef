#!/usr/bin/env python3
"""Who may include whom, checked against the fenced block of ARCHITECTURE.md.

The page is the rule and this is its reader: an arrow is changed there, in one place, where people
look for it. What the block says in words is read too ("cuda.h, hip*.h, nvml.h only in ..."). Two
rules go without saying: folders called pure see neither the system nor a clock nor a third-party
library, and nobody includes tests, bench or tools.
"""

import collections
import fnmatch
import os
import pathlib
import re
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SOURCES = (".h", ".hh", ".hpp", ".c", ".cc", ".cpp", ".cu", ".cuh", ".def", ".inc")

# Free of I/O, clocks and threads, so that they run in virtual time.
PURE = ("proto/abi", "scheduler/core", "scheduler/policies", "scheduler/sim", "softgpu/model")
# Folders that only use; the block says that nobody may use them.
FREE = ("tests", "bench", "tools", "cmake")

IMPURE_HEADERS = re.compile(
    r"^(sys|linux|netinet|arpa|net)/|^(unistd|pthread|fcntl|poll|signal|time|dlfcn|sched|spawn|"
    r"semaphore|mqueue|termios)\.h$|^(ctime|csignal|chrono|thread|mutex|shared_mutex|"
    r"condition_variable|future|semaphore|latch|barrier|stop_token|filesystem|fstream|iostream|"
    r"random)$")
THIRD_PARTY = re.compile(
    r"^(grpc|grpcpp|google|absl|upb|prometheus|civetweb|CivetServer|yaml-cpp|nlohmann|CLI|spdlog|"
    r"fmt|gtest|gmock|benchmark|openssl|curl)(/|\.h)")
LOGGING = re.compile(r"^(spdlog|fmt)/")
TEST_LIBRARIES = re.compile(r"^(gtest|gmock|benchmark)/")


class Rules:
    def __init__(self):
        self.arrows = collections.defaultdict(list)  # folder -> patterns of what it may include
        self.closed = []  # folders that nobody may include
        self.only_in = []  # (patterns of system headers, folders)

    def owner(self, path):
        """The most specific folder with arrows that `path` lies in, or None."""
        found = [f for f in self.arrows if path == f or path.startswith(f + "/")]
        return max(found, key=len) if found else None


def braces(text):
    """a/{b,c} -> [a/b, a/c]"""
    match = re.search(r"\{([^{}]*)\}", text)
    if not match:
        return [text]
    return [full for part in match.group(1).split(",")
            for full in braces(text[:match.start()] + part.strip() + text[match.end():])]


def split_list(text):
    """Splits at commas outside of braces; 'and' before the last item is a word, not a name."""
    items, depth, current = [], 0, ""
    for char in text:
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            items.append(current)
            current = ""
        else:
            current += char
    items.append(current)
    cleaned = [re.sub(r"^and\s+", "", item.strip()) for item in items]
    return [item for item in cleaned if item]


def find_block(page):
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        if re.search(r"^\s*proto/abi\s*->", block, re.MULTILINE):
            return block
    raise ValueError("no fenced block with a line `proto/abi -> ...` in ARCHITECTURE.md")


def parse(block, folders):
    """`folders` are those of the tree: a name without a slash that none of them has at the top, such
    as core, means scheduler/core."""
    block = re.sub(r"\([^()]*\)", "  ", block)
    # A list that ends in a comma goes on in the next line.
    block = re.sub(r",[ \t]*\n\s*", ", ", block)
    rules = Rules()
    phrases = [phrase.strip() for line in block.splitlines()
               for phrase in re.split(r"\s{2,}", line.strip())]
    # An arrow may be padded for looks: glue its parts together again.
    joined = []
    for phrase in phrases:
        if joined and (phrase.startswith("->") or joined[-1].endswith(("->", ","))):
            joined[-1] += " " + phrase
        elif phrase:
            joined.append(phrase)

    def resolve(name):
        short = "/" not in name and name not in folders and f"scheduler/{name}" in folders
        return f"scheduler/{name}" if short else name

    for phrase in joined:
        if "->" in phrase:
            source, target = (side.strip() for side in phrase.split("->", 1))
            targets = [full for item in split_list(target) for full in braces(item)]
            for name in (full for item in split_list(source) for full in braces(item)):
                if name == "nothing":
                    rules.closed += targets
                    continue
                patterns = rules.arrows[resolve(name)]
                patterns += [resolve(t) for t in targets
                             if t not in ("nothing", "std", "POSIX") and " " not in t]
        elif " only in " in phrase:
            headers, places = phrase.split(" only in ", 1)
            rules.only_in.append((
                [h for item in split_list(headers) for h in braces(item)],
                [p for item in split_list(places) for p in braces(item)]))
    if not rules.arrows:
        raise ValueError("the block of ARCHITECTURE.md has no arrows")
    return rules


def tree_folders(root):
    found = set()
    for path, names, _ in os.walk(root):
        relative = pathlib.Path(path).relative_to(root).as_posix()
        names[:] = [n for n in names if not n.startswith((".", "build")) and n != "shared"]
        if relative != ".":
            found.add(relative)
    return found


def sources(root):
    for path, names, files in os.walk(root):
        here = pathlib.Path(path)
        names[:] = sorted(n for n in names if not n.startswith(".")
                          and not (here == root and (n.startswith("build") or n == "shared")))
        for name in sorted(files):
            if name.endswith(SOURCES):
                yield (here / name).relative_to(root).as_posix()


def inside(path, folder):
    return path == folder or path.startswith(folder + "/")


def allowed(target, patterns):
    stem = re.sub(r"\.(pb|grpc\.pb)?\.?h$|\.[a-z]+$", "", target)
    return any(inside(target, p) or stem == p or fnmatch.fnmatch(target, p) for p in patterns)


INCLUDE = re.compile(r'^[ \t]*#[ \t]*include(?:_next)?[ \t]*(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)


def strip_comments(text):
    # A line comment may hold a quote, a string may hold //: only block comments hide an #include,
    # since an #include starts its line.
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def check_file(root, rules, path):
    """Yields one line per wrong include of the file."""
    owner = rules.owner(path)
    free = any(inside(path, f) for f in FREE)
    if owner is None and not free:
        yield f"{path}: no arrow of ARCHITECTURE.md names a folder that this file lies in"
        return
    text = strip_comments((root / path).read_text(encoding="utf-8", errors="replace"))
    pure = any(inside(path, f) for f in PURE)
    for quoted, system in INCLUDE.findall(text):
        if quoted:
            # Programs for nvcc are compiled one by one on a machine with a GPU, without the build.
            alone = free and path.endswith((".cu", ".cuh"))
            beside = (root / path).parent.joinpath(quoted).exists()
            if beside and not alone and not (root / quoted).exists():
                yield f"{path}: include \"{quoted}\" by its path from the root"
                continue
            for closed in rules.closed:
                if inside(quoted, closed) and not free:
                    yield f"{path}: nobody includes {closed} (\"{quoted}\")"
            if free or inside(quoted, owner) and rules.owner(quoted) == owner:
                continue
            if not allowed(quoted, rules.arrows[owner]):
                names = ", ".join(rules.arrows[owner]) or "nothing"
                yield f"{path}: \"{quoted}\" is not below an arrow of {owner} (it may use {names})"
        name = quoted or system
        base = name.rsplit("/", 1)[-1]
        for patterns, places in rules.only_in:
            if any(fnmatch.fnmatch(base, p) for p in patterns):
                if not any(inside(path, p) for p in places):
                    yield f"{path}: {name} only in {', '.join(places)}"
        if system and not free:
            if pure and IMPURE_HEADERS.match(system):
                yield f"{path}: {owner} is pure, <{system}> brings the system or a clock in"
            if THIRD_PARTY.match(system):
                if TEST_LIBRARIES.match(system):
                    yield f"{path}: <{system}> only in tests and bench"
                elif pure or owner.split("/")[0] in ("shim", "softgpu"):
                    yield f"{path}: {owner} uses no third-party library (<{system}>)"
                elif owner == "base" and not LOGGING.match(system):
                    yield f"{path}: base uses only logging and formatting libraries (<{system}>)"


class ReaderTest(unittest.TestCase):
    """The reader sees what it must see, on a small tree of its own."""

    PAGE = """
Text with `a -> b` in it.
```
other -> block
```
```
proto/abi -> nothing                      base -> std, POSIX
shim -> proto/abi, vendor headers         (never base, or libstdc++ object code)
scheduler/core -> base/{result,time}, and proto/abi     policies -> core
scheduler/daemon -> core, policies,
    proto, base
softgpu/model -> std      softgpu -> softgpu/model, vendor headers
nothing -> tests, bench, tools            cuda.h, hip*.h only in shim/{cuda,hip}, softgpu, tests
base may use the logging and formatting libraries
```
"""
    FOLDERS = {"proto", "proto/abi", "base", "shim", "shim/cuda", "scheduler", "scheduler/core",
               "scheduler/policies", "scheduler/daemon", "softgpu", "softgpu/model", "tests"}

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = pathlib.Path(self.folder.name)
        self.rules = parse(find_block(self.PAGE), self.FOLDERS)

    def tearDown(self):
        self.folder.cleanup()

    def faults(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return list(check_file(self.root, self.rules, path))

    def test_reads_lists_braces_and_short_names(self):
        self.assertEqual(self.rules.arrows["scheduler/core"],
                         ["base/result", "base/time", "proto/abi"])
        self.assertEqual(self.rules.arrows["scheduler/policies"], ["scheduler/core"])
        self.assertEqual(self.rules.arrows["scheduler/daemon"],
                         ["scheduler/core", "scheduler/policies", "proto", "base"])
        self.assertEqual(self.rules.arrows["proto/abi"], [])
        self.assertEqual(self.rules.closed, ["tests", "bench", "tools"])
        self.assertEqual(self.rules.only_in, [
            (["cuda.h", "hip*.h"], ["shim/cuda", "shim/hip", "softgpu", "tests"])])

    def test_accepts_what_arrows_allow(self):
        self.assertEqual(self.faults("scheduler/core/a.h", '#include "base/time.h"\n'), [])
        self.assertEqual(self.faults("scheduler/core/a.h", '#include "scheduler/core/b.h"\n'), [])
        self.assertEqual(self.faults("shim/cuda/a.cc", "#include <cuda.h>\n"), [])
        self.assertEqual(self.faults(
            "scheduler/daemon/a.cc",
            '#include "proto/control/v1/control.pb.h"\n#include <grpcpp/grpcpp.h>\n'), [])
        self.assertEqual(self.faults("tests/unit/a.cc", '#include "shim/core/gate.h"\n'), [])
        self.assertEqual(self.faults("shim/a.h", '/*\n#include "base/log.h"\n*/\n'), [])

    def test_refuses_what_no_arrow_allows(self):
        self.assertEqual(len(self.faults("shim/core/a.cc", '#include "base/log.h"\n')), 1)
        self.assertEqual(len(self.faults("scheduler/core/a.h", '#include "base/log.h"\n')), 1)
        self.assertEqual(len(self.faults("proto/abi/a.h", '#include "proto/v1/b.h"\n')), 1)
        self.assertEqual(len(self.faults("softgpu/model/a.h", '#include "softgpu/b.h"\n')), 1)
        self.assertEqual(len(self.faults("base/a.cc", '#include "shim/core/gate.h"\n')), 1)

    def test_refuses_tests_vendor_headers_and_unnamed_folders(self):
        self.assertTrue(self.faults("base/a.cc", '#include "tests/fakes/x.h"\n'))
        self.assertTrue(self.faults("shim/core/a.cc", "#include <cuda.h>\n"))
        self.assertTrue(self.faults("shim/core/a.cc", "#include <hip/hip_runtime_api.h>\n"))
        self.assertTrue(self.faults("other/a.cc", "int x;\n"))

    def test_pure_folders_see_no_system_and_no_library(self):
        self.assertTrue(self.faults("scheduler/core/a.cc", "#include <chrono>\n"))
        self.assertTrue(self.faults("scheduler/policies/a.cc", "#include <unistd.h>\n"))
        self.assertTrue(self.faults("scheduler/policies/a.cc", "#include <fmt/format.h>\n"))
        self.assertTrue(self.faults("shim/core/a.cc", "#include <absl/strings/str_cat.h>\n"))
        self.assertTrue(self.faults("base/a.cc", "#include <yaml-cpp/yaml.h>\n"))
        self.assertEqual(self.faults("scheduler/core/a.cc", "#include <vector>\n"), [])
        self.assertEqual(self.faults("base/log.cc", "#include <spdlog/spdlog.h>\n"), [])

    def test_wants_paths_from_the_root(self):
        self.faults("base/b.h", "\n")
        self.assertTrue(self.faults("base/a.cc", '#include "b.h"\n'))


class TreeTest(unittest.TestCase):
    def test_every_include_follows_an_arrow(self):
        page = (ROOT / "ARCHITECTURE.md").read_text()
        rules = parse(find_block(page), tree_folders(ROOT))
        paths = list(sources(ROOT))
        self.assertTrue(paths, "no sources found")
        faults = [fault for path in paths for fault in check_file(ROOT, rules, path)]
        self.assertEqual([], faults, "\n" + "\n".join(faults))


if __name__ == "__main__":
    unittest.main(verbosity=1)
