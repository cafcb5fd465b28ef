#!/usr/bin/env python3
"""Small rules for every text file: whole lines, no machine's paths, a comment that says what it is.

A source file opens with that comment because a reader who opens it wants to know first what it is
and why it exists apart from its neighbours.
"""

import os
import pathlib
import re
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CODE = (".h", ".cc", ".c", ".cu", ".py", ".sh", ".cmake")
TEXT = CODE + (".md", ".txt", ".yaml", ".yml", ".json", ".proto", ".def", ".inc", ".in")
NAMED = {"Makefile", "CMakeLists.txt", ".clang-format", ".clang-tidy", ".gitignore", ".editorconfig"}

# Put together from parts, so that this file does not contain what it looks for.
HOME = re.compile("(?<![\\w.])/" + "(home|root|Users|work)" + "/[\\w.-]+")
CONFLICT = re.compile("^(" + "<" * 7 + " |" + ">" * 7 + " |" + "=" * 7 + "$)", re.MULTILINE)
BANNED_NAME = re.compile(r"\b(?:class|struct)\s+\w*(Manager|Utils|Helper|Impl|Base)\b\s*[^;\w]")


def files():
    for path, names, found in os.walk(ROOT):
        here = pathlib.Path(path)
        names[:] = sorted(n for n in names if n not in (".git", "__pycache__", "node_modules")
                          and not (here == ROOT and (n.startswith("build") or n in ("shared",
                                                                                    ".cache"))))
        for name in sorted(found):
            file = here / name
            if not file.is_symlink() and (name.endswith(TEXT) or name in NAMED):
                yield file


def opening(text):
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#!")]
    return lines[0] if lines else ""


class TextTest(unittest.TestCase):
    def each(self, rule):
        faults = []
        count = 0
        for file in files():
            count += 1
            name = file.relative_to(ROOT).as_posix()
            faults += [f"{name}: {fault}" for fault in rule(file, file.read_text("utf-8"))]
        self.assertGreater(count, 10)
        self.assertEqual([], faults, "\n" + "\n".join(faults))

    def test_lines_are_whole(self):
        def rule(file, text):
            if text and not text.endswith("\n"):
                yield "no newline at the end"
            if "\r" in text:
                yield "carriage return"
            if CONFLICT.search(text):
                yield "conflict marker"
            for number, line in enumerate(text.splitlines(), 1):
                if line != line.rstrip() and file.suffix != ".md":
                    yield f"line {number} ends in blanks"
                if "\t" in line and file.suffix in (".h", ".cc", ".py", ".cmake"):
                    yield f"line {number} has a tab"
        self.each(rule)

    def test_no_path_of_one_machine(self):
        def rule(file, text):
            for match in HOME.finditer(text):
                yield f"path of one machine: {match.group(0)}"
        self.each(rule)

    def test_sources_open_with_what_they_are(self):
        def rule(file, text):
            if file.suffix not in CODE and file.name != "CMakeLists.txt" or not text.strip():
                return
            start = opening(text)
            if file.suffix == ".py":
                if not start.startswith(('"""', "#", "'''")):
                    yield "opens without a docstring"
            elif not start.startswith(("//", "/*", "#")) or start.startswith(("#include",
                                                                              "#pragma")):
                # What stands at the top of x.h need not be said again in x.cc and x_test.cc.
                twin = file.suffix == ".cc" and (file.with_suffix(".h").exists()
                                                 or file.stem.endswith("_test"))
                if file.name != "CMakeLists.txt" and not twin:
                    yield "opens without a comment that says what it is"
        self.each(rule)

    def test_fixed_width_integers_are_declared(self):
        # Newer standard libraries no longer bring <cstdint> along with other headers.
        direct = re.compile(r"#\s*include\s*<(c?stdint(\.h)?|c?inttypes(\.h)?|cuda.*|hip/.*)>")

        def declares(file, seen):
            if file in seen or not file.is_file():
                return False
            seen.add(file)
            text = file.read_text("utf-8")
            return bool(direct.search(text)) or any(
                # What is not in the tree is generated, by tools whose output includes it.
                not (ROOT / name).is_file() and "/" in name or declares(ROOT / name, seen)
                for name in re.findall(r'#\s*include\s*"([^"]+)"', text))

        def rule(file, text):
            if file.suffix in (".h", ".cc") and re.search(r"\bu?int(8|16|32|64)_t\b", text):
                if not declares(file, set()):
                    yield "uses fixed-width integers without <cstdint>"
        self.each(rule)

    def test_names_say_what_a_thing_is(self):
        def rule(file, text):
            if file.suffix in (".h", ".cc"):
                for match in BANNED_NAME.finditer(text):
                    yield f"a name that says nothing: ...{match.group(1)}"
        self.each(rule)


if __name__ == "__main__":
    unittest.main()
