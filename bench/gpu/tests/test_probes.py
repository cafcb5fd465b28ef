"""The evaluation of the probes, on numbers whose answer is known."""

import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from probes import run_probes


class SlopeTest(unittest.TestCase):

    def test_slope_and_launch(self):
        points = [{"nodes": n, "us": 7.0 + 2.5 * n} for n in (1, 2, 5, 10, 100, 500)]
        points[3]["us"] *= 2  # one disturbed point moves nothing
        slope, launch = run_probes.slope_us_per_node(points)
        self.assertAlmostEqual(slope, 2.5, delta=0.01)
        self.assertAlmostEqual(launch, 7.0, delta=0.5)


class PretouchTest(unittest.TestCase):

    def test_a_lower_clock_is_no_overhead_and_a_switch_is(self):
        def alone_ms(f):
            return 0.2 + 1200.0 / f
        raw = {
            "calibration": [[f, alone_ms(f)] for f in range(1400, 1990, 10)],
            "runs": [
                {"load": "idle", "lead_us": 0, "be_per_s": 0.0, "be_unit_us": 0.0,
                 "jobs": [[1e3 * alone_ms(1980), 1980.0]] * 100},
                {"load": "gemm", "lead_us": 200, "be_per_s": 4000.0, "be_unit_us": 200.0,
                 "jobs": [[1e3 * alone_ms(1500), 1500.0]] * 100},
                {"load": "gemm", "lead_us": 0, "be_per_s": 4000.0, "be_unit_us": 200.0,
                 "jobs": [[1e3 * alone_ms(1500) + 140, 1500.0]] * 100},
            ],
        }
        rows = run_probes.summarise_pretouch(raw)["summary"]
        self.assertAlmostEqual(rows[1]["mean_x_equal_clock"], 1.0, delta=0.01)
        self.assertGreater(rows[1]["mean_x"], 1.2)
        self.assertAlmostEqual(rows[2]["mean_x_equal_clock"], 1 + 0.14 / alone_ms(1500), delta=0.01)
        self.assertAlmostEqual(rows[1]["be_busy"], 0.8)


if __name__ == "__main__":
    unittest.main()
