"""Committed results are arrays of records in the schema, measured, and name their command."""

import glob
import json
import os
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, ".."))
import loads
import records

RESULTS = os.path.join(HERE, "..", "..", "results")


class ResultsTest(unittest.TestCase):

    def test_folder_is_there(self):
        self.assertTrue(os.path.exists(os.path.join(RESULTS, "README.md")))

    def test_every_record_is_in_the_schema(self):
        for path in sorted(glob.glob(os.path.join(RESULTS, "*.json"))):
            with self.subTest(file=os.path.basename(path)):
                with open(path, encoding="utf-8") as f:
                    found = json.load(f)
                self.assertIsInstance(found, list)
                self.assertTrue(found, "no record")
                for record in found:
                    records.check_record(record)
                    self.assertNotIn("made-up", record["device"])
                    if record["command"].startswith("bench/gpu/run"):
                        self.assertIn(record["load"], loads.LOADS)
                        self.assertIn(record["way"], loads.WAYS)
                    self.assertTrue(record["command"].startswith("bench/"))


if __name__ == "__main__":
    unittest.main()
