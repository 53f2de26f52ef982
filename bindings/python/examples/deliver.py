"""Rank 0 trains, rank 1 serves; both are threads here. Three versions."""

import threading

import numpy as np
import weightsync as ws


def layout(rank):
    return ws.Layout.from_json({
        "weightsync_layout": 1, "ranks": {"first": rank, "count": 1},
        "meshes": {"m": [["tp", 1]]},
        "tensors": [{"name": "w", "shape": [4, 6], "dtype": "f32"}],
    })


def run(transport, side, array):
    transport.meet(greetings)
    with transport, ws.Session(transport) as session:
        session.bind({"w": array}, side=side)
        request = session.request(session.load(plan))
        for version in (1, 2, 3):
            if side == "source":
                array[...] = version * np.arange(1, 25).reshape(4, 6)
            request.submit(version, verify=True)
            request.wait()
            assert request.outcome().copy is ws.Outcome.COMPLETE
        transport.finalize()


plan = ws.Plan(layout(0), layout(1))
weights, served = np.zeros((4, 6), "f4"), np.zeros((4, 6), "f4")
transports = [ws.Transport.loopback(rank, 2) for rank in range(2)]
greetings = [transport.greeting() for transport in transports]
trainer = threading.Thread(target=run, args=(transports[0], "source", weights))
trainer.start()
run(transports[1], "destination", served)
trainer.join()
assert (served == weights).all() and served[0, 0] == 3
print("three versions delivered")
