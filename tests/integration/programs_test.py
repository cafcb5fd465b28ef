"""Programs compute the same with and without Rubato, whatever way they use the driver."""

import rig


class Programs(rig.RigTest):
    def outputs(self, world, argv):
        """The program's lines without Rubato, as a real-time and as a best-effort tenant."""
        bare = self.finish(world.start(argv))
        self.assertTrue(bare and bare[-1].startswith("done"), bare)
        realtime = self.finish(world.realtime("rt", argv))
        best_effort = self.finish(world.best_effort("be", argv))
        return bare, realtime, best_effort

    def check(self, argv, **settings):
        world = self.rig(dilation=1, **settings)
        bare, realtime, best_effort = self.outputs(world, argv)
        self.assertEqual(realtime, bare)
        self.assertEqual(best_effort, bare)
        # They were tenants indeed, and stayed so to their end.
        self.assertGreaterEqual(world.metrics()["rubato_sessions_attached_total"], 2)
        detached = {reason: count for reason, count in world.status()["sessions_detached"].items()
                    if count != 0}
        self.assertEqual(detached, {})
        return world

    def test_streams_events_graphs_captures_threads(self):
        self.check([rig.TENANT, "workload", "--rounds", 24, "--threads", 4])

    def test_many_threads_at_once(self):
        self.check([rig.TENANT, "workload", "--rounds", 40, "--threads", 16])

    def test_a_driver_without_stream_memory_operations(self):
        self.check([rig.TENANT, "workload", "--rounds", 16], NO_MEMOPS=1)

    def test_a_driver_that_cannot_register_memory(self):
        self.check([rig.TENANT, "workload", "--rounds", 16], FAIL_REGISTER=1)

    def test_words_that_land_late_and_out_of_order(self):
        self.check([rig.TENANT, "workload", "--rounds", 16], LATE_WRITES=1)

    def test_beside_each_other_they_compute_the_same(self):
        world = self.rig(dilation=1)
        argv = [rig.TENANT, "workload", "--rounds", 20]
        bare = self.finish(world.start(argv))
        programs = [world.realtime("rt", argv), world.best_effort("be1", argv),
                    world.best_effort("be2", argv)]
        for program in programs:
            self.assertEqual(self.finish(program), bare)

    def test_best_effort_programs_side_by_side_in_mps(self):
        world = self.rig(dilation=1)
        argv = [rig.TENANT, "workload", "--rounds", 16]
        bare = self.finish(world.start(argv))
        world.up("--mode", "mps")
        programs = [world.realtime("rt", argv), world.best_effort("be1", argv),
                    world.best_effort("be2", argv)]
        for program in programs:
            self.assertEqual(self.finish(program), bare)

    def test_a_data_loader_forks_workers(self):
        self.check([rig.TENANT, "forker", "--workers", 4])

    def test_children_of_a_tenant_belong_to_it(self):
        world = self.rig(dilation=1)
        program = world.best_effort("family", [
            "sh", "-c",
            f"exec 3<&0; {rig.TENANT} flood <&3 & {rig.TENANT} flood <&3 & wait"])

        program.expect("ops")

        def sessions():
            tenant = world.tenant("family")
            return tenant is not None and tenant["sessions"] == 2

        rig.wait_until(sessions, "both children are sessions of the tenant")
        program.end_input()
        self.finish(program)

    def test_disabled_by_its_switch(self):
        world = self.rig(dilation=1)
        env = dict(world.env, RUBATO_DISABLE="1")
        program = world.run(["--name", "off"], [rig.TENANT, "flood"], env)
        program.expect("ops")
        self.assertEqual(world.tenant("off")["sessions"], 0)
        program.end_input()
        self.finish(program)


if __name__ == "__main__":
    rig.main()
