//! What happens in a run, made of a seed and nothing else: who enqueues what, which flags change, what breaks. Pure; when
//! each of it takes place depends on how fast the machine is, in which order does not.

use std::time::Duration;

use crossover::interaction::Stage;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub seed: u64,
    pub interactions: usize,
    pub faults: usize,
    pub flips: usize,
}

/// The processes that may be hurt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    Router(usize),
    Worker(usize),
}

pub const ROUTERS: usize = 2;
pub const WORKERS: usize = 3;

/// A process reaches each of these through a gate of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Postgres,
    Temporal,
    Runner,
}

/// What breaks. A duration is how long it lasts; then it is mended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// SIGKILL, and another start after a while.
    Kill(Process, Duration),
    /// SIGTERM, and another start when it has drained.
    Terminate(Process),
    /// SIGSTOP, and SIGCONT.
    Pause(Process, Duration),
    /// Every connection is closed.
    Cut(Process, Way),
    /// Nothing passes in either direction, then everything does.
    Freeze(Process, Way, Duration),
    /// Requests pass, answers don't; in the end the connections are closed and the answers are lost.
    Deafen(Process, Way, Duration),
    /// Every connection is closed, and new ones as well.
    Refuse(Process, Way, Duration),
    /// The server is killed and started again.
    RestartPostgres(Duration),
    RestartTemporal(Duration),
    /// Postgres ends every session in the middle of what it does.
    EndSessions,
    /// The flags file can't be read as flags.
    SpoilFlags(Duration),
    /// The flags file isn't there.
    RemoveFlags(Duration),
}

type Drawn = fn(&mut StdRng) -> Fault;

/// The faults with how often each comes. What is built later joins here.
const FAULTS: &[(u32, Drawn)] = &[
    (6, |r| Fault::Kill(worker(r), ms(r, 0, 1_500))),
    (4, |r| Fault::Kill(router(r), ms(r, 0, 1_500))),
    (2, |r| Fault::Terminate(process(r))),
    (6, |r| Fault::Pause(worker(r), ms(r, 2_500, 5_000))),
    (2, |r| Fault::Pause(router(r), ms(r, 500, 5_000))),
    (3, |r| Fault::Cut(process(r), way(r))),
    (4, |r| Fault::Freeze(process(r), way(r), ms(r, 500, 5_000))),
    (6, |r| Fault::Deafen(process(r), way(r), ms(r, 100, 4_000))),
    (3, |r| Fault::Refuse(process(r), way(r), ms(r, 500, 4_000))),
    (2, |r| Fault::RestartPostgres(ms(r, 0, 2_000))),
    (2, |r| Fault::RestartTemporal(ms(r, 0, 2_000))),
    (2, |_| Fault::EndSessions),
    (1, |r| Fault::SpoilFlags(ms(r, 500, 3_000))),
    (1, |r| Fault::RemoveFlags(ms(r, 500, 3_000))),
];

fn ms(rng: &mut StdRng, least: u64, most: u64) -> Duration {
    Duration::from_millis(rng.random_range(least..=most))
}

fn worker(rng: &mut StdRng) -> Process {
    Process::Worker(rng.random_range(0..WORKERS))
}

fn router(rng: &mut StdRng) -> Process {
    Process::Router(rng.random_range(0..ROUTERS))
}

fn process(rng: &mut StdRng) -> Process {
    if rng.random_bool(0.6) { worker(rng) } else { router(rng) }
}

fn way(rng: &mut StdRng) -> Way {
    *[Way::Postgres, Way::Postgres, Way::Temporal, Way::Runner].choose(rng).unwrap()
}

/// What an account may do. The first stage of each is where it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    /// Never leaves `off`.
    Off,
    /// Has unpinned work, so that it is never armed: `live` in the flags executes on Temporal.
    Unpinned,
    /// Armed by its first pin. `off` then only omits the rehearsal.
    Armed,
    /// Armed, and mostly without Temporal.
    Across,
}

impl Past {
    pub fn stages(self) -> &'static [Stage] {
        match self {
            Past::Off => &[Stage::Off],
            Past::Unpinned => &[Stage::Off, Stage::Shadow, Stage::Live],
            Past::Armed => &[Stage::Live, Stage::Shadow, Stage::Off, Stage::Complete],
            Past::Across => &[Stage::Complete, Stage::Live],
        }
    }

    /// While flags differ from router to router, a router that still sees `off` may start a member of a series unpinned
    /// before an earlier one that another router has pinned and could not deliver; so such an account has no series here.
    fn has_series(self) -> bool {
        self != Past::Unpinned
    }
}

/// The accounts with their share of the work.
pub const ACCOUNTS: &[(&str, Past, u32)] = &[
    ("off", Past::Off, 4),
    ("unpinned", Past::Unpinned, 8),
    ("armed-1", Past::Armed, 15),
    ("armed-2", Past::Armed, 15),
    ("armed-3", Past::Armed, 10),
    ("across-1", Past::Across, 24),
    ("across-2", Past::Across, 24),
];
pub const KINDS: &[&str] = &["sync", "action"];
/// Each kind of an account has so many.
const SERIES: usize = 3;

/// How often a caller asks, beside what it repeats because it got no yes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    Never,
    /// Two routers at the same time.
    AtOnce,
    /// Another router, so long after the yes.
    After(Duration),
}

/// One interaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    pub account: &'static str,
    pub kind: &'static str,
    pub series: Option<String>,
    pub key: String,
    /// The router that is asked first.
    pub router: usize,
    pub run_in: Option<Duration>,
    pub repeat: Repeat,
    /// Asked to be cancelled so long after the yes.
    pub cancel: Option<Duration>,
}

/// A change of the flags: of one kind, or of all kinds of an account.
#[derive(Debug, Clone, PartialEq)]
pub struct Flip {
    pub account: &'static str,
    pub kind: Option<&'static str>,
    pub to: Stage,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Enqueue(Job),
    Flip(Flip),
    Fault(Fault),
}

/// Everything that happens, in its order.
pub fn plan(options: Options) -> Vec<Event> {
    let mut rng = StdRng::seed_from_u64(options.seed);
    let mut events: Vec<(usize, Event)> =
        (0..options.interactions).map(|n| (n, Event::Enqueue(job(&mut rng, n)))).collect();
    // The first ones find the bridge whole, so that accounts are what they are meant to be.
    let places = options.interactions / 20..(options.interactions * 19 / 20).max(1);
    for _ in 0..options.flips {
        events.push((rng.random_range(places.clone()), Event::Flip(flip(&mut rng))));
    }
    for _ in 0..options.faults {
        let (_, fault) = FAULTS.choose_weighted(&mut rng, |(weight, _)| *weight).unwrap();
        events.push((rng.random_range(places.clone()), Event::Fault(fault(&mut rng))));
    }
    events.sort_by_key(|(place, _)| *place);
    events.into_iter().map(|(_, event)| event).collect()
}

fn job(rng: &mut StdRng, n: usize) -> Job {
    let (account, past, _) = *ACCOUNTS.choose_weighted(rng, |(_, _, share)| *share).unwrap();
    let in_series = rng.random_bool(0.35) && past.has_series();
    let repeat = match rng.random_range(0..10) {
        0 => Repeat::AtOnce,
        1 => Repeat::After(ms(rng, 0, 4_000)),
        _ => Repeat::Never,
    };
    Job {
        account,
        kind: KINDS.choose(rng).unwrap(),
        series: in_series.then(|| format!("s{}", rng.random_range(0..SERIES))),
        key: format!("k{n}"),
        router: rng.random_range(0..ROUTERS),
        run_in: rng.random_bool(0.1).then(|| ms(rng, 500, if in_series { 1_500 } else { 6_000 })),
        repeat,
        cancel: rng.random_bool(0.06).then(|| ms(rng, 0, 1_000)),
    }
}

fn flip(rng: &mut StdRng) -> Flip {
    let changing: Vec<_> = ACCOUNTS.iter().filter(|(_, past, _)| past.stages().len() > 1).collect();
    let (account, past, _) = **changing.choose(rng).unwrap();
    let kind = rng.random_bool(0.4).then(|| *KINDS.choose(rng).unwrap());
    Flip { account, kind, to: *past.stages().choose(rng).unwrap() }
}

#[test]
fn a_schedule_is_made_again_from_its_seed() {
    let options = Options { seed: 7, interactions: 2_000, faults: 300, flips: 100 };
    assert_eq!(plan(options), plan(options));
    assert_ne!(plan(options), plan(Options { seed: 8, ..options }));
    let events = plan(options);
    let count = |wanted: fn(&Event) -> bool| events.iter().filter(|event| wanted(event)).count();
    assert_eq!(count(|event| matches!(event, Event::Enqueue(_))), 2_000);
    assert_eq!(count(|event| matches!(event, Event::Fault(_))), 300);
    assert_eq!(count(|event| matches!(event, Event::Flip(_))), 100);
    assert!(count(|e| matches!(e, Event::Enqueue(job) if job.cancel.is_some())) > 50);
}
