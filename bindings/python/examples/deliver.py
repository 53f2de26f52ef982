"""Rank 0 trains, 1 and 2 serve; each is a process: deliver.py RANK HOST:PORT"""

import sys

import numpy as np
import weightsync as ws

rank, address = int(sys.argv[1]), sys.argv[2]
w = {"name": "w", "shape": [1024, 512], "dtype": "bf16"}
trainer = {"weightsync_layout": 1, "ranks": {"first": 0, "count": 1}, "tensors": [w]}
servers = {"weightsync_layout": 1, "ranks": {"first": 1, "count": 2}, "meshes": {"m": [["tp", 2]]},
           "tensors": [{**w, "cuts": [{"dim": 0, "axes": ["tp"]}]}]}
plan = ws.Plan(ws.Layout.from_json(trainer), ws.Layout.from_json(servers))
(buffer,) = plan.buffers(rank)
weights = np.zeros(buffer.bytes, np.uint8)

with ws.Transport.shm(rank, 3) as transport:
    transport.rendezvous(address, "a shared secret")
    with ws.Session(transport) as session:
        session.bind({buffer.name: weights}, side=buffer.side)
        request = session.request(session.load(plan))
        for version in (1, 2, 3):
            if rank == 0:
                weights[:] = version  # Train.
            request.submit(version)
            request.wait()
            assert request.outcome().copy is ws.Outcome.COMPLETE
            print(f"rank {rank} has version {weights[-1]}")  # Serve.
        transport.finalize()
