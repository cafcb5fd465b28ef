"""The agent with everything around it: slots to tenants, annotations to promises, and every death.

Real agent, scheduler, shim and software GPU; stand-ins for the kubelet and the API server.
"""

import os
import signal
import subprocess

import rig
from kubernetes_node import AGENT, Node, RESOURCE

PERIOD_NS = 100_000_000


def flood():
    return [rig.TENANT, "flood", "--kernel-ns", 20_000, "--depth", 4]


def attached(tenant):
    return tenant["sessions"] > 0


class AgentTest(rig.RigTest):
    def node(self, config="", **settings):
        world = self.rig()
        return Node(world, config, **settings)

    def running(self, config="", **settings):
        return self.node(config, **settings).start()


class FromPodToTenant(AgentTest):
    def test_a_realtime_pod(self):
        node = self.running()
        node.kubelet.must(do="wait", resource=RESOURCE, healthy=10, connected=True)
        answer = node.run_pod("camera", 3, **{"class": "realtime", "period": "100ms",
                                              "deadline": "80ms"})
        # The tenant is there before the container starts.
        tenant = node.tenant("camera")
        self.assertIsNotNone(tenant)
        self.assertEqual(tenant["class"], "realtime")
        self.assertEqual(tenant["share_permille"], 300)
        self.assertEqual(tenant["period_ns"], PERIOD_NS)
        self.assertEqual(tenant["deadline_ns"], 80_000_000)
        self.assertEqual((tenant["namespace"], tenant["pod"], tenant["container"]),
                         ("trusted", "camera", "main"))
        total = node.metrics()
        memory = [value for name, value in total.items()
                  if name.startswith("rubato_gpu_memory_total_bytes")][0]
        self.assertAlmostEqual(tenant["limit_bytes"] / memory, 0.3, places=3)
        directory = node.host_path(answer, "/run/rubato")
        self.assertEqual(tenant["attach_socket"], os.path.join(directory, "attach.sock"))
        self.assertTrue(os.path.exists(tenant["attach_socket"]))
        event = node.wait_event("camera", "RealtimeAdmitted")
        self.assertIn("real-time on GPU 0 (30 %)", event["message"])

        program = node.start_in(answer, [rig.TENANT, "periodic", "--period-ns", PERIOD_NS,
                                         "--jobs", 5])
        program.expect("ready")
        node.wait_tenant("camera", attached, "has a session")
        program.say("go")
        program.expect("done")
        self.finish(program)
        self.assertGreaterEqual(node.tenant("camera")["devices"][0]["jobs_total"], 5)

        self.assertEqual(node.metric('rubato_kubelet_registered{resource="rubato.dev/gpu"}'), 1)
        self.assertEqual(node.metric(
            'rubato_container_class{namespace="trusted",pod="camera",container="main",'
            'asked="realtime",class="realtime",reason="admitted"}'), 1)
        slots = [value for name, value in node.metrics().items()
                 if name.startswith("rubato_slots_allocated")]
        self.assertEqual(slots, [3])

    def test_annotations_that_change_reach_the_scheduler(self):
        node = self.running()
        node.run_pod("camera", 3, **{"class": "realtime", "period": "100ms"})
        node.annotate("camera", period="50ms", deadline="40ms", overhead_budget="1%",
                      priority="high", memory="8Gi")
        tenant = node.wait_tenant("camera", lambda t: t["period_ns"] == 50_000_000,
                                  "has the new period")
        self.assertEqual(tenant["deadline_ns"], 40_000_000)
        self.assertEqual(tenant["limit_bytes"], 8 << 30)
        node.annotate("camera", **{"class": "best-effort"})
        node.wait_tenant("camera", lambda t: t["class"] == "best-effort", "has the new class")
        node.annotate("camera", memory="lots")
        node.wait_event("camera", "BadAnnotation", "rubato.dev/memory")

    def test_a_class_that_changes_holds_from_the_next_start(self):
        node = self.running()
        answer = node.run_pod("batch", 2)
        program = node.start_in(answer, flood())
        program.expect("ops")
        node.wait_tenant("batch", attached, "has a session")
        # The agent learns of sessions from the scheduler's next status.
        node.annotate("batch", **{"class": "realtime"})
        node.wait_tenant("batch", lambda t: t["class"] == "realtime", "has the new class")
        self.assertEqual(node.tenant("batch")["session_list"][0]["class"], "best-effort")
        program.end_input()
        self.finish(program)

    def test_a_namespace_without_right_is_best_effort_and_told_why(self):
        node = self.running()
        node.run_pod("camera", 3, namespace="other", **{"class": "realtime", "memory": "100Gi"})
        tenant = node.tenant("camera")
        self.assertEqual(tenant["class"], "best-effort")
        self.assertEqual(tenant["admission"]["reason"], "not-allowed")
        event = node.wait_event("camera", "RealtimeRefused", "best-effort")
        self.assertIn("namespace other", event["message"])
        node.wait_event("camera", "MemoryNotAllowed", "100Gi")
        # The right is given while it runs.
        node.realtime_namespaces = ["other"]
        node.write_config()
        node.wait_tenant("camera", lambda t: t["class"] == "realtime", "has the class")
        node.wait_event("camera", "RealtimeAdmitted")

    def test_a_pod_that_does_not_fit_runs_as_best_effort(self):
        node = self.running()
        node.run_pod("first", 6, **{"class": "realtime"})
        node.run_pod("second", 4, **{"class": "realtime"})
        self.assertEqual(node.tenant("first")["class"], "realtime")
        tenant = node.tenant("second")
        self.assertEqual(tenant["class"], "best-effort")
        self.assertEqual(tenant["admission"]["reason"], "demand")
        event = node.wait_event("second", "RealtimeRefused", "best-effort")
        self.assertIn("(demand)", event["message"])

    def test_a_pod_that_does_not_fit_does_not_start_where_so_configured(self):
        node = self.running("admission: {onRefusal: refuse}")
        node.run_pod("first", 6, **{"class": "realtime"})
        node.put_pod("second", 4, **{"class": "realtime"})
        node.admit("second", 4)
        answer = node.prestart("second")
        self.assertFalse(answer["ok"])
        self.assertIn("does not fit", answer["error"])
        event = node.wait_event("second", "RealtimeRefused")
        self.assertIn("90 % can be promised", event["message"])
        self.assertEqual(node.metric('rubato_prestart_total{outcome="refused"}'), 1)
        # Once there is room, the kubelet's next attempt starts it.
        node.delete_pod("first")
        rig.wait_until(lambda: node.tenant("first") is None, "the first tenant is gone")
        self.assertTrue(node.prestart("second")["ok"])
        self.assertEqual(node.tenant("second")["class"], "realtime")

    def test_an_init_container_and_a_sidecar_of_different_class(self):
        node = self.running()
        node.put_pod("app", 0, containers=[("main", 2), ("side", 1)],
                     init_containers=[("load", 2)],
                     **{"class": "realtime", "priority": "low"})
        node.api.must(op="patch-pod", namespace="trusted", name="app", patch={
            "metadata": {"annotations": {"side.rubato.dev/class": "best-effort"}}})
        # As the kubelet does at admission: one allocation per container, in order.
        for container, count in (("load", 2), ("main", 2), ("side", 1)):
            node.admit("app", count, container=container)
        for container in ("load", "main", "side"):
            self.assertTrue(node.prestart("app", container=container)["ok"])
        self.assertEqual(node.wait_tenant("app", container="main")["class"], "realtime")
        self.assertEqual(node.wait_tenant("app", container="side")["class"], "best-effort")
        self.assertEqual(node.metric('rubato_agent_prestart_open_total{reason="pod-unknown"}'), 0)


class Endings(AgentTest):
    def test_a_pod_that_goes_leaves_nothing(self):
        node = self.running()
        answer = node.run_pod("job", 2)
        directory = node.host_path(answer, "/run/rubato")
        self.assertTrue(os.path.isdir(directory))
        # Finished, and still with the kubelet: no tenant, but its folder may be mounted.
        node.put_pod("job", 2, phase="Succeeded")
        rig.wait_until(lambda: node.tenant("job") is None, "the tenant is gone")
        self.assertTrue(os.path.isdir(directory))
        node.delete_pod("job")
        rig.wait_until(lambda: not os.path.exists(directory), "the folder is gone")
        node.wait_metric("rubato_allocations_released_total", 1)

    def test_sigterm_leaves_the_tenants_where_they_are(self):
        node = self.running()
        answer = node.run_pod("batch", 2)
        program = node.start_in(answer, flood())
        program.expect("ops")
        node.wait_tenant("batch", attached, "has a session")
        node.agent.signal(signal.SIGTERM)
        self.finish(node.agent)
        self.assertEqual(node.tenant("batch")["sessions"], 1)
        program.end_input()
        self.finish(program)

    def test_cleanup_waits_for_the_last_pod(self):
        node = self.running()
        node.run_pod("batch", 2)

        def cleanup():
            return subprocess.run([AGENT, "cleanup", "--once", "--config", node.config_path],
                                  env=node.world.env, text=True, capture_output=True,
                                  timeout=rig.DEADLINE_S)

        under_agent = cleanup()
        self.assertEqual(under_agent.returncode, 1)
        self.assertIn("another rubato-agent", under_agent.stdout)
        node.agent.signal(signal.SIGTERM)
        self.finish(node.agent)
        held = cleanup()
        self.assertEqual(held.returncode, 3, held.stdout)
        self.assertIn("trusted/batch/main holds slots", held.stdout)
        self.assertTrue(os.path.isdir(os.path.join(node.host_root, "shim")))
        node.delete_pod("batch")
        done = cleanup()
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(os.listdir(node.host_root), [])

    def test_an_upgrade_keeps_the_shim_of_a_recorded_allocation(self):
        node = self.running()
        answer = node.run_pod("batch", 2)
        old = os.path.dirname(node.host_path(answer, "/usr/local/lib/rubato/librubato-cuda.so"))
        source = os.path.join(node.world.dir, "new")
        os.makedirs(source)
        for name in ("librubato-cuda.so", "librubato-hip.so"):
            with open(os.path.join(rig.LIB, name), "rb") as file:
                content = file.read()
            with open(os.path.join(source, name), "wb") as file:
                file.write(content + b"another version")
        installed = subprocess.run(
            [AGENT, "install-shim", "--config", node.config_path, "--from", source],
            env=node.world.env, text=True, capture_output=True, timeout=rig.DEADLINE_S)
        self.assertEqual(installed.returncode, 0, installed.stderr)
        self.assertIn(f"kept {old}", installed.stdout)
        self.assertTrue(os.path.exists(os.path.join(old, "librubato-cuda.so")))
        # A reload is enough for new containers to get it.
        node.agent.signal(signal.SIGHUP)
        node.wait_metric('rubato_agent_config_reloads_total{result="unchanged"}', 1)
        newer = node.run_pod("other", 2)
        self.assertNotEqual(
            os.path.dirname(node.host_path(newer, "/usr/local/lib/rubato/librubato-cuda.so")), old)


class Deaths(AgentTest):
    def with_flood(self):
        node = self.running()
        answer = node.run_pod("batch", 2)
        program = node.start_in(answer, flood())
        program.expect("ops")
        return node, program, node.wait_tenant("batch", attached, "has a session")

    def assert_goes_on(self, program):
        before = rig.ops_after(program, rig.now_ns())
        while rig.ops_after(program, rig.now_ns()) < before + 24:
            pass

    def test_the_kubelet_restarts(self):
        node, program, before = self.with_flood()
        node.kubelet.must(do="restart")
        node.kubelet.must(do="wait", resource=RESOURCE, registrations=1, healthy=10,
                          connected=True)
        self.assertEqual(node.metric('rubato_kubelet_registrations_total{cause="kubelet"}'), 1)
        node.wait_ready()
        self.assertEqual(node.tenant("batch")["id"], before["id"])
        node.run_pod("next", 2)
        self.assertIsNotNone(node.tenant("next"))
        self.assert_goes_on(program)
        program.end_input()
        self.finish(program)

    def test_the_scheduler_is_killed(self):
        node, program, _ = self.with_flood()
        node.run_pod("camera", 3, **{"class": "realtime"})
        pid = node.world.scheduler()["pid"]
        os.kill(pid, signal.SIGKILL)
        rig.wait_until(lambda: node.get("/readyz")[0] == 503, "the agent misses the scheduler")
        self.assertIn("scheduler", node.get("/readyz")[1])
        self.assert_goes_on(program)
        node.start_scheduler()
        node.wait_ready()
        tenant = node.wait_tenant("batch", attached, "has attached again")
        self.assertTrue(tenant["session_list"][0]["reattached"])
        self.assertEqual(node.wait_tenant("camera")["class"], "realtime")
        self.assertEqual(node.metric("rubato_agent_schedulers_met_total"), 2)
        # The owners were told once.
        admitted = [e for e in node.events() if e["reason"] == "RealtimeAdmitted"]
        self.assertEqual([e.get("count", 1) for e in admitted], [1])
        self.assert_goes_on(program)
        program.end_input()
        self.finish(program)

    def test_the_agent_is_killed(self):
        node, program, before = self.with_flood()
        node.run_pod("gone", 2)
        node.agent.signal(signal.SIGKILL)
        node.agent.wait()
        self.assert_goes_on(program)
        # While nobody watches: a pod goes, an annotation changes.
        node.delete_pod("gone")
        node.annotate("batch", memory="4Gi")
        node.start_agent()
        node.wait_ready()
        rig.wait_until(lambda: node.tenant("gone") is None, "the tenant of the pod is gone")
        tenant = node.wait_tenant("batch", lambda t: t["limit_bytes"] == 4 << 30, "has the limit")
        self.assertEqual(tenant["id"], before["id"])
        self.assertEqual(tenant["sessions"], 1)
        self.assertFalse(tenant["session_list"][0]["reattached"])
        self.assertEqual(node.metric('rubato_agent_tenant_calls_total{call="register"}'), 0)
        self.assert_goes_on(program)
        program.end_input()
        self.finish(program)

    def test_agent_and_scheduler_are_killed(self):
        node, program, _ = self.with_flood()
        node.agent.signal(signal.SIGKILL)
        os.kill(node.world.scheduler()["pid"], signal.SIGKILL)
        node.agent.wait()
        self.assert_goes_on(program)
        node.start()
        tenant = node.wait_tenant("batch", attached, "has attached again")
        self.assertTrue(tenant["session_list"][0]["reattached"])
        self.assert_goes_on(program)
        program.end_input()
        self.finish(program)

    def test_the_gpu_goes_and_comes_back(self):
        node = self.running("", flags=["--set", "gpu.recoveryTime=100ms"])
        node.kubelet.must(do="wait", resource=RESOURCE, healthy=10)
        node.world.stop_gpu()
        node.kubelet.must(do="wait", resource=RESOURCE, healthy=0, listed=10)
        node.world.start_gpu()
        node.kubelet.must(do="wait", resource=RESOURCE, healthy=10)


    def test_the_driver_hangs(self):
        node = self.running("", flags=["--set", "gpu.hangLimit=300ms",
                                       "--set", "gpu.recoveryTime=100ms"])
        node.kubelet.must(do="wait", resource=RESOURCE, healthy=10)
        node.world.gpu.send_signal(signal.SIGSTOP)
        node.kubelet.must(do="wait", resource=RESOURCE, healthy=0, listed=10)
        self.assertEqual(node.metric("rubato_gpu_library_hung"), 1)
        reasons = [name for name in node.metrics() if name.startswith("rubato_gpu_unhealthy{")]
        self.assertEqual(len(reasons), 1)
        self.assertIn('reason="driver-hung"', reasons[0])
        # Nothing else hangs with it.
        self.assertEqual(node.get("/healthz"), (200, "alive\n"))
        node.world.gpu.send_signal(signal.SIGCONT)
        node.kubelet.must(do="wait", resource=RESOURCE, healthy=10)
        # Nor does the agent's end.
        node.world.gpu.send_signal(signal.SIGSTOP)
        node.wait_metric("rubato_gpu_library_hung", 1)
        node.agent.signal(signal.SIGTERM)
        self.finish(node.agent)
        node.world.gpu.send_signal(signal.SIGCONT)


class Doubt(AgentTest):
    def test_a_kubelet_that_does_not_say_whose_slots_they_are(self):
        node = self.running()
        node.put_pod("camera", 3, **{"class": "realtime"})
        node.kubelet.must(do="hold-pod-resources", on=True)
        answer = node.admit("camera", 3)["answer"]
        self.assertTrue(node.prestart("camera")["ok"])
        opened = [value for name, value in node.metrics().items()
                  if name.startswith("rubato_agent_prestart_open_total")]
        self.assertEqual(sum(opened), 1)
        # Its program is attached, unnamed, before anybody knows whose it is.
        program = node.start_in(answer, flood())
        program.expect("ops")
        node.kubelet.must(do="hold-pod-resources", on=False)
        tenant = node.wait_tenant("camera", attached, "has its name and its session")
        self.assertEqual(tenant["pod"], "camera")
        self.assertFalse(tenant["session_list"][0]["reattached"])
        node.wait_event("camera", "RealtimeAdmitted")
        program.end_input()
        self.finish(program)

    def test_without_a_scheduler_containers_start(self):
        node = self.node()
        node.start_agent()
        node.kubelet.must(do="wait", resource=RESOURCE, healthy=10, connected=True)
        answer = node.run_pod("batch", 2)
        self.assertEqual(node.metric('rubato_agent_prestart_open_total{reason="scheduler-away"}'), 1)
        program = node.start_in(answer, flood())
        program.expect("ops")
        node.start_scheduler()
        node.wait_ready()
        node.wait_tenant("batch", attached, "has attached")
        program.end_input()
        self.finish(program)

    def test_the_watch_breaks_and_expires(self):
        node = self.running()
        node.run_pod("camera", 3, **{"class": "realtime", "period": "100ms"})
        node.api.must(op="drop-watches", mid_line=True)
        node.annotate("camera", period="50ms")
        node.wait_tenant("camera", lambda t: t["period_ns"] == 50_000_000, "has the period")
        node.api.must(op="expire-watches")
        node.annotate("camera", period="40ms")
        node.wait_tenant("camera", lambda t: t["period_ns"] == 40_000_000, "has the period")
        self.assertGreaterEqual(node.metric("rubato_pod_watch_expired_total"), 1)


class Configuration(AgentTest):
    def test_a_bad_file_changes_nothing_and_says_so(self):
        node = self.running()
        registrations = node.kubelet.must(do="state", resource=RESOURCE)["registrations"]
        node.write_config("slotsPerGpus: 4")
        node.wait_metric("rubato_agent_config_valid", 0)
        self.assertIn("unknown key 'slotsPerGpus'; the nearest is slotsPerGpu", node.agent.errors)
        node.write_config("slotsPerGpu: 4")
        node.wait_metric("rubato_agent_config_valid", 1)
        self.assertEqual(node.metric("rubato_agent_config_restart_pending"), 1)
        self.assertEqual(
            node.kubelet.must(do="state", resource=RESOURCE)["registrations"], registrations)

    def test_a_bad_file_at_the_start_ends_it_with_a_line(self):
        node = self.node()
        node.write_config("gpu: {sorce: auto}")
        checked = subprocess.run([AGENT, "check-config", "--config", node.config_path],
                                 env=node.world.env, text=True, capture_output=True,
                                 timeout=rig.DEADLINE_S)
        self.assertEqual(checked.returncode, 2)
        self.assertRegex(checked.stderr, r"agent\.yaml:\d+: ")

    def test_what_is_missing_is_said(self):
        node = self.node()
        node.kubelet.must(do="stop")
        node.start_agent()
        rig.wait_until(lambda: node.metric("rubato_gpu_library_up") == 1, "the GPUs are known")
        status, body = node.get("/readyz")
        self.assertEqual(status, 503)
        self.assertIn("- kubelet: ", body)
        self.assertIn("- scheduler: ", body)
        self.assertEqual(node.get("/healthz"), (200, "alive\n"))


class Labels(AgentTest):
    def test_the_node_says_what_it_offers(self):
        node = self.node(flags=["--set", "nodeLabels.enabled=true"])
        node.api.must(op="put-node", name="node-1")
        node.start()
        for label, value in (("gpu-count", "1"), ("slots-per-gpu", "10"), ("mode", "timeslice"),
                             ("gpu-model", "Rubato-Software-GPU")):
            node.api.must(op="wait-label", name="node-1", label=f"rubato.dev/{label}", value=value,
                          timeout=rig.DEADLINE_S)


class CensusTest(AgentTest):
    def test_a_program_past_the_shim_is_counted(self):
        node = self.running("hostPID: {enabled: true}")
        program = node.world.start(flood())
        program.expect("ops")

        def suspected():
            return [name for name, value in node.metrics().items()
                    if name.startswith("rubato_bypass_suspected{") and value == 1]

        names = rig.wait_until(suspected, "the program is suspected")
        self.assertEqual(len(names), 1)
        program.end_input()
        self.finish(program)


if __name__ == "__main__":
    rig.main()
