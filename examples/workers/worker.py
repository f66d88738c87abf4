"""A remote worker for crossover, with nothing but Python's standard library (3.9 or later).

    CROSSOVER_URL=http://127.0.0.1:7080 CROSSOVER_TOKEN=… python3 worker.py remote.mail

It takes work of one group, runs so much at once, keeps what it runs with heartbeats, and reports in batches. SIGTERM or
Ctrl-C: it takes nothing more, lets what runs end, reports it, and ends.
"""
import http.client, json, os, queue, signal, socket, sys, threading, time, urllib.error, urllib.request
from concurrent.futures import ThreadPoolExecutor

URL = os.environ.get("CROSSOVER_URL", "http://127.0.0.1:7080").rstrip("/")
SLOTS = int(os.environ.get("CROSSOVER_SLOTS", "8"))
LEASE_MS = int(os.environ.get("CROSSOVER_LEASE_MS", "30000"))  # a dead worker's work runs again after this
WAIT_MS = int(os.environ.get("CROSSOVER_WAIT_MS", "5000"))  # an idle poll; a shutdown waits for it
GROUP = sys.argv[1] if len(sys.argv) > 1 else "remote.mail"
NAME = f"{socket.gethostname()}-{os.getpid()}"


class Permanent(Exception):
    """Another attempt would fail again."""


def mail(payload, cancelled):
    """Yours: does the work, and looks now and then whether somebody wants it to end. The id of the item is the
    idempotency key: an attempt whose worker died may have had its effect."""
    if "to" not in payload:
        raise Permanent("to: is missing")
    if cancelled.wait(payload.get("ms", 0) / 1000):
        raise RuntimeError("stopped, as somebody asked")
    return {"sent_to": payload["to"]}


HANDLERS = {"mail": mail}
TROUBLE = (OSError, http.client.HTTPException, ValueError)  # ask again

stop = threading.Event()
running = {}  # (id, fence): (item, cancelled); what is in here is kept with heartbeats
ended = queue.Queue()  # (what, item, more) for the reporter
room = threading.Semaphore(SLOTS)


def call(what, body):
    headers = {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ.get("CROSSOVER_TOKEN", "none")}
    data = json.dumps({"worker": NAME, **body}).encode()
    request = urllib.request.Request(f"{URL}/v1/groups/{GROUP}/{what}", data, headers)
    with urllib.request.urlopen(request, timeout=WAIT_MS / 1000 + 15) as answer:
        return json.load(answer)["items"]


def run(item, cancelled):
    try:
        handler = HANDLERS.get(item["kind"])
        if handler is None:
            raise RuntimeError(f"no handler for kind {item['kind']!r} here; there are {', '.join(HANDLERS)}")
        result = handler(item["payload"], cancelled)
        try:
            json.dumps(result, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise Permanent(f"its result is no JSON: {error}")
        ended.put(("complete", item, {"result": result}))
    except Permanent as error:
        ended.put(("fail", item, {"error": str(error), "permanent": True}))
    except Exception as error:
        ended.put(("fail", item, {"error": f"{type(error).__name__}: {error}"}))


def beat():
    while True:
        time.sleep(min([item["lease_ms"] for item, _ in list(running.values())] or [LEASE_MS]) / 3000)
        items = [{"id": id, "fence": fence} for id, fence in list(running)]
        try:
            for answer in call("heartbeat", {"items": items[:1000]}) if items else []:
                held = running.get((answer["id"], answer["fence"]))
                if answer["answer"] != "held" and held:
                    held[1].set()  # cancelled, or lost: then whatever comes of it is refused
        except TROUBLE as error:
            print(f"heartbeats do not get through, the leases run on: {error}", file=sys.stderr)


def tell(what, items):
    """Until it is taken: repeating it is safe, and heartbeats go on meanwhile. What can't be stored has failed."""
    while items:
        try:
            for answer in call(what, {"items": items}):
                if answer["answer"] == "refused" and what == "complete":
                    tell("fail", [{"id": answer["id"], "fence": answer["fence"], "error": answer["error"], "permanent": True}])
                elif answer["answer"] != "taken":
                    print(f"{answer['id']}: {what} was not taken: {answer['answer']}", file=sys.stderr)
            return
        except TROUBLE as error:
            if isinstance(error, urllib.error.HTTPError) and error.code in (400, 413, 422):
                if len(items) > 1:
                    return [tell(what, [item]) for item in items]
                if what == "complete":
                    refused = {"error": f"its result was refused: {error}", "permanent": True}
                    return tell("fail", [{"id": items[0]["id"], "fence": items[0]["fence"], **refused}])
            print(f"{len(items)} ends can't be reported yet: {error}", file=sys.stderr)
            time.sleep(1)


def report():
    while True:
        batch = [ended.get()]
        while len(batch) < 100 and not ended.empty():
            batch.append(ended.get())
        for what in ("complete", "fail"):
            tell(what, [{"id": i["id"], "fence": i["fence"], **more} for w, i, more in batch if w == what])
        for _, item, _ in batch:
            running.pop((item["id"], item["fence"]), None)
            room.release()


def main():
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: stop.set())
    for part in (beat, report):
        threading.Thread(target=part, daemon=True).start()
    with ThreadPoolExecutor(SLOTS) as pool:
        while not stop.is_set():
            if not room.acquire(timeout=0.2):
                continue
            free = 1
            while room.acquire(blocking=False):
                free += 1
            items = []
            try:
                items = call("dequeue", {"max": min(free, 1000), "wait_ms": WAIT_MS, "lease_ms": LEASE_MS})
            except TROUBLE as error:
                print(f"no work can be had: {error}", file=sys.stderr)
                stop.wait(1)
            for item in items:
                at = (item["id"], item["fence"])
                running[at] = (item, threading.Event())
                pool.submit(run, *running[at])
            if free > len(items):
                room.release(free - len(items))
    while running:  # all have run; their ends are on the way
        time.sleep(0.05)


main()
