"""A process that speaks the attach protocol (proto/abi/handshake.h) by hand, well or badly."""

import array
import mmap
import os
import socket
import struct
import time

MAGIC = 0x4D425552
MAJOR = 1
(HELLO, WELCOME, OPEN_DEVICE, DEVICE_OPENED, SLOT_MAPPED, SESSION_LIVE, GET_PEERS,
 PEERS) = range(1, 9)
OK, VERSION_MISMATCH, CLOCK_MISMATCH, NOT_ALLOWED, UNKNOWN_DEVICE, FULL, BAD_MESSAGE, BAD_SLOT = (
    range(8))
HEADER = struct.Struct("<IHHHHI")
SLOT_BYTES = 0x11000
UUID = bytes(range(16))


def header(kind, size, major=MAJOR, minor=0, magic=MAGIC, status=OK):
    return HEADER.pack(magic, kind, size, major, minor, status)


def hello(major=MAJOR, minor=0, clock_ns=None, flags=0, magic=MAGIC, build=0, vendor=1):
    clock_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC) if clock_ns is None else clock_ns
    body = struct.pack("<QIIII64s", clock_ns, vendor, flags, os.getpid(), build, b"attach_peer")
    return header(HELLO, 104, major, minor, magic) + body


def open_device(uuid=UUID, sm_count=132):
    return header(OPEN_DEVICE, 112) + struct.pack("<16sIIQ64s", uuid, sm_count, 0, 1 << 37,
                                                  b"a device")


def slot_mapped(device):
    return header(SLOT_MAPPED, 24) + struct.pack("<II", device, 0)


def get_peers(device, first=0):
    return header(GET_PEERS, 24) + struct.pack("<II", device, first)


class Peer:
    """One connection."""

    def __init__(self, path, deadline_s):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(deadline_s)
        self.fds = []
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise

    def close(self):
        self.socket.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def send(self, packet, fds=()):
        """False if the other side has ended the connection."""
        control = []
        if fds:
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        try:
            self.socket.sendmsg([packet], control)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def receive(self):
        """(packet, fds); an empty packet at the end of the connection."""
        try:
            packet, control, _, _ = self.socket.recvmsg(2048, socket.CMSG_SPACE(64 * 4))
        except ConnectionResetError:
            return b"", []
        fds = array.array("i")
        for level, kind, data in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[:len(data) - len(data) % fds.itemsize])
        self.fds += list(fds)
        return packet, list(fds)

    def ask(self, packet, fds=()):
        self.send(packet, fds)
        return self.receive()

    def status_of(self, packet, fds=()):
        """The status of the answer; None if there was none."""
        answer, _ = self.ask(packet, fds)
        return HEADER.unpack_from(answer)[5] if len(answer) >= HEADER.size else None

    def ended(self):
        """True once the other side has ended the connection."""
        while True:
            packet, _ = self.receive()
            if not packet:
                return True

    def attach(self, **hello_fields):
        """The whole handshake: the session's device index and its writable slot."""
        answer, _ = self.ask(hello(**hello_fields))
        assert HEADER.unpack_from(answer)[5] == OK, answer
        answer, fds = self.ask(open_device())
        assert HEADER.unpack_from(answer)[5] == OK, answer
        assert len(fds) == 3, fds
        device = struct.unpack_from("<I", answer, HEADER.size)[0]
        slot = mmap.mmap(fds[0], SLOT_BYTES)
        answer, _ = self.ask(slot_mapped(device))
        assert HEADER.unpack_from(answer)[5] == OK, answer
        return device, slot
