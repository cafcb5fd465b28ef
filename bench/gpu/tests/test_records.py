"""Unit tests of bench/gpu/records.py and loads.py."""

import json
import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import loads
import records

MACHINE = {"device": "test device", "driver": "1.2"}


def rt_result(latencies_us, clock=1980.0, checksum="a", **more):
    jobs = [[index * 10_000_000, latency, clock] for index, latency in enumerate(latencies_us)]
    return {"jobs": jobs, "unserved": 0, "checksum": checksum, **more}


def be_result(per_s, checksum="b", **more):
    return {"per_s": per_s, "checksum": checksum, **more}


def curve_points(a, b):
    return [(f, a + b / f) for f in range(1400, 1990, 20)]


class RecordTest(unittest.TestCase):

    def setUp(self):
        alone = [1000.0] * 99 + [1100.0]
        # Alone: 0.1 ms + 1782/f, that is 1.0 ms at 1980 MHz.
        self.baseline = records.make_baseline({"rt": rt_result(alone)},
                                              {"rt": curve_points(0.1, 1782.0)},
                                              {"be": be_result(200.0)})

    def record(self, latencies_us, clock=1980.0, **more):
        return records.make_record("l", "w", 10.0, {"rt": rt_result(latencies_us, clock)},
                                   {"be": be_result(160.0)}, self.baseline, MACHINE, "cmd", **more)

    def test_schema(self):
        record = self.record([1200.0] * 100)
        records.check_record(record)
        for field in records.FIELDS:
            self.assertIn(field, record)
        json.dumps(record)

    def test_ratios_against_alone(self):
        record = self.record([2000.0] * 100)
        self.assertAlmostEqual(record["rt"]["p99_x"], 2.0)
        self.assertAlmostEqual(record["be"]["share"], 0.8)

    def test_a_lower_clock_explains_its_part_of_the_latency(self):
        slow_clock_ms = 0.1 + 1782.0 / 1500
        record = self.record([slow_clock_ms * 1e3] * 100, clock=1500.0)
        self.assertGreater(record["rt"]["mean_x"], 1.25)
        self.assertAlmostEqual(record["rt"]["mean_x_equal_clock"], 1.0, delta=0.01)
        self.assertEqual(record["sm_clock_mhz"], 1500.0)

    def test_slowdown_beyond_the_clock_stays_visible(self):
        slow_clock_ms = (0.1 + 1782.0 / 1500) * 1.3
        record = self.record([slow_clock_ms * 1e3] * 100, clock=1500.0)
        self.assertAlmostEqual(record["rt"]["mean_x_equal_clock"], 1.3, delta=0.01)

    def test_clock_below_the_calibration_is_counted(self):
        record = self.record([1500.0] * 100, clock=1100.0)
        self.assertEqual(record["clock_outside_calibration"], 1.0)

    def test_without_a_baseline_nothing_is_compared(self):
        record = records.make_record("l", "w", 10.0, {"rt": rt_result([1000.0] * 10)},
                                     {"be": be_result(1.0)}, None, MACHINE, "cmd")
        records.check_record(record)
        self.assertIsNone(record["rt"]["p99_x"])
        self.assertIsNone(record["be"]["share"])
        self.assertIn(" - ", records.table_row(record))

    def test_alone_compared_with_itself_is_one(self):
        record = self.record([1000.0] * 99 + [1100.0])
        self.assertAlmostEqual(record["rt"]["p99_x"], 1.0)
        self.assertAlmostEqual(record["rt"]["p99_x_equal_clock"], 1.0)

    def test_checksums(self):
        self.assertTrue(self.record([1000.0] * 10)["checksum_equal"])
        checksums = {"rt": "other", "be": "b"}
        self.assertFalse(records.compare_checksums({"rt": rt_result([1.0])}, checksums))
        unrepeatable = {"rt": rt_result([1.0], repeatable=False)}
        self.assertIsNone(records.compare_checksums(unrepeatable, checksums))

    def test_baseline_survives_the_file(self):
        copy = records.Baseline.from_json(json.loads(json.dumps(self.baseline.to_json())))
        self.assertEqual(copy.to_json(), self.baseline.to_json())

    def test_status_loses_its_paths_and_zeros(self):
        status = {"scheduler": {"runtime_directory": "/x"}, "sessions_detached": {},
                  "tenants": [{"name": "rt", "class": "realtime", "sessions": 1,
                               "attach_socket": "/x/attach/1.sock",
                               "devices": [{"device": 0, "jobs_total": 5}]}]}
        compact = records.compact_status(status)
        self.assertEqual(compact["tenants"][0]["devices"], [{"jobs_total": 5}])
        self.assertNotIn("/x", json.dumps(compact))
        self.assertIsNone(records.compact_status({"tenants": None}))

    def test_check_names_what_is_missing(self):
        record = self.record([1000.0] * 10)
        del record["rt"]["p99_x_equal_clock"]
        with self.assertRaisesRegex(ValueError, "rt.p99_x_equal_clock"):
            records.check_record(record)

    def test_row_fits_the_header(self):
        header = records.table_header().splitlines()[0]
        row = records.table_row(self.record([1200.0] * 100))
        self.assertEqual(len(header), len(row))


class ResultFileTest(unittest.TestCase):

    def test_whole_after_every_row_and_appendable(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "deeper", "out.json")
            results = records.ResultFile(path)
            results.add({"load": "l", "way": "timeslice"})
            with open(path, encoding="utf-8") as f:
                self.assertEqual(len(json.load(f)), 1)
            again = records.ResultFile(path, append=True)
            again.add({"load": "l", "way": "mps"})
            with open(path, encoding="utf-8") as f:
                self.assertEqual([r["way"] for r in json.load(f)], ["timeslice", "mps"])
            self.assertEqual(records.ResultFile(path).records, [])

    def test_baseline_is_found_by_load_and_repeat(self):
        with tempfile.TemporaryDirectory() as folder:
            results = records.ResultFile(os.path.join(folder, "out.json"))
            baseline = records.make_baseline({"rt": rt_result([1000.0] * 5)}, {},
                                             {"be": be_result(2.0)})
            results.add({"load": "l", "way": "alone", "repeat": 1,
                         "baseline": baseline.to_json()})
            self.assertEqual(list(results.baselines()), [("l", 1)])


class LoadsTest(unittest.TestCase):

    def test_names_are_those_of_the_committed_results(self):
        self.assertEqual(list(loads.LOADS), [
            "vgg19-resnet152", "resnet50-gemm8192", "resnet50-train", "resnet50-vgg16",
            "resnet50-copy", "five-poisson"])
        self.assertEqual(list(loads.WAYS), [
            "alone", "timeslice", "mps", "mps-priority", "rubato-timeslice", "rubato-hybrid",
            "rubato-mps"])

    def test_tenant_names_are_unique_within_a_load(self):
        for load in loads.LOADS.values():
            names = [spec.name for spec in load.rt + load.be]
            self.assertEqual(len(names), len(set(names)), load.name)

    def test_selection(self):
        self.assertEqual(loads.select("mps,alone", loads.WAYS, "way"), ["alone", "mps"])
        with self.assertRaisesRegex(ValueError, "unknown way mpz"):
            loads.select("mpz", loads.WAYS, "way")

    def test_declared_to_rubato(self):
        load = loads.LOADS["resnet50-gemm8192"]
        self.assertEqual(loads.rubato_run_args(load, load.rt[0]),
                         ["--class", "realtime", "--name", "rt-resnet50", "--period", "10ms",
                          "--deadline", "10ms"])
        poisson = loads.LOADS["five-poisson"]
        self.assertNotIn("--period", loads.rubato_run_args(poisson, poisson.rt[0]))
        self.assertEqual(loads.rubato_run_args(load, load.be[0]),
                         ["--class", "best-effort", "--name", "be-gemm8192"])


if __name__ == "__main__":
    unittest.main()
