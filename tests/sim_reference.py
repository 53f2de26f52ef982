"""A small flow simulator, written apart from the library's, to check it.

Reads the operations of all ranks, as `weightsync plan --ops RANK` prints them,
one JSON object a line, with the rank added as "rank"; prints the seconds that
the transfer takes on the default topology: 8-GPU hosts, one port of 50 GB/s
each way per GPU, NVLink at 450 GB/s, 20 us per message, packing at 1.34 TB/s,
source ranks first and destination ranks on hosts of their own.

    python3 tests/sim_reference.py SOURCE_RANKS DESTINATION_RANKS < ops.jsonl

where a list of ranks is FIRST:END. Floating point throughout.
"""

import heapq
import json
import sys
from collections import defaultdict

NIC, NVLINK, PACK, LATENCY, GPUS = 50e9, 450e9, 1.34e12, 20e-6, 8


def span(text):
    first, end = text.split(":")
    return range(int(first), int(end))


def hosts(source, destination):
    where = {rank: i // GPUS for i, rank in enumerate(source)}
    free = -(-len(source) // GPUS)
    others = [r for r in destination if r not in where]
    where.update({rank: free + i // GPUS for i, rank in enumerate(others)})
    return where


def read(lines):
    """Flows {(from, to, step): bytes}, packed and unpacked bytes, locals."""
    flows, pack, unpack, local = (defaultdict(float) for _ in range(4))
    forwards = set()
    for line in lines:
        op = json.loads(line)
        rank, step = op["rank"], op["step"]
        if op["direction"] == "local":
            local[rank, step] += op["bytes"]
            continue
        if op["direction"] == "send":
            flows[rank, op["peer"], step] += op["bytes"]
            if op["stage"] > 0:
                forwards.add(rank)
        if op["staged"]:
            (pack if op["direction"] == "send" else unpack)[rank, step] += op["bytes"]
    return flows, pack, unpack, local, forwards


def fair(active, links, capacity):
    """Max-min fair rates: fill all flows alike until a link is full."""
    rate, left = {}, dict(capacity)
    open_flows = set(active)
    while open_flows:
        users = defaultdict(int)
        for f in open_flows:
            for link in links[f]:
                users[link] += 1
        share = min(left[link] / n for link, n in users.items())
        full = {link for link, n in users.items() if left[link] / n <= share * (1 + 1e-12)}
        fixed = {f for f in open_flows if any(link in full for link in links[f])}
        for f in fixed:
            rate[f] = share
            for link in links[f]:
                left[link] -= share
        open_flows -= fixed
    return rate


class Rank:
    """A rank: its steps, and device work that runs in order."""

    def __init__(self, rank, steps, pack, unpack, local, serial):
        self.serial = serial
        self.tasks = []
        order = []
        for s in range(steps):
            if serial:
                order += [("pack", s), ("unpack", s), ("local", s)]
                continue
            order += [("pack", 0)] if s == 0 else []
            order += [("pack", s + 1)] if s + 1 < steps else []
            order += [("unpack", s), ("local", s)]
        amounts = {"pack": pack, "unpack": unpack, "local": local}
        for kind, s in order:
            if amounts[kind].get((rank, s)):
                self.tasks.append((kind, s, amounts[kind][rank, s] / PACK))
        self.done = set()
        self.next = 0
        self.busy = False
        self.ready = 0
        self.exchanged = 0

    def has(self, kind, step):
        """True unless the rank still has to do this."""
        return step < 0 or not any(t[:2] == (kind, step) for t in self.tasks[self.next:])

    def may_start(self, kind, step):
        if kind == "pack":
            return self.exchanged >= (step if self.serial else step - 1)
        return kind == "local" or self.exchanged > step

    def may_come_to(self, step):
        behind = 1 if self.serial else 2
        return (
            self.has("pack", step)
            and self.has("unpack", step - behind)
            and self.exchanged >= step - behind + 1
        )


def simulate(lines, source, destination):
    flows, pack, unpack, local, forwards = read(lines)
    host = hosts(source, destination)
    steps = 1 + max((s for *_, s in flows), default=0)
    ranks = {
        r: Rank(r, steps, pack, unpack, local, r in forwards)
        for r in {f[0] for f in flows} | {f[1] for f in flows} | {r for r, _ in local}
    }
    links, capacity = {}, {}
    for a, b, s in flows:
        kind = "nvlink" if host[a] == host[b] else "nic"
        links[a, b, s] = ((kind, "out", a), (kind, "in", b))
        for link in links[a, b, s]:
            capacity[link] = NVLINK if kind == "nvlink" else NIC
    pending, count = defaultdict(list), defaultdict(int)
    for f in flows:
        for end in f[:2]:
            pending[end, f[2]].append(f)
            count[end, f[2]] += 1
    came = defaultdict(int)
    timers, active, now = [], {}, 0.0

    def advance(r):
        rank = ranks[r]
        while True:
            while rank.exchanged < rank.ready and count[r, rank.exchanged] == 0:
                rank.exchanged += 1
            if not rank.busy and rank.next < len(rank.tasks):
                kind, step, time = rank.tasks[rank.next]
                if rank.may_start(kind, step):
                    rank.busy = True
                    heapq.heappush(timers, (now + time, 0, (r,)))
            if rank.ready == steps or not rank.may_come_to(rank.ready):
                return
            for f in pending[r, rank.ready]:
                came[f] += 1
                if came[f] == 2:
                    heapq.heappush(timers, (now + LATENCY, 1, f))
            rank.ready += 1

    for r in ranks:
        advance(r)
    rate = {}
    while timers or active:
        ends = min((left / rate[f] for f, left in active.items()), default=float("inf"))
        at = min(now + ends, timers[0][0] if timers else float("inf"))
        for f in active:
            active[f] -= rate[f] * (at - now)
        now = at
        ended = [f for f, left in active.items() if left <= 1e-3]
        for f in ended:
            del active[f]
            for end in f[:2]:
                count[end, f[2]] -= 1
        for f in ended:
            for end in f[:2]:
                advance(end)
        while timers and timers[0][0] <= now:
            _, is_flow, what = heapq.heappop(timers)
            if is_flow:
                active[what] = flows[what]
                continue
            rank = ranks[what[0]]
            rank.next += 1
            rank.busy = False
            advance(what[0])
        rate = fair(active, links, capacity)
    assert all(n == 0 for n in count.values()), "something never ended"
    return now


if __name__ == "__main__":
    print(simulate(sys.stdin, span(sys.argv[1]), span(sys.argv[2])))
