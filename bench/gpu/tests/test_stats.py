"""Unit tests of bench/gpu/stats.py."""

import os
import random
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import stats


class PercentileTest(unittest.TestCase):

    def test_nearest_rank(self):
        values = list(range(1, 101))
        random.Random(1).shuffle(values)
        self.assertEqual(stats.percentile(values, 0.50), 50)
        self.assertEqual(stats.percentile(values, 0.99), 99)
        self.assertEqual(stats.percentile(values, 1.0), 100)
        self.assertEqual(stats.percentile([7], 0.99), 7)

    def test_empty_is_refused(self):
        with self.assertRaises(ValueError):
            stats.percentile([], 0.5)

    def test_summary_counts_only_late_jobs_as_misses(self):
        summary = stats.summarise_latencies([1.0, 10.0, 10.5, 2.0], deadline_ms=10.0)
        self.assertEqual(summary["n"], 4)
        self.assertEqual(summary["misses"], 1)
        self.assertAlmostEqual(summary["mean_ms"], 5.875)
        self.assertEqual(summary["max_ms"], 10.5)


class UnitsInWindowTest(unittest.TestCase):

    def test_edges_count_by_part(self):
        # Units [0,10] [10,20] [20,30] [30,40]; the window holds 1/2, 1, 1 and 1/4 of them.
        done = stats.units_in_window([10, 20, 30, 40], 0, 5, 32.5)
        self.assertAlmostEqual(done, 0.5 + 1 + 1 + 0.25)

    def test_outside_counts_nothing(self):
        self.assertEqual(stats.units_in_window([10, 20], 0, 20, 30), 0)
        self.assertEqual(stats.units_in_window([], 0, 20, 30), 0)

    def test_one_unit_longer_than_the_window(self):
        self.assertAlmostEqual(stats.units_in_window([1000], 0, 100, 200), 0.1)

    def test_disorder_is_refused(self):
        with self.assertRaises(ValueError):
            stats.units_in_window([10, 5], 0, 0, 10)


class ClockCurveTest(unittest.TestCase):

    def points(self, a, b, noise, seed=3):
        rng = random.Random(seed)
        clocks = [rng.uniform(1400, 1980) for _ in range(120)]
        return [(f, (a + b / f) * (1 + rng.uniform(0, noise))) for f in clocks]

    def test_recovers_a_line(self):
        curve = stats.fit_clock_curve(self.points(0.2, 1200.0, 0.002))
        self.assertEqual(curve.kind, "line")
        for f in (1450, 1700, 1950):
            self.assertAlmostEqual(curve.alone_ms(f) / (0.2 + 1200.0 / f), 1.0, delta=0.005)

    def test_outliers_do_not_move_it(self):
        points = self.points(0.2, 1200.0, 0.002)
        points = [(f, ms * 4 if i % 10 == 0 else ms) for i, (f, ms) in enumerate(points)]
        curve = stats.fit_clock_curve(points)
        self.assertAlmostEqual(curve.alone_ms(1700) / (0.2 + 1200.0 / 1700), 1.0, delta=0.02)

    def test_clock_that_hardly_moves_gives_a_constant(self):
        curve = stats.fit_clock_curve([(1975, 0.80), (1980, 0.81), (1978, 0.82)])
        self.assertEqual(curve.kind, "constant")
        self.assertEqual(curve.b_ms_mhz, 0.0)
        self.assertAlmostEqual(curve.alone_ms(1500), 0.81)

    def test_parts_are_never_negative(self):
        rising = stats.fit_clock_curve([(1400 + i * 10, 0.5 + i * 0.01) for i in range(50)])
        self.assertGreaterEqual(rising.b_ms_mhz, 0.0)
        steep = stats.fit_clock_curve([(f, 3000.0 / f - 0.6) for f in range(1400, 1980, 10)])
        self.assertEqual(steep.kind, "inverse")
        self.assertGreaterEqual(steep.a_ms, 0.0)

    def test_too_few_points_are_refused(self):
        with self.assertRaises(ValueError):
            stats.fit_clock_curve([(1980, 1.0), (1500, 1.2)])

    def test_json_round_trip(self):
        curve = stats.fit_clock_curve(self.points(0.2, 1200.0, 0.002))
        self.assertEqual(stats.ClockCurve.from_json(curve.to_json()), curve)

    def test_coverage(self):
        curve = stats.ClockCurve(0.1, 1000.0, 1500, 1980, 9, "line")
        self.assertTrue(curve.covers(1480))
        self.assertFalse(curve.covers(1300))


class EqualClockTest(unittest.TestCase):

    def test_a_job_slowed_by_its_clock_alone_has_ratio_one(self):
        curve = stats.ClockCurve(0.1, 1500.0, 1400, 1980, 9, "line")
        clocks = [1980, 1700, 1450]
        latencies = [curve.alone_ms(f) for f in clocks]
        for ratio in stats.equal_clock_ratios(latencies, clocks, curve):
            self.assertAlmostEqual(ratio, 1.0)
        slower = stats.equal_clock_ratios([1.14 * x for x in latencies], clocks, curve)
        for ratio in slower:
            self.assertAlmostEqual(ratio, 1.14)

    def test_jobs_without_a_clock_are_left_out(self):
        curve = stats.ClockCurve(1.0, 0.0, 1400, 1980, 9, "constant")
        self.assertEqual(stats.equal_clock_ratios([1.0, 2.0], [None, 1980], curve), [2.0])

    def test_nearest_probe_in_time(self):
        filled = stats.fill_clocks([0, 10, 20, 30, 45], [None, 1900, None, None, 1500])
        self.assertEqual(filled, [1900, 1900, 1900, 1500, 1500])
        self.assertEqual(stats.fill_clocks([1, 2], [None, None]), [None, None])


if __name__ == "__main__":
    unittest.main()
