// pg-boss with the batches that its documentation gives for throughput.
import { PgBoss } from "pg-boss";
import { batches, inParallel, report, seconds } from "./timing.mjs";

const [connectionString, count] = process.argv.slice(2);
const boss = new PgBoss({ connectionString, max: 10 });
boss.on("error", (error) => console.error(error));
await boss.start();
await boss.createQueue("bench");
const enqueueing = seconds();
await inParallel(batches(+count), (size) =>
  boss.insert("bench", Array.from({ length: size }, (_, n) => ({ data: { n } }))),
);
const enqueue = count / enqueueing();
let done = 0;
const finished = new Promise((resolve) => {
  globalThis.finish = resolve;
});
const processing = seconds();
const options = { batchSize: 100, localConcurrency: 4, burstWhenBatchFull: true, pollingIntervalSeconds: 0.5 };
await boss.work("bench", options, async (jobs) => {
  done += jobs.length;
  if (done >= +count) finish();
});
await finished;
const duration = processing();
await boss.stop({ graceful: true });
report(enqueue, count / duration);
process.exit(0);
