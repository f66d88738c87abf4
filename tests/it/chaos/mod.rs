//! A run in which everything breaks: routers and workers are processes that are killed, stopped and cut off, Postgres and
//! Temporal restart, a router alone loses Postgres, flags flip and spoil, accounts are armed, what waits is handed over, callers
//! repeat and cancel. What happens is made of a seed ([`plan`]); whether it was right is judged by what callers were told, what
//! the runner saw, and what the API says in the end ([`judge`]).
//!
//! The short run is part of the tests. A long one, with a release build under test:
//!
//! ```text
//! cargo build --release
//! CHAOS_BINARY=target/release/crossover CHAOS_SEED=1 CHAOS_INTERACTIONS=5000 CHAOS_FAULTS=60 \
//!     cargo test --test it -- --ignored --nocapture chaos::everything_breaks_for_long
//! ```
//!
//! `CHAOS_RATE` is how many interactions a second come at most, `CHAOS_FLIPS` and `CHAOS_HANDOVERS` how many of these,
//! `CHAOS_PRINT=1` prints the schedule, `CHAOS_WATCH=1` what Postgres waits for, and `CHAOS_KEEP` names a folder for the
//! processes' logs. `CHAOS_WITHOUT` names a guard of [`crate::guards`] that is taken out before anything begins: the run has to
//! fail. Each run ends with a table and a line of JSON that say what it was made of and what came of it.

mod callers;
mod cast;
pub mod gate;
mod judge;
mod plan;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossover::interaction::{Fence, Side};
use crossover::proof::{Accepted, Runner, RunnerOptions, unsettled};
use futures::{StreamExt, stream};
use serde_json::Value;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::guards::{self, Guard};
use callers::Desk;
use cast::Cast;
use judge::{End, Evidence, Found, Verdict};
use plan::{Event, Fault, Options, Past};

struct Run {
    options: Options,
    without: Option<&'static Guard>,
    program: String,
    /// Interactions a second at most.
    rate: f64,
    /// Once everything is mended, all must have ended within it.
    patience: Duration,
}

fn given<T: std::str::FromStr>(name: &str, default: T) -> T {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
    value.map_or(default, |value| value.parse().ok().unwrap_or_else(|| panic!("{name}={value} can't be read")))
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_breaks_and_nothing_is_lost_run_twice_or_out_of_turn() {
    let options = Options { seed: given("CHAOS_SEED", 1), interactions: 300, faults: 14, flips: 12, handovers: 8 };
    Run::short(options, None).judged().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes as long as CHAOS_INTERACTIONS says"]
async fn everything_breaks_for_long() {
    let interactions = given("CHAOS_INTERACTIONS", 5_000);
    let options = Options {
        seed: given("CHAOS_SEED", 1),
        interactions,
        faults: given("CHAOS_FAULTS", interactions / 80),
        flips: given("CHAOS_FLIPS", interactions / 50),
        handovers: given("CHAOS_HANDOVERS", interactions / 60),
    };
    let binary = given("CHAOS_BINARY", env!("CARGO_BIN_EXE_crossover").to_owned());
    let program = Path::new(&binary).canonicalize().expect("CHAOS_BINARY is a program").display().to_string();
    let name = given("CHAOS_WITHOUT", String::new());
    let without = (!name.is_empty()).then(|| Guard::named(&name).expect("CHAOS_WITHOUT is a guard"));
    let (rate, patience) = (given("CHAOS_RATE", 30.0), Duration::from_secs(900));
    Run { options, without, program, rate, patience }.judged().await;
}

/// That the run would see it: without a guard some promise is broken.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes some minutes"]
async fn without_a_guard_everything_that_breaks_breaks_a_promise() {
    for guard in [&guards::FINISH_IS_FENCED, &guards::ONLY_THE_HEAD_IS_PLACED] {
        let options = Options { seed: given("CHAOS_SEED", 1), interactions: 300, faults: 20, flips: 20, handovers: 8 };
        let (verdict, _) = Run::short(options, Some(guard)).conduct().await;
        println!("without {}: {:#?}", guard.name, verdict.broken);
        assert!(!verdict.broken.is_empty(), "without {} nothing was broken", guard.name);
    }
}

impl Run {
    fn short(options: Options, without: Option<&'static Guard>) -> Self {
        let program = env!("CARGO_BIN_EXE_crossover").to_owned();
        Self { options, without, program, rate: 12.0, patience: Duration::from_secs(180) }
    }

    async fn judged(self) {
        let seed = self.options.seed;
        println!("CHAOS_SEED={seed}: {:?}", self.options);
        let (verdict, told) = self.conduct().await;
        told.print(&verdict);
        verdict.broken.iter().for_each(|broken| println!("BROKEN: {broken}"));
        assert!(verdict.broken.is_empty(), "seed {seed} broke {} promises", verdict.broken.len());
    }

    async fn conduct(&self) -> (Verdict, Summary) {
        // The runner counts from here.
        let began = Instant::now();
        let runner = Runner::start(([127, 0, 0, 1], 0).into(), moods(self.options.seed)).await.unwrap();
        let runner = Arc::new(runner);
        let cast = Cast::assemble(self.program.clone(), &runner.url(), self.without, began).await;
        let cast = Arc::new(cast);
        let mut desk = Desk::new(cast.clone(), runner.clone(), self.options.seed);
        let (mut faults, mut operators, mut suffered) = (JoinSet::new(), JoinSet::new(), BTreeMap::new());
        let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / self.rate));
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        println!("{:>7.1?} everybody is at work", began.elapsed());
        let watched = cast.clone();
        let watch = tokio::spawn(async move {
            while given("CHAOS_WATCH", 0) == 1 {
                tokio::time::sleep(Duration::from_secs(5)).await;
                println!("{:>7.1?} {}", began.elapsed(), watched.glance().await);
            }
        });
        for event in plan::plan(self.options) {
            if given("CHAOS_PRINT", 0) == 1 {
                println!("{:>7.1?} {event:?}", began.elapsed());
            }
            match event {
                Event::Enqueue(job) => {
                    pace.tick().await;
                    desk.take(job).await;
                }
                Event::Flip(flip) => cast.flip(&flip).await,
                Event::Handover(handover) => {
                    let cast = cast.clone();
                    operators.spawn(async move { cast.hand_over(handover).await });
                }
                Event::Fault(fault) => {
                    println!("{:>7.1?} {fault:?}", began.elapsed());
                    *suffered.entry(name_of(&fault)).or_insert(0) += 1;
                    let cast = cast.clone();
                    faults.spawn(async move { cast.suffer(fault).await });
                }
            }
        }
        while let Some(mended) = faults.join_next().await {
            mended.unwrap();
        }
        cast.mend().await;
        while let Some(done) = operators.join_next().await {
            done.unwrap();
        }
        let enqueued = began.elapsed();
        println!("{:>7.1?} all is mended; faults: {suffered:?}; accepted: {}", began.elapsed(), desk.accepted());
        let told = desk.close().await;
        println!(
            "{:>7.1?} all have their answers, after {} repeats, the longest {:.1} s",
            began.elapsed(),
            told.repeats,
            told.longest
        );
        told.slow.iter().for_each(|slow| println!("SLOW: {slow}"));
        let found = self.settled(&cast, &told.accepted, &runner).await;
        println!("{:>7.1?} all has ended, or never will", began.elapsed());
        watch.abort();
        let (calls, moved, stalls) = (runner.calls(), cast.moved(), cast.stalls());
        let evidence = Evidence { told: &told, calls: &calls, found: &found, moved: &moved, stalls: &stalls };
        let mut verdict = judge::judge(&evidence);
        let from_off = |one: &&Accepted| one.owner == Side::Postgres && plan::past(&one.account) == Past::FromOff;
        let from_off = told.accepted.iter().filter(from_off).count();
        verdict.counts.insert("on postgres of accounts begun in off", from_off as u64);
        verdict.broken.extend(runner.malformed().into_iter().map(|text| format!("the runner was asked amiss: {text}")));
        for id in named_in(&verdict.broken) {
            println!("{}", cast.story(id).await);
            told.accepted.iter().filter(|one| one.id == id).for_each(|one| println!("  told {one:?}"));
            calls.iter().filter(|call| call.id == id).for_each(|call| println!("  {call:?}"));
        }
        if let Ok(folder) = std::env::var("CHAOS_KEEP") {
            cast.keep_logs(Path::new(&folder));
            for id in named_in(&verdict.broken) {
                if let Err(error) = cast.keep_histories(id, Path::new(&folder)).await {
                    println!("the histories of {id} can't be kept: {error}");
                }
            }
        }
        let summary = Summary {
            options: self.options,
            seconds: began.elapsed().as_secs(),
            enqueued: enqueued.as_secs(),
            longest: told.longest,
            repeats: told.repeats,
            faults: suffered,
        };
        (verdict, summary)
    }

    /// Looks everything up until all of it has ended, or patience has.
    async fn settled(&self, cast: &Cast, accepted: &[Accepted], runner: &Runner) -> HashMap<Uuid, Found> {
        let (began, client) = (Instant::now(), reqwest::Client::builder().no_proxy().build().unwrap());
        let (mut found, mut open) = (HashMap::new(), accepted.iter().map(|one| one.id).collect::<Vec<_>>());
        let mut told = Duration::ZERO;
        while !open.is_empty() && began.elapsed() < self.patience {
            let looks = open.iter().map(async |id| (*id, look_up(&client, cast, *id).await));
            let looked: Vec<(Uuid, Option<Found>)> = stream::iter(looks).buffer_unordered(16).collect().await;
            found.extend(looked.into_iter().filter_map(|(id, found)| Some((id, found?))));
            // Of what has no pin only the runner can tell.
            let unanswered = unsettled(accepted, &runner.calls());
            let done = |id: &Uuid| match found.get(id) {
                Some(found @ Found::Unpinned(_)) => found.has_ended() && !unanswered.contains(id),
                found => found.is_some_and(Found::has_ended),
            };
            open.retain(|id| !done(id));
            if began.elapsed() > told + Duration::from_secs(10) {
                told = began.elapsed();
                let some: Vec<_> = open.iter().take(3).map(|id| format!("{id} {:?}", found.get(id))).collect();
                println!("{told:>7.1?} after the last answer {} have not ended, such as {some:#?}", open.len());
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        found
    }
}

/// The first interactions that are named where a promise was broken.
fn named_in(broken: &[String]) -> Vec<Uuid> {
    let words = broken.iter().flat_map(|text| text.split(|c: char| !c.is_ascii_hexdigit() && c != '-'));
    let mut ids: Vec<Uuid> = words.filter_map(|word| Uuid::parse_str(word).ok()).collect();
    ids.dedup();
    ids.truncate(8);
    ids
}

/// What a run was made of.
struct Summary {
    options: Options,
    seconds: u64,
    /// Until the last interaction was asked for and everything was mended.
    enqueued: u64,
    /// The longest that a caller had to try, in seconds.
    longest: f64,
    repeats: usize,
    faults: BTreeMap<String, usize>,
}

impl Summary {
    /// For people, and then a line for machines.
    fn print(&self, verdict: &Verdict) {
        let Options { seed, interactions, faults, flips, handovers } = self.options;
        let mut rows: Vec<(String, String)> = [
            ("seed", seed.to_string()),
            ("interactions", interactions.to_string()),
            ("faults", faults.to_string()),
            ("flips, at least", flips.to_string()),
            ("seconds", self.seconds.to_string()),
            ("seconds until all was mended", self.enqueued.to_string()),
            ("longest that a caller tried", format!("{:.1} s", self.longest)),
            ("repeated requests", self.repeats.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        rows.extend(verdict.counts.iter().map(|(name, count)| ((*name).to_owned(), count.to_string())));
        rows.extend(self.faults.iter().map(|(name, count)| (format!("fault: {name}"), count.to_string())));
        rows.push(("promises broken".to_owned(), verdict.broken.len().to_string()));
        rows.iter().for_each(|(name, value)| println!("{name:<40} {value:>8}"));
        let line = serde_json::json!({ "seed": seed, "interactions": interactions, "faults": faults, "flips": flips,
            "handovers": handovers, "seconds": self.seconds, "enqueued": self.enqueued, "longest": self.longest,
            "repeats": self.repeats, "counts": verdict.counts, "suffered": self.faults, "broken": verdict.broken });
        println!("CHAOS {line}");
    }
}

/// A runner with more moods than most: what takes long is what a stalled worker can be late with.
fn moods(seed: u64) -> RunnerOptions {
    RunnerOptions {
        median: Duration::from_millis(25),
        spread: 1.3,
        longest: Duration::from_secs(4),
        flaky: 0.08,
        refused: 0.02,
        broken: 0.0,
        ..RunnerOptions::uneven(seed)
    }
}

fn name_of(fault: &Fault) -> String {
    let text = format!("{fault:?}");
    text.split('(').next().unwrap_or_default().to_owned()
}

async fn look_up(client: &reqwest::Client, cast: &Cast, id: Uuid) -> Option<Found> {
    let address = cast.router(0)?;
    let answer = client.get(format!("http://{address}/v1/interactions/{id}")).send().await.ok()?;
    if answer.status() == reqwest::StatusCode::NOT_FOUND {
        return Some(Found::Unpinned(None));
    }
    let body: Value = answer.error_for_status().ok()?.json().await.ok()?;
    let state = body["state"].as_str()?.to_owned();
    if body["pin"].is_null() {
        return Some(Found::Unpinned(Some(state)));
    }
    let executions = body["attempts"].as_array()?.iter().filter(|attempt| attempt["rehearsal"] == false);
    let ends = executions.filter(|attempt| attempt["retry_ms"].is_null() && !attempt["outcome"].is_null());
    let ends = ends.filter_map(|attempt| {
        let number = |name: &str| Some(attempt[name].as_i64()? as i32);
        Some(End {
            side: attempt["side"].as_str()?.parse().ok()?,
            fence: Fence { epoch: number("epoch")?, attempt: number("attempt")? },
            outcome: attempt["outcome"].as_str()?.to_owned(),
        })
    });
    let result = Some(body["result"].clone()).filter(|result| !result.is_null());
    let (owner, epoch) = (body["pin"]["owner"].as_str()?.parse().ok()?, body["pin"]["epoch"].as_i64()? as i32);
    Some(Found::Pinned { state, owner, epoch, result, ends: ends.collect() })
}
