#!/usr/bin/env python3
"""The layout of proto/abi is frozen: sizes, offsets, constants and hashes equal the golden text.

A released shim lives on in running processes while the scheduler is upgraded, so a field that moves
breaks tenants that nobody can restart. clang lists every record, enum and constant of rubato::abi
(nothing can be forgotten); a program made from that list and built by the project's compiler prints
what each one is; the text is compared with layout_v<major>.golden. Where a copy of the released
headers lies under frozen/v<major>/, it must print the same lines.

    layout_test.py --update    write the golden text anew. Refused where a line of it would change
                               or vanish (only reserved bytes may turn into fields), since that is
                               a new major: a new golden file beside the old one.
    ... --unreleased           not refused: no release has this major yet (CHANGELOG.md says).
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SKIPPED = 77

# Pure code over copies, with no layout of its own.
CODE_ONLY = {"atomic.h", "window.h"}

# What both sides must compute alike is part of the contract as much as where a field lies.
FROZEN_RESULTS = (
    'Mix(1, 2)',
    'HashName("")',
    'HashName("gemm_kernel")',
    'KernelKey(HashName("gemm_kernel"), 1, 2, 3, 4, 5, 6, 7)',
    'KernelKey(0x123456789abcdef0ull, 132, 1, 1, 1024, 1, 1, 233472)',
    'HistoryKey(0x123456789abcdef0ull, 0x0fedcba987654321ull)',
    'ProfileHome(0x123456789abcdef0ull)',
    'MakeWord(3, 5)',
)


def say(text):
    print(text, file=sys.stderr)


def headers(root):
    found = sorted(p.name for p in (root / "proto/abi").glob("*.h") if p.name not in CODE_ONLY)
    if not found:
        sys.exit(f"no headers under {root}/proto/abi: nothing to compare is a failure, not a pass")
    return found


def include_lines(root):
    return "".join(f'#include "proto/abi/{name}"\n' for name in headers(root))


def json_documents(text):
    decoder = json.JSONDecoder()
    position = 0
    while True:
        while position < len(text) and text[position].isspace():
            position += 1
        if position == len(text):
            return
        value, position = decoder.raw_decode(text, position)
        yield value


def declarations(clang, root, work):
    """Yields ("record", name, fields), ("enum", name, enumerators), ("constant", name, type)."""
    source = work / "headers.cc"
    source.write_text(include_lines(root))
    dump = subprocess.run(
        [clang, "-std=c++20", f"-I{root}", "-fsyntax-only", "-Xclang", "-ast-dump=json",
         "-Xclang", "-ast-dump-filter=rubato::abi", str(source)],
        stdout=subprocess.PIPE, check=True, text=True).stdout
    # Only whole namespaces: the filter also prints what it finds inside of them once more.
    for document in json_documents(dump):
        if document.get("kind") == "NamespaceDecl" and document.get("name") == "abi":
            yield from walk(document, "")


def walk(node, scope):
    for child in node.get("inner", ()):
        kind, name = child.get("kind"), child.get("name")
        if child.get("isImplicit"):
            continue
        if kind == "NamespaceDecl":
            yield from walk(child, f"{scope}{name}::" if name else scope)
        elif kind == "CXXRecordDecl" and child.get("completeDefinition"):
            if name:
                members = [c for c in child.get("inner", ()) if not c.get("isImplicit")]
                fields = [c["name"] for c in members
                          if c.get("kind") in ("FieldDecl", "IndirectFieldDecl") and c.get("name")]
                if any(c.get("isBitfield") for c in members):
                    sys.exit(f"{scope}{name} has a bit-field, whose place no standard fixes")
                yield "record", scope + name, fields
                yield from walk(child, f"{scope}{name}::")
        elif kind == "EnumDecl":
            names = [c["name"] for c in child.get("inner", ())
                     if c.get("kind") == "EnumConstantDecl"]
            yield "enum", (scope + name if name else ""), names
        elif kind == "VarDecl" and child.get("constexpr"):
            yield "constant", scope + name, child["type"].get(
                "desugaredQualType", child["type"]["qualType"])


def printer_source(root, found):
    lines = []
    for kind, name, rest in found:
        if kind == "record":
            lines.append(f'  std::printf("struct {name} size %zu align %zu\\n", sizeof({name}), '
                         f"alignof({name}));")
            for field in rest:
                lines.append(
                    f'  std::printf("field {name}.{field} offset %zu size %zu\\n", '
                    f"offsetof({name}, {field}), sizeof({name}::{field}));")
        elif kind == "enum":
            if name:
                lines.append(f'  std::printf("enum {name} size %zu\\n", sizeof({name}));')
            for value in rest:
                full = f"{name}::{value}" if name else value
                lines.append(f'  std::printf("value {full} %lld\\n", '
                             f"static_cast<long long>({full}));")
        elif "char" in rest and "[" in rest:
            lines.append(f'  std::printf("constant {name} \\"%s\\"\\n", {name});')
        else:
            lines.append(f'  std::printf("constant {name} %llu\\n", '
                         f"static_cast<unsigned long long>({name}));")
    for call in FROZEN_RESULTS:
        quoted = call.replace('"', '\\"')
        lines.append(f'  std::printf("result {quoted} %llu\\n", '
                     f"static_cast<unsigned long long>({call}));")
    return (include_lines(root) + "#include <cstddef>\n#include <cstdio>\n"
            "using namespace rubato::abi;\nint main() {\n" + "\n".join(lines) + "\n}\n")


def layout(clang, cxx, root):
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        source = work / "print.cc"
        source.write_text(printer_source(root, list(declarations(clang, root, work))))
        program = work / "print"
        subprocess.run([cxx, "-std=c++20", "-w", f"-I{root}", str(source), "-o", str(program)],
                       check=True)
        text = subprocess.run([str(program)], stdout=subprocess.PIPE, check=True, text=True).stdout
    if "struct " not in text or "field " not in text:
        sys.exit("no records were found in rubato::abi: the list cannot be right")
    return text


def major_of(text):
    match = re.search(r"^constant kMajor (\d+)$", text, re.MULTILINE)
    if not match:
        sys.exit("proto/abi has no constant kMajor")
    return int(match.group(1))


def broken(old, new):
    """Lines of `old` that `new` no longer keeps. Reserved bytes may become fields, lists of
    reasons and counters may grow at their end, and the minor grows with every addition."""
    kept = set(new.splitlines())
    return [line for line in old.splitlines()
            if line not in kept
            and not re.match(r"field \S+\.reserved\w* ", line)
            and not re.match(r"(constant kMinor|value \S+::kCount) ", line)]


def compare(what, golden, text):
    lost = broken(golden, text)
    for line in lost:
        say(f"{what}: frozen, but changed or gone: {line}")
    if lost:
        say("A released layout keeps its meaning for ever. Take new fields from reserved bytes, or "
            "make a new major with a golden file of its own.")
        return False
    if golden != text:
        old, new = set(golden.splitlines()), set(text.splitlines())
        for line in text.splitlines():
            if line not in old:
                say(f"{what}: not in the golden text: {line}")
        for line in golden.splitlines():
            if line not in new:
                say(f"{what}: only in the golden text: {line}")
        say("If these are additions in reserved bytes, raise kMinor and run "
            "tests/abi/layout_test.py --update.")
        return False
    return True


def self_check():
    """The comparison itself must see a moved field, a lost one, and a changed constant."""
    old = "struct A size 64 align 64\nfield A.x offset 0 size 8\nfield A.reserved offset 8 size 56\n"
    moved = old.replace("A.x offset 0", "A.x offset 8")
    lost = old.replace("field A.x offset 0 size 8\n", "")
    added = old.replace("field A.reserved offset 8 size 56",
                        "field A.y offset 8 size 8\nfield A.reserved offset 16 size 48")
    assert broken(old, old) == []
    assert len(broken(old, moved)) == 1
    assert len(broken(old, lost)) == 1
    assert broken(old, added) == []
    assert len(broken("constant kMagic 1\n", "constant kMagic 2\n")) == 1


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cxx", default=os.environ.get("CXX", "c++"))
    parser.add_argument("--clang", default="clang++")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--unreleased", action="store_true")
    parser.add_argument("--print", action="store_true", help="print the layout and stop")
    arguments = parser.parse_args()
    self_check()
    if not shutil.which(arguments.clang):
        say("clang++ is missing, which lists the records; run tools/bootstrap")
        return SKIPPED
    text = layout(arguments.clang, arguments.cxx, ROOT)
    if arguments.print:
        print(text, end="")
        return 0
    major = major_of(text)
    golden_file = HERE / f"layout_v{major}.golden"
    if arguments.update:
        refuse = golden_file.exists() and not arguments.unreleased
        lost = broken(golden_file.read_text(), text) if refuse else []
        for line in lost:
            say(f"frozen: {line}")
        if lost:
            say("refused: this is a new major")
            return 1
        golden_file.write_text(text)
        say(f"wrote {golden_file.relative_to(ROOT)}")
        return 0
    if not golden_file.exists():
        say(f"{golden_file.name} is missing: run tests/abi/layout_test.py --update and commit it")
        return 1
    golden = golden_file.read_text()
    good = compare("proto/abi", golden, text)
    # Copies of released headers, of this major and of those before: each is what its golden says.
    for frozen in sorted((HERE / "frozen").glob("v*")):
        if not (frozen / "proto/abi").is_dir():
            say(f"{frozen.relative_to(ROOT)} has no proto/abi folder")
            good = False
            continue
        copy = layout(arguments.clang, arguments.cxx, frozen)
        golden_copy = HERE / f"layout_{frozen.name}.golden"
        if major_of(copy) != int(frozen.name[1:]) or not golden_copy.exists():
            say(f"{frozen.relative_to(ROOT)} does not fit its name or has no golden text")
            good = False
        else:
            # Written for the minor that was frozen; later minors only add.
            for line in broken(copy, golden_copy.read_text()):
                say(f"{frozen.name}: frozen, but changed or gone: {line}")
                good = False
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
