"""PgQue by its client, where the schema of PgQue is installed: batches between two ticks of its ticker."""

import sys
import time

import pgque
from timing import BATCH, report

with pgque.connect(sys.argv[1]) as client:
    count = int(sys.argv[2])
    client.create_queue("bench")
    client.subscribe("bench", "worker")
    client.conn.commit()
    start_time = time.perf_counter()
    for _ in range(count // BATCH):
        client.send_batch("bench", "noop", [{"n": n} for n in range(BATCH)])
        client.conn.commit()
    enqueue = count / (time.perf_counter() - start_time)
    client.force_next_tick("bench")
    client.ticker("bench")
    client.conn.commit()
    done, start_time = 0, time.perf_counter()
    while done < count:
        messages = client.receive("bench", "worker")
        done += len(messages)
        if messages:
            client.ack(messages[0].batch_id)
        client.conn.commit()
    report(enqueue, count / (time.perf_counter() - start_time))
