// A remote worker for crossover, with nothing but Node. Only types that can be left out, so that Node runs it as it is:
//
//     CROSSOVER_URL=http://127.0.0.1:7080 CROSSOVER_TOKEN=… node worker.ts remote.mail      (22.18 or later)
//
// It takes work of one group, runs so much at once, keeps what it runs with heartbeats, and reports in batches. SIGTERM or
// Ctrl-C: it takes nothing more, lets what runs end, reports it, and ends.

declare const process: any;

interface Item { id: string; account: string; kind: string; payload: any; fence: string; attempt: number; lease_ms: number }
interface Answer { id: string; fence: string; answer: 'held' | 'cancel' | 'taken' | 'lost' | 'unknown' | 'refused'; error?: string }
type End = { what: 'complete' | 'fail'; item: Item; more: Record<string, unknown> };
type Handler = (payload: any, cancelled: AbortSignal) => Promise<unknown>;

const env = process.env as Record<string, string | undefined>;
const BASE = (env.CROSSOVER_URL ?? 'http://127.0.0.1:7080').replace(/\/$/, '');
const SLOTS = Number(env.CROSSOVER_SLOTS ?? 8);
const LEASE_MS = Number(env.CROSSOVER_LEASE_MS ?? 30_000); // a dead worker's work runs again after this
const WAIT_MS = Number(env.CROSSOVER_WAIT_MS ?? 5_000); // an idle poll; a shutdown waits for it
const GROUP: string = process.argv[2] ?? 'remote.mail';
const NAME = `node-${process.pid}`;

/** Another attempt would fail again. */
class Permanent extends Error {}

class Refused extends Error {
  readonly status: number;
  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

// Yours: does the work, and listens whether somebody wants it to end. The id of the item is the idempotency key: an attempt
// whose worker died may have had its effect.
const handlers: Record<string, Handler> = {
  async mail(payload, cancelled) {
    if (payload.to === undefined) throw new Permanent('to: is missing');
    await sleep(payload.ms ?? 0, cancelled);
    if (cancelled.aborted) throw new Error('stopped, as somebody asked');
    return { sent_to: payload.to };
  },
};

let stopping = false;
const running = new Map<string, { item: Item; abort: AbortController }>(); // by id and fence; kept with heartbeats
const at = ({ id, fence }: { id: string; fence: string }) => `${id} ${fence}`;
const ended: End[] = []; // for the reporter

function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((done) => {
    const timer = setTimeout(done, ms);
    signal?.addEventListener('abort', () => (clearTimeout(timer), done()));
  });
}

async function call<T>(what: string, body: object): Promise<T[]> {
  const answer = await fetch(`${BASE}/v1/groups/${GROUP}/${what}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', authorization: `Bearer ${env.CROSSOVER_TOKEN ?? 'none'}` },
    body: JSON.stringify({ worker: NAME, ...body }),
    signal: AbortSignal.timeout(WAIT_MS + 15_000),
  });
  if (!answer.ok) throw new Refused(answer.status, `${answer.status}: ${await answer.text()}`);
  return ((await answer.json()) as { items: T[] }).items;
}

async function run(item: Item, cancelled: AbortSignal): Promise<void> {
  try {
    const handler = handlers[item.kind];
    if (!handler) throw new Error(`no handler for kind ${item.kind} here; there are ${Object.keys(handlers).join(', ')}`);
    const result = (await handler(item.payload, cancelled)) ?? null;
    try {
      JSON.stringify(result);
    } catch (error) {
      throw new Permanent(`its result is no JSON: ${error}`);
    }
    ended.push({ what: 'complete', item, more: { result } });
  } catch (error) {
    const more = { error: String(error), permanent: error instanceof Permanent };
    ended.push({ what: 'fail', item, more });
  }
}

async function beat(): Promise<void> {
  for (;;) {
    await sleep(Math.min(LEASE_MS, ...[...running.values()].map(({ item }) => item.lease_ms)) / 3);
    const items = [...running.values()].slice(0, 1000).map(({ item }) => ({ id: item.id, fence: item.fence }));
    if (items.length === 0) continue;
    try {
      for (const answer of await call<Answer>('heartbeat', { items })) {
        if (answer.answer !== 'held') running.get(at(answer))?.abort.abort(); // cancelled, or lost: then whatever comes of it is refused
      }
    } catch (error) {
      console.error(`heartbeats do not get through, the leases run on: ${error}`);
    }
  }
}

// Until it is taken: repeating it is safe, and heartbeats go on meanwhile. What can't be stored has failed.
async function tell(what: 'complete' | 'fail', items: { id: string; fence: string }[]): Promise<void> {
  while (items.length > 0) {
    try {
      for (const { id, fence, answer, error } of await call<Answer>(what, { items })) {
        if (answer === 'refused' && what === 'complete') await tell('fail', [{ id, fence, error, permanent: true } as any]);
        else if (answer !== 'taken') console.error(`${id}: ${what} was not taken: ${answer}`);
      }
      return;
    } catch (error) {
      if (error instanceof Refused && [400, 413, 422].includes(error.status)) {
        if (items.length > 1) {
          for (const item of items) await tell(what, [item]);
          return;
        }
        const { id, fence } = items[0];
        if (what === 'complete') return tell('fail', [{ id, fence, error: `its result was refused: ${error}`, permanent: true } as any]);
      }
      console.error(`${items.length} ends can't be reported yet: ${error}`);
      await sleep(1_000);
    }
  }
}

async function report(): Promise<void> {
  for (;;) {
    const batch = ended.splice(0, 100);
    if (batch.length === 0) await sleep(20);
    for (const what of ['complete', 'fail'] as const) {
      await tell(what, batch.filter((end) => end.what === what).map(({ item, more }) => ({ id: item.id, fence: item.fence, ...more })));
    }
    batch.forEach(({ item }) => running.delete(at(item)));
  }
}

async function main(): Promise<void> {
  for (const sign of ['SIGTERM', 'SIGINT']) process.on(sign, () => (stopping = true));
  void beat();
  void report();
  while (!stopping) {
    const free = SLOTS - running.size;
    if (free === 0) { await sleep(20); continue; }
    try {
      const asked = { max: Math.min(free, 1000), wait_ms: WAIT_MS, lease_ms: LEASE_MS };
      for (const item of await call<Item>('dequeue', asked)) {
        const abort = new AbortController();
        running.set(at(item), { item, abort });
        void run(item, abort.signal);
      }
    } catch (error) {
      console.error(`no work can be had: ${error}`);
      await sleep(1_000);
    }
  }
  while (running.size > 0) await sleep(20); // until all have run and are reported
  process.exit(0);
}

main();
