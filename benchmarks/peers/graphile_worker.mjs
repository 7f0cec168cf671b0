// graphile-worker as its page on performance sets it up; with "single" without its batching.
import { makeWorkerUtils, run, Logger } from "graphile-worker";
import { batches, inParallel, report, seconds } from "./timing.mjs";

const [connectionString, count, variant] = process.argv.slice(2);
const batching = { localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 };
const preset = {
  worker: {
    connectionString,
    concurrentJobs: 24,
    maxPoolSize: 25,
    logger: new Logger(() => () => {}),
    ...(variant === "single" ? {} : batching),
  },
};
const utils = await makeWorkerUtils({ preset });
await utils.migrate();
const enqueueing = seconds();
await inParallel(batches(+count), (size) =>
  utils.addJobs(Array.from({ length: size }, (_, n) => ({ identifier: "noop", payload: { n } }))),
);
const enqueue = count / enqueueing();
let done = 0;
let processing;
const finished = new Promise((resolve) => {
  globalThis.finish = resolve;
});
const runner = await run({
  preset,
  noHandleSignals: true,
  taskList: {
    noop: async () => {
      processing ??= seconds();
      if (++done === +count) finish();
    },
  },
});
await finished;
// Completions are written by then, or in the batch that stopping waits for.
await runner.stop();
report(enqueue, count / processing());
await utils.release();
process.exit(0);
