#!/usr/bin/env python3
"""What the chart starts understands what the chart says: the agent its configuration, the scheduler
its flags; and the program of `helm test` tells a container that has a GPU from one that has not.
"""

import os
import re
import subprocess
import tempfile
import unittest

import live
import rig

GOLDENS = sorted((live.HERE / "golden").glob("*.yaml"))


def agent_yaml(golden):
    """The text of the key agent.yaml: the lines below it that are indented deeper."""
    lines = []
    for line in golden.read_text("utf-8").split("  agent.yaml: |\n", 1)[1].splitlines():
        if not line.startswith("    "):
            break
        lines.append(line[4:])
    return "\n".join(lines) + "\n"


def command_of(golden, program):
    """The words of the container's command that starts with the program, as a block sequence."""
    lines = golden.read_text("utf-8").splitlines()
    for number, line in enumerate(lines):
        if line.strip() == f"- /usr/bin/{program}" and "command:" in lines[number - 1]:
            words = []
            for word in lines[number + 1:]:
                if not word.strip().startswith("- --"):
                    return words
                words.append(word.strip()[2:].strip())
    return None


class Programs(unittest.TestCase):
    def test_the_agent_takes_every_configuration(self):
        agent = os.path.join(rig.BIN, "rubato-agent")
        self.assertGreaterEqual(len(GOLDENS), 5)
        for golden in GOLDENS:
            with self.subTest(golden=golden.stem), tempfile.NamedTemporaryFile("w") as file:
                file.write(agent_yaml(golden))
                file.flush()
                done = subprocess.run([agent, "check-config", "--config", file.name],
                                      capture_output=True, text=True, stdin=subprocess.DEVNULL,
                                      check=False)
                self.assertEqual(done.returncode, 0, done.stderr)
                shown = dict(re.findall(r"^(\S+): (.*)$", done.stdout, re.MULTILINE))
                self.assertEqual(shown["metrics.address"], "0.0.0.0:9413")

    def test_the_agent_refuses_a_key_that_it_does_not_know(self):
        agent = os.path.join(rig.BIN, "rubato-agent")
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(agent_yaml(GOLDENS[0]) + "slotPerGpu: 5\n")
            file.flush()
            done = subprocess.run([agent, "check-config", "--config", file.name],
                                  capture_output=True, text=True, stdin=subprocess.DEVNULL,
                                  check=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("slotPerGpu", done.stderr)

    def test_the_scheduler_takes_its_flags(self):
        scheduler = os.path.join(rig.BIN, "rubato-scheduler")
        commands = {golden.stem: command_of(golden, "rubato-scheduler") for golden in GOLDENS}
        started = {name: words for name, words in commands.items() if words}
        self.assertEqual(set(commands) - set(started), {"cleanup"})
        for name, words in started.items():
            with self.subTest(golden=name), tempfile.TemporaryDirectory() as folder:
                # Everything as the chart says, but in a folder whose parent does not exist: a
                # scheduler that has read its flags ends there (1), one that has not, earlier (2).
                words = [re.sub(r"^--(runtime-dir|attach-directory|mps-directory)=/.*",
                                rf"--\1={folder}/none/\1", word) for word in words]
                done = subprocess.run([scheduler, *words], capture_output=True, text=True,
                                      stdin=subprocess.DEVNULL, timeout=rig.DEADLINE_S,
                                      check=False)
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertIn("none", done.stderr)


class SelfTest(rig.RigTest):
    def test_it_finds_every_link_of_a_tenant(self):
        world = self.rig(dilation=10)
        program = world.best_effort("self", [os.path.join(rig.BIN, "rubato-selftest")],
                                    "--memory", "3GiB")
        lines = self.finish(program)
        self.assertEqual([line.split()[1] for line in lines if line.startswith("ok")],
                         ["shim", "socket", "driver", "work", "session"])
        self.assertIn("it shows 3.0 GiB", "\n".join(lines))
        self.assertEqual(lines[-1], "All links hold.")

    def test_it_says_what_is_missing(self):
        world = self.rig(dilation=10)
        program = world.start([os.path.join(rig.BIN, "rubato-selftest")])
        lines = self.finish(program, code=1)
        self.assertEqual([line.split()[1] for line in lines if line.startswith("FAILED")],
                         ["shim", "socket", "session"])

    def test_it_reads_the_metrics_of_its_node(self):
        world = self.rig(dilation=10)
        world.best_effort("first", [rig.TENANT, "flood"]).expect("ready")
        host, port = world.scheduler()["metrics_address"].rsplit(":", 1)
        environment = {**world.env, "NODE_METRICS_SERVICE_HOST": host}
        program = world.run(["--name", "self"], [
            os.path.join(rig.BIN, "rubato-selftest"), "--pod=/", "--metrics-service=node-metrics",
            f"--metrics-port={port}"], env=environment)
        # Outside a cluster the pod and its namespace are empty.
        self.assertIn("ok      metrics", "\n".join(self.finish(program)))


if __name__ == "__main__":
    rig.main()
