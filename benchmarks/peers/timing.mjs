// What the peers in JavaScript share: batches of 500 from four producers at once, and times.
export const BATCH = 500;

export function batches(count) {
  return Array.from({ length: Math.ceil(count / BATCH) }, (_, n) => Math.min(BATCH, count - n * BATCH));
}

export async function inParallel(sizes, submit, producers = 4) {
  const rest = [...sizes];
  await Promise.all(
    Array.from({ length: producers }, async () => {
      while (rest.length) await submit(rest.pop());
    }),
  );
}

export function seconds() {
  const start = process.hrtime.bigint();
  return () => Number(process.hrtime.bigint() - start) / 1e9;
}

export function report(enqueue, processed) {
  console.log(JSON.stringify({ enqueue, process: processed }));
}
