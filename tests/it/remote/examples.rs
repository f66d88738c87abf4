//! The example workers, run for real: in Python with nothing but its library, in TypeScript with nothing but Node.

use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::OnceCell;

use super::*;
use crate::servers;

/// A worker as an operator starts it.
struct Example(Process);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Language {
    Python,
    TypeScript,
}

impl Example {
    async fn start(language: Language, node: &Node, set: &[(&str, &str)]) -> Self {
        let program = match language {
            Language::Python => example("worker.py"),
            Language::TypeScript => compiled().await,
        };
        Self::of(language, program, node, set)
    }

    fn of(language: Language, program: PathBuf, node: &Node, set: &[(&str, &str)]) -> Self {
        let mut command = Command::new(match language {
            Language::Python => "python3",
            Language::TypeScript => "node",
        });
        command.arg(program);
        command.arg(GROUP).env("CROSSOVER_URL", &node.base).env("CROSSOVER_WAIT_MS", "500").env("CROSSOVER_SLOTS", "4");
        command.envs(set.iter().copied()).stdin(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn terminate(&self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    async fn ended(&mut self) -> bool {
        until("the worker has ended", async || self.0.try_wait().unwrap()).await.success()
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/workers").join(name)
}

/// The worker in TypeScript without its types, which are checked; newer Nodes than the oldest that Unleash runs on leave them out
/// themselves.
async fn compiled() -> PathBuf {
    static COMPILED: OnceCell<PathBuf> = OnceCell::const_new();
    let compile = || async { tokio::task::spawn_blocking(|| compile(&example("worker.ts"))).await.unwrap() };
    COMPILED.get_or_init(compile).await.clone()
}

fn compile(source: &Path) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/remote/typescript");
    let cache = servers::cache_dir().join("typescript-5.9.3");
    let tsc = cache.join("node_modules/typescript/bin/tsc");
    if !tsc.is_file() {
        // Another process may do the same: whoever is first has made the place.
        let scratch = servers::cache_dir().join(format!("typescript-{}", std::process::id()));
        std::fs::create_dir_all(&scratch).unwrap();
        for name in ["package.json", "package-lock.json"] {
            std::fs::copy(tests.join(name), scratch.join(name)).unwrap();
        }
        let quiet = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"];
        assert!(Command::new("npm").args(quiet).current_dir(&scratch).status().unwrap().success());
        if std::fs::rename(&scratch, &cache).is_err() {
            std::fs::remove_dir_all(&scratch).unwrap();
        }
    }
    let out = tempfile::tempdir().unwrap().keep();
    let strict =
        "--strict --erasableSyntaxOnly --target es2022 --module es2022 --moduleResolution bundler --lib es2022,dom";
    let mut command = Command::new("node");
    command.arg(&tsc).args(strict.split(' ')).arg("--outDir").arg(&out).arg(source);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    out.join("worker.js")
}

/// The example with a handler whose results are none that JSON has words for, as `odd` in the payload says.
async fn with_odd_results(language: Language) -> PathBuf {
    let (name, returns, odd) = match language {
        Language::Python => (
            "worker.py",
            "    return {\"sent_to\": payload[\"to\"]}\n",
            "    odd = {\"set\": {1, 2}, \"nan\": float(\"nan\"), \"bytes\": b\"x\"}\n    \
             return odd[payload[\"odd\"]] if \"odd\" in payload else {\"sent_to\": payload[\"to\"]}\n",
        ),
        Language::TypeScript => (
            "worker.ts",
            "    return { sent_to: payload.to };\n",
            "    const circle: any = {};\n    circle.circle = circle;\n    const odd: any = { big: 10n, circle };\n    \
             return payload.odd ? odd[payload.odd] : { sent_to: payload.to };\n",
        ),
    };
    let text = std::fs::read_to_string(example(name)).unwrap();
    assert!(text.contains(returns), "{name} has another handler now");
    let source = tempfile::tempdir().unwrap().keep().join(name);
    std::fs::write(&source, text.replace(returns, odd)).unwrap();
    match language {
        Language::Python => source,
        Language::TypeScript => tokio::task::spawn_blocking(move || compile(&source)).await.unwrap(),
    }
}

async fn fails_for_good_what_is_no_json_and_goes_on(language: Language, odd: &[&str]) {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    let one = [("CROSSOVER_SLOTS", "1")];
    let _worker = Example::of(language, with_odd_results(language).await, &node, &one);
    for odd in odd {
        node.accepts(&work(&world, odd, json!({ "to": 1, "odd": odd })), 201).await;
    }
    node.accepts(&work(&world, "good", json!({ "to": 2 })), 201).await;
    for odd in odd {
        let story = world.ended(odd).await;
        assert_eq!((story.state.as_str(), story.pin.attempts), ("failed", 1), "{language:?} {odd}: {story:#?}");
        assert!(story.pin.reason.unwrap().contains("no JSON"), "{language:?} {odd}");
    }
    world.succeeded("good").await;
    node.stop().await;
}

fn work(world: &World, key: &str, payload: Value) -> Value {
    let policy = json!({ "backoff": { "delays_ms": [1] } });
    with(mail(world, key), json!({ "kind": "mail", "payload": payload, "policy": policy }))
}

async fn begun(world: &World, key: &str) {
    let began = |state: &str| state == "running" || state == "succeeded";
    world.until_story(key, "it has begun", |story| began(&story.state).then_some(())).await;
}

async fn runs_reports_and_fails(language: Language) {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    let _worker = Example::start(language, &node, &[]).await;
    for n in 0..12 {
        node.accepts(&work(&world, &format!("m{n}"), json!({ "to": n })), 201).await;
    }
    node.accepts(&work(&world, "bad", json!({})), 201).await;
    for n in 0..12 {
        let story = world.succeeded(&format!("m{n}")).await;
        let attempt = story.attempts.iter().find(|a| !a.rehearsal).unwrap();
        let result: Value = serde_json::from_str(attempt.result.as_ref().unwrap().get()).unwrap();
        assert_eq!(result, json!({ "sent_to": n }), "{language:?}");
    }
    let bad = world.ended("bad").await;
    assert_eq!((bad.state.as_str(), bad.pin.attempts), ("failed", 1), "{language:?}: {bad:#?}");
    assert!(bad.pin.reason.unwrap().contains("to: is missing"));
    node.stop().await;
}

async fn dies_and_its_work_runs_again(language: Language) {
    let world = World::new(Stage::Live).await;
    let node = world.node_with(ALL, |config| config.worker.lease = Duration::from_millis(900)).await;
    let mut first = Example::start(language, &node, &[("CROSSOVER_LEASE_MS", "1500")]).await;
    node.accepts(&work(&world, "long", json!({ "to": 1, "ms": 4_000 })), 201).await;
    begun(&world, "long").await;
    first.kill();
    let began = std::time::Instant::now();
    world.until_story("long", "it is known to be lost", |story| (story.pin.attempts == 1).then_some(())).await;
    // Its lease, and a third of ours until somebody looks; the rest is for a busy machine.
    assert!(began.elapsed() < Duration::from_secs(10), "{language:?}: {:?}", began.elapsed());
    let _second = Example::start(language, &node, &[("CROSSOVER_LEASE_MS", "1500")]).await;
    // Twice as long as its lease, so that only heartbeats keep it.
    assert_eq!(world.succeeded("long").await.pin.attempts, 2, "{language:?}");
    node.stop().await;
}

async fn hears_of_a_wish_to_cancel(language: Language) {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    let _worker = Example::start(language, &node, &[("CROSSOVER_LEASE_MS", "1500")]).await;
    node.accepts(&work(&world, "long", json!({ "to": 1, "ms": 3_600_000 })), 201).await;
    begun(&world, "long").await;
    let path = format!("/v1/interactions/{}/cancel", world.id("long"));
    // 200 where it has ended so before the answer.
    assert!(matches!(node.call("POST", &path, Some(&json!({}))).await.status, 200 | 202));
    let story = world.ended("long").await;
    assert_eq!((story.state.as_str(), story.pin.attempts), ("cancelled", 1), "{language:?}: {story:#?}");
    node.stop().await;
}

async fn ends_and_loses_nothing(language: Language) {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    let mut worker = Example::start(language, &node, &[]).await;
    let keys: Vec<String> = (0..40).map(|n| format!("m{n}")).collect();
    for key in &keys {
        node.accepts(&work(&world, key, json!({ "to": key, "ms": 500 })), 201).await;
    }
    begun(&world, "m4").await;
    worker.terminate();
    assert!(worker.ended().await, "{language:?}");
    assert_eq!(world.scalar::<i64>("select count(*) from crossover.running where execute").await, 0, "{language:?}");
    let rest = world.scalar::<i64>("select count(*) from crossover.ready where execute").await;
    assert!(rest > 0 && rest < 40, "{language:?}: {rest} were left");
    let _next = Example::start(language, &node, &[]).await;
    for key in &keys {
        assert_eq!(world.succeeded(key).await.pin.attempts, 1, "{language:?}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_in_python_runs_work_and_says_what_fails_for_good() {
    runs_reports_and_fails(Language::Python).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_in_typescript_runs_work_and_says_what_fails_for_good() {
    runs_reports_and_fails(Language::TypeScript).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_is_no_json_fails_for_good_in_python_and_the_worker_goes_on() {
    fails_for_good_what_is_no_json_and_goes_on(Language::Python, &["set", "nan", "bytes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_is_no_json_fails_for_good_in_typescript_and_the_worker_goes_on() {
    fails_for_good_what_is_no_json_and_goes_on(Language::TypeScript, &["big", "circle"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_work_of_a_killed_worker_in_python_runs_again() {
    dies_and_its_work_runs_again(Language::Python).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_work_of_a_killed_worker_in_typescript_runs_again() {
    dies_and_its_work_runs_again(Language::TypeScript).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_to_cancel_reaches_a_handler_in_python() {
    hears_of_a_wish_to_cancel(Language::Python).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_to_cancel_reaches_a_handler_in_typescript() {
    hears_of_a_wish_to_cancel(Language::TypeScript).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_in_python_that_is_asked_to_end_loses_nothing() {
    ends_and_loses_nothing(Language::Python).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_in_typescript_that_is_asked_to_end_loses_nothing() {
    ends_and_loses_nothing(Language::TypeScript).await;
}
