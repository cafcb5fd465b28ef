"""What was learnt about durations outlives the programs and the scheduler."""

import json
import os
import re
import sqlite3

import rig

OPS = 400


class Profiles(rig.RigTest):
    @staticmethod
    def store_of(world):
        return os.path.join(world.dir, "state", "rubato", "profiles.sqlite")

    def flood(self, world, name):
        """Runs a best-effort program to its end and returns what the scheduler knows of it."""
        program = world.best_effort(name, [rig.TENANT, "flood"])
        while int(program.expect("ops").split()[1]) < OPS:
            pass

        def counted():
            device = world.tenant_device(name)
            return device if device and device["ops_total"] >= OPS else None

        device = rig.wait_until(counted, "the scheduler has counted the ops")
        program.end_input()
        self.finish(program)
        return device

    def restart(self, world):
        result = world.rubato("down")
        self.assertEqual(result.returncode, 0, result.stderr)
        world.up()

    def rows(self, world, *arguments):
        result = world.rubato("profile", "show", "--output", "json", *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)

    def test_a_second_start_knows_all_ops_also_under_another_scheduler(self):
        world = self.rig()
        world.up()
        first = self.flood(world, "first")
        self.assertGreater(first["unknown_ops_total"], 0)
        second = self.flood(world, "second")
        self.assertEqual(second["unknown_ops_total"], 0)
        learnt = {row["key"]: row for row in self.rows(world)["profiles"]}
        self.assertGreater(len(learnt), 0)

        self.restart(world)
        third = self.flood(world, "third")
        self.assertEqual(third["unknown_ops_total"], 0)
        status = world.status()
        self.assertEqual(status["devices"][0]["profile_restored"], len(learnt))
        self.assertTrue(status["profile_store"]["usable"])
        self.assertEqual(status["profile_store"]["path"], self.store_of(world))
        again = {row["key"]: row for row in self.rows(world)["profiles"]}
        self.assertLessEqual(set(learnt), set(again))
        # It was measured again, from where it stood.
        self.assertTrue(any(again[key]["samples"] > learnt[key]["samples"] for key in learnt))
        samples = world.metrics()
        self.assertEqual(samples["rubato_profile_store_usable"], 1)
        self.assertEqual(samples["rubato_profile_store_entries"], len(again))
        self.assertEqual(samples["rubato_profile_store_errors_total"], 0)

    def test_a_scheduler_that_is_killed_loses_the_last_batch_at_most(self):
        world = self.rig()
        world.up()
        self.flood(world, "first")
        # Handed over when the last program has ended.
        rig.wait_until(lambda: world.status()["profile_store"]["written_total"] > 0,
                       "what was learnt is on the disk")
        os.kill(int(world.scheduler()["pid"]), 9)
        rig.wait_until(lambda: world.rubato("status").returncode != 0, "the scheduler is gone")
        world.up()
        self.assertEqual(self.flood(world, "second")["unknown_ops_total"], 0)

    def test_a_damaged_store_is_moved_aside_and_begun_anew(self):
        world = self.rig()
        os.makedirs(os.path.dirname(self.store_of(world)))
        with open(self.store_of(world), "wb") as store:
            store.write(os.urandom(20_000))
        world.up()
        self.assertGreater(self.flood(world, "first")["unknown_ops_total"], 0)
        self.assertEqual(os.path.getsize(self.store_of(world) + ".damaged-1"), 20_000)
        self.assertEqual(world.scheduler_log().count("damaged-1"), 1)
        self.assertEqual(world.metrics()["rubato_profile_store_errors_total"], 1)
        self.restart(world)
        self.assertEqual(self.flood(world, "second")["unknown_ops_total"], 0)

    def test_without_a_place_the_scheduler_goes_on(self):
        world = self.rig()
        os.makedirs(self.store_of(world))  # A folder in its place.
        world.up()
        self.flood(world, "first")
        self.assertFalse(world.status()["profile_store"]["usable"])
        self.assertEqual(self.flood(world, "second")["unknown_ops_total"], 0)
        self.assertIn("not usable", world.rubato("profile", "show").stdout)

    def test_none_keeps_nothing(self):
        world = self.rig()
        world.up("--", "--profile-store", "none")
        self.flood(world, "first")
        self.assertFalse(os.path.exists(os.path.join(world.dir, "state")))
        self.assertIn("no profile store", world.rubato("profile", "show").stdout)

    def test_wrong_durations_in_the_store_are_put_right(self):
        world = self.rig()
        world.up()
        self.flood(world, "first")
        kernel = max((row for row in self.rows(world)["profiles"] if row["kind"] == "kernel"),
                     key=lambda row: row["samples"])
        self.assertEqual(world.rubato("down").returncode, 0)
        for factor in (20, 0.05):
            with sqlite3.connect(self.store_of(world)) as store:
                store.execute("UPDATE profile SET duration_ns=CAST(duration_ns*? AS INTEGER),"
                              " max_ns=CAST(max_ns*? AS INTEGER)", (factor, factor))
            store.close()
            world.up()
            self.flood(world, "second")
            found = {row["key"]: row for row in self.rows(world)["profiles"]}[kernel["key"]]
            # Half and twice: the machine may be busy, a factor of 20 is none of its doing.
            self.assertGreater(found["duration_ns"], kernel["duration_ns"] // 2)
            self.assertLess(found["duration_ns"], kernel["duration_ns"] * 2)
            self.assertEqual(world.rubato("down").returncode, 0)

    def test_profile_measures_a_program_and_clear_forgets_it(self):
        world = self.rig()
        program = world.start([rig.RUBATO, "profile", "--", rig.TENANT, "flood", "--ops", OPS])
        self.finish(program)
        found = re.search(r"(\d+) measurements of (\d+) operations, (\d+) of them new; kept in (\S+)",
                          program.errors)
        self.assertIsNotNone(found, program.errors)
        samples, ops, new = (int(found.group(i)) for i in (1, 2, 3))
        self.assertGreater(samples, OPS // 4)
        self.assertEqual(ops, new)
        self.assertEqual(found.group(4), self.store_of(world))
        # It has started a scheduler; what comes now profits, and is sampled as usual.
        usual = self.flood(world, "second")
        self.assertEqual(usual["unknown_ops_total"], 0)
        self.assertLess(usual["samples_total"] / usual["ops_total"], samples / OPS)

        # Of a program's first few ops not every one is measured each time: what is called new is
        # what was not known, and what was known is kept.
        known = {row["key"] for row in self.rows(world)["profiles"]}
        again = world.start([rig.RUBATO, "profile", "--", rig.TENANT, "flood", "--ops", OPS])
        self.finish(again)
        found = re.search(r"measurements of (\d+) operations, (\d+) of them new", again.errors)
        self.assertIsNotNone(found, again.errors)
        kept = {row["key"] for row in self.rows(world)["profiles"]}
        self.assertLessEqual(known, kept)
        self.assertEqual(int(found.group(2)), len(kept - known))
        self.assertLess(int(found.group(2)), int(found.group(1)))

        cleared = world.rubato("profile", "clear")
        self.assertEqual(cleared.returncode, 0, cleared.stderr)
        self.assertNotEqual(cleared.stdout.split()[0], "0")
        self.assertEqual(self.rows(world)["profiles"], [])
        self.assertGreater(self.flood(world, "third")["unknown_ops_total"], 0)

    def test_profile_wants_the_gpu_for_itself_and_passes_the_exit_code_on(self):
        world = self.rig()
        other = world.best_effort("other", [rig.TENANT, "flood"])
        other.expect("ops")
        result = world.rubato("profile", "--", rig.TENANT, "flood", "--ops", "10")
        self.assertEqual(result.returncode, 125, result.stderr)
        self.assertIn("tenant other", result.stderr)
        other.end_input()
        self.finish(other)
        rig.wait_until(lambda: world.tenant("other") is None, "the tenant is gone")
        result = world.rubato("profile", "--no-gpu-check", "--", "sh", "-c", "exit 7")
        self.assertEqual(result.returncode, 7, result.stderr)
        self.assertIn("no operation", result.stderr)


if __name__ == "__main__":
    rig.main()
