"""Peers that lie, stay silent, ask without end or write nonsense harm nobody but themselves."""

import os
import random
import struct

import attach_peer
import rig
from attach_peer import Peer


class Hostile(rig.RigTest):
    def setUp(self):
        self.world = self.rig(dilation=1)
        self.scheduler = self.world.up()
        self.keeper = self.world.best_effort("bad", ["sh", "-c", "echo S $RUBATO_SOCKET; read x"])
        self.path = self.keeper.expect("S ").split()[1]

    def tearDown(self):
        """After each attack: the same scheduler serves an honest program."""
        world = self.world
        self.assertEqual(world.scheduler()["pid"], self.scheduler["pid"], world.scheduler_log())
        program = world.best_effort("good", [rig.TENANT, "flood", "--ops", 16])
        self.finish(program)
        self.assertEqual(program.lines[-1].split()[:2], ["done", "16"])

    def peer(self):
        peer = Peer(self.path, rig.DEADLINE_S)
        self.addCleanup(peer.close)
        return peer

    def fds(self):
        return len(os.listdir(f"/proc/{self.scheduler['pid']}/fd"))

    def test_an_honest_peer_by_hand(self):
        peer = self.peer()
        peer.attach()
        self.assertEqual(self.world.tenant("bad")["sessions"], 1)
        peer.close()
        rig.wait_until(lambda: self.world.tenant("bad")["sessions"] == 0, "the session is gone")

    def test_bad_first_packets_end_the_connection(self):
        good = attach_peer.hello()
        packets = {
            "nonsense": os.urandom(104),
            "one byte": b"x",
            "too short": good[:-1],
            "too long": good + b"\0",
            "huge": good + bytes(60_000),
            "wrong magic": attach_peer.hello(magic=1),
            "another message": attach_peer.slot_mapped(0),
            "no such message": attach_peer.header(99, 24) + bytes(8),
            "no such vendor": attach_peer.hello(vendor=77),
        }
        for name, packet in packets.items():
            with self.subTest(name):
                peer = self.peer()
                peer.send(packet)
                answer, fds = peer.receive()
                if answer:
                    self.assertNotEqual(attach_peer.HEADER.unpack_from(answer)[5], attach_peer.OK)
                    self.assertTrue(peer.ended())
                self.assertEqual(fds, [])

    def test_another_major_is_answered_and_counted(self):
        before = self.world.status()["sessions_detached"].get("version", 0)
        peer = self.peer()
        answer, _ = peer.ask(attach_peer.hello(major=2))
        fields = attach_peer.HEADER.unpack_from(answer)
        self.assertEqual(fields[5], attach_peer.VERSION_MISMATCH)
        self.assertEqual(fields[3], attach_peer.MAJOR)
        self.assertTrue(peer.ended())
        self.assertEqual(self.world.status()["sessions_detached"]["version"], before + 1)

    def test_another_clock_is_refused(self):
        now = rig.time.clock_gettime_ns(rig.time.CLOCK_MONOTONIC)
        for clock in (0, now + 10**12, 2**64 - 1):
            with self.subTest(clock=clock):
                peer = self.peer()
                self.assertEqual(peer.status_of(attach_peer.hello(clock_ns=clock)),
                                 attach_peer.CLOCK_MISMATCH)
                self.assertTrue(peer.ended())

    def test_steps_out_of_order(self):
        for name, steps in {
                "device first": [attach_peer.open_device()],
                "slot first": [attach_peer.hello(), attach_peer.slot_mapped(0)],
                "peers of no device": [attach_peer.hello(), attach_peer.get_peers(1 << 31)],
                "hello twice": [attach_peer.hello(), attach_peer.hello()],
                "no such slot": [attach_peer.hello(), attach_peer.open_device(),
                                 attach_peer.slot_mapped(12345)],
        }.items():
            with self.subTest(name):
                peer = self.peer()
                status = None
                for step in steps:
                    status = peer.status_of(step)
                self.assertNotEqual(status, attach_peer.OK)

    def test_silent_and_half_way_peers_block_nobody(self):
        for step in range(4):
            peer = self.peer()
            packets = [attach_peer.hello(), attach_peer.open_device(), attach_peer.slot_mapped(0)]
            for packet in packets[:step]:
                peer.ask(packet)
        # They stay connected: tearDown's honest program is served beside them.

    def test_descriptors_that_nobody_asked_for_are_closed(self):
        before = self.fds()
        with open("/dev/null", "rb") as null:
            for count in (1, 3, 64, 200):
                peer = self.peer()
                peer.send(attach_peer.hello(), [null.fileno()] * count)
                peer.receive()
                peer.close()
        rig.wait_until(lambda: self.fds() <= before, "the descriptors are closed")

    def test_slots_that_are_none(self):
        made = []
        memfd = os.memfd_create("slot", os.MFD_ALLOW_SEALING)
        os.ftruncate(memfd, attach_peer.SLOT_BYTES)
        made.append(memfd)  # The right size, unsealed.
        short = os.memfd_create("slot", os.MFD_ALLOW_SEALING)
        os.ftruncate(short, 4096)
        made.append(short)
        reader, writer = os.pipe()
        made += [reader, writer]
        made.append(os.open("/dev/zero", os.O_RDWR))
        for fd in made:
            with self.subTest(target=os.readlink(f"/proc/self/fd/{fd}")):
                peer = self.peer()
                self.assertEqual(peer.status_of(attach_peer.hello(flags=1)), attach_peer.OK)
                status = peer.status_of(attach_peer.open_device(), [fd])
                self.assertEqual(status, attach_peer.BAD_SLOT)
        for fd in made:
            os.close(fd)

    def test_a_slot_full_of_nonsense(self):
        chance = random.Random(20_240_607)
        peers = []
        for fill in (b"\xff" * 8, b"\0\0\0\0\0\0\0\x80", None):
            peer = self.peer()
            _, slot = peer.attach()
            body = (chance.randbytes(attach_peer.SLOT_BYTES - 64) if fill is None
                    else fill * ((attach_peer.SLOT_BYTES - 64) // 8))
            slot[64:] = body
            # Not "detached": that would end the session before the rest is read.
            slot[64:68] = b"\0\0\0\0"
            peers.append((peer, slot))
        # Long enough for the scheduler to have read them: it says so by reading an honest one.
        program = self.world.best_effort("beside", [rig.TENANT, "flood"])
        program.expect("ops")

        def counted():
            device = self.world.tenant_device("beside")
            return device is not None and device["ops_total"] >= 4

        rig.wait_until(counted, "the scheduler reads an honest slot beside them")
        self.assertGreater(self.world.metrics()["rubato_sessions_attached_total"], 3)
        program.end_input()
        self.finish(program)
        for _, slot in peers:
            slot.close()

    def test_a_flood_of_connections(self):
        peers = []
        refused = 0
        for _ in range(600):
            try:
                peer = Peer(self.path, rig.DEADLINE_S)
            except (BlockingIOError, ConnectionRefusedError):
                refused += 1
                continue
            self.addCleanup(peer.close)
            peers.append(peer)
        # Some may be turned away; the other tenant's are served while all of these stand.
        self.assertTrue(peers)

    def test_a_full_directory_says_so(self):
        peers = []
        status = attach_peer.OK
        for _ in range(140):
            peer = self.peer()
            if peer.status_of(attach_peer.hello()) != attach_peer.OK:
                break
            answer, fds = peer.ask(attach_peer.open_device())
            if not answer:
                break
            status = attach_peer.HEADER.unpack_from(answer)[5]
            if status != attach_peer.OK:
                break
            device = struct.unpack_from("<I", answer, attach_peer.HEADER.size)[0]
            self.assertEqual(len(fds), 3)
            self.assertEqual(peer.status_of(attach_peer.slot_mapped(device)), attach_peer.OK)
            peers.append(peer)
        self.assertLess(len(peers), 140)
        for peer in peers:
            peer.close()
        rig.wait_until(lambda: self.world.tenant("bad")["sessions"] == 0, "the entries are free")

    def test_requests_without_end_are_held_back(self):
        peer = self.peer()
        device, slot = peer.attach()
        self.addCleanup(slot.close)
        peer.socket.setblocking(False)
        sent = 0
        try:
            for _ in range(100_000):
                if not peer.send(attach_peer.get_peers(device)):
                    break
                sent += 1
        except BlockingIOError:
            pass
        # The honest program of tearDown is served all the same.
        self.assertGreater(sent, 0)


class Versions(rig.RigTest):
    def test_two_builds_of_the_shim_side_by_side(self):
        world = self.rig(dilation=1)
        program = world.best_effort("mixed", [
            "sh", "-c", f"exec 3<&0; echo S $RUBATO_SOCKET; exec {rig.TENANT} flood <&3"])
        path = program.expect("S ").split()[1]
        program.expect("ops")
        # A newer minor with another build beside the real one.
        peer = Peer(path, rig.DEADLINE_S)
        self.addCleanup(peer.close)
        peer.attach(minor=7, build=0x1234)
        sessions = world.tenant("mixed")["session_list"]
        self.assertEqual(len(sessions), 2)
        builds = {session["program"]: session["shim_build"] for session in sessions}
        self.assertEqual(builds["attach_peer"], 0x1234)
        self.assertNotIn(builds["rubato-test-tenant"], (0, 0x1234))
        rig.ops_after(program, rig.now_ns())
        program.end_input()
        self.finish(program)

    def test_a_shim_whose_scheduler_is_of_another_major_runs_detached(self):
        world = self.rig(dilation=1)
        argv = [rig.TENANT, "workload", "--rounds", 8]
        bare = self.finish(world.start(argv))
        preload = world.run([], ["sh", "-c", "echo P $LD_PRELOAD"])
        shims = preload.expect("P ").split()[1]
        path = os.path.join(world.dir, "other.sock")
        with attach_peer.socket.socket(attach_peer.socket.AF_UNIX,
                                       attach_peer.socket.SOCK_SEQPACKET) as listener:
            listener.bind(path)
            listener.listen()
            listener.settimeout(rig.DEADLINE_S)
            program = world.start(argv, dict(world.env, LD_PRELOAD=shims, RUBATO_SOCKET=path))
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(rig.DEADLINE_S)
                greeting = connection.recv(2048)
                self.assertEqual(len(greeting), 104)
                self.assertEqual(attach_peer.HEADER.unpack_from(greeting)[1], attach_peer.HELLO)
                answer = attach_peer.header(attach_peer.WELCOME, 168, major=2,
                                            status=attach_peer.VERSION_MISMATCH)
                connection.send(answer + bytes(152))
                # Nothing more is said on this connection, and the program runs to its end.
                self.assertEqual(connection.recv(2048), b"")
            self.assertEqual(self.finish(program), bare)


if __name__ == "__main__":
    rig.main()
