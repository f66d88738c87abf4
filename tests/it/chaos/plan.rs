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
    pub handovers: usize,
}

/// A caller may repeat a key for so long, and a little less than that they do: the window of idempotency of the run. What
/// began in `off` can be armed when it has passed.
pub const WINDOW: Duration = Duration::from_secs(60);

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
    /// A router alone loses Postgres, so it may start without a pin what others pin.
    Isolate(Process, Duration),
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

/// The faults with how often each comes.
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
    (5, |r| Fault::Isolate(router(r), ms(r, 500, 5_000))),
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
    /// Nobody wants it live, so it is never armed and goes on without Postgres.
    Shadow,
    /// Has unpinned work, is wanted live soon, and armed when its window has passed.
    FromOff,
    /// Wanted live from its first pin on, so it is on its way from the beginning. `off` then only omits the rehearsal.
    Live,
    /// Armed before the run begins.
    Armed,
    /// The same, and mostly without Temporal.
    Across,
    /// The same, and always.
    Over,
}

impl Past {
    /// Where it may be flipped to; what is named twice comes twice as often.
    pub fn stages(self) -> &'static [Stage] {
        match self {
            Past::Off => &[Stage::Off],
            Past::Shadow => &[Stage::Shadow, Stage::Off],
            Past::FromOff => &[Stage::Off, Stage::Shadow, Stage::Live, Stage::Live, Stage::Live, Stage::Complete],
            Past::Live | Past::Armed => &[Stage::Live, Stage::Shadow, Stage::Off, Stage::Complete],
            Past::Across => &[Stage::Complete, Stage::Live],
            Past::Over => &[Stage::Complete],
        }
    }

    /// Whether it goes on without Postgres, for as long as it is not armed.
    pub fn may_fail_open(self) -> bool {
        !matches!(self, Past::Armed | Past::Across | Past::Over)
    }

    /// For how long its callers repeat a key; some of it is left for what is under way when they give up.
    pub fn patience(self) -> Duration {
        match self {
            // While it may have keys without a pin a repetition past the window could run on the other side.
            Past::Off | Past::Shadow | Past::FromOff => WINDOW / 2,
            Past::Live | Past::Armed | Past::Across | Past::Over => Duration::from_secs(300),
        }
    }
}

/// The accounts with their share of the work. Most of it keeps Temporal busy in one way or the other, and Temporal is what
/// ends a run on a small machine.
pub const ACCOUNTS: &[(&str, Past, u32)] = &[
    ("off", Past::Off, 3),
    ("shadow", Past::Shadow, 6),
    ("from-off-1", Past::FromOff, 6),
    ("from-off-2", Past::FromOff, 5),
    ("from-off-3", Past::FromOff, 4),
    ("armed-1", Past::Armed, 12),
    ("armed-2", Past::Armed, 10),
    ("live", Past::Live, 8),
    ("across", Past::Across, 22),
    ("over", Past::Over, 24),
];

pub fn past(account: &str) -> Past {
    ACCOUNTS.iter().find(|(name, ..)| *name == account).map(|(_, past, _)| *past).unwrap()
}

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

/// `crossover handover`, as an operator gives it.
#[derive(Debug, Clone, PartialEq)]
pub struct Handover {
    pub account: &'static str,
    pub kind: Option<&'static str>,
    /// The command is killed after so long.
    pub killed: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Enqueue(Job),
    Flip(Flip),
    Handover(Handover),
    Fault(Fault),
}

/// Everything that happens, in its order.
pub fn plan(options: Options) -> Vec<Event> {
    let mut rng = StdRng::seed_from_u64(options.seed);
    let n = options.interactions;
    let mut events: Vec<(usize, Event)> = (0..n).map(|n| (n, Event::Enqueue(job(&mut rng, n)))).collect();
    // The first ones find the bridge whole, so that accounts are what they are meant to be.
    let places = n / 20..(n * 19 / 20).max(1);
    cut_over(&mut rng, n, &mut events);
    for _ in 0..options.flips {
        let flip = flip(&mut rng);
        let first = if past(flip.account) == Past::FromOff { n * 2 / 5 } else { places.start };
        events.push((rng.random_range(first..places.end), Event::Flip(flip)));
    }
    for _ in 0..options.handovers {
        let handover = handover(&mut rng);
        let Handover { account, kind, .. } = handover;
        let (first, home) = match past(account) {
            Past::FromOff => (n * 2 / 5, Stage::Live),
            past => (places.start, past.stages()[0]),
        };
        let place = rng.random_range(first..places.end);
        if rng.random_bool(0.5) {
            // As one does: back first, and then what waits.
            events.push((place, Event::Flip(Flip { account, kind, to: Stage::Shadow })));
            events.push((rng.random_range(place..n), Event::Flip(Flip { account, kind, to: home })));
        }
        events.push((place, Event::Handover(handover)));
    }
    for _ in 0..options.faults {
        let (_, fault) = FAULTS.choose_weighted(&mut rng, |(weight, _)| *weight).unwrap();
        events.push((rng.random_range(places.clone()), Event::Fault(fault(&mut rng))));
    }
    events.sort_by_key(|(place, _)| *place);
    events.into_iter().map(|(_, event)| event).collect()
}

/// Every account that begins in `off` goes through `shadow` to `live`, some of them kind by kind.
fn cut_over(rng: &mut StdRng, n: usize, events: &mut Vec<(usize, Event)>) {
    for (account, ..) in ACCOUNTS.iter().filter(|(_, past, _)| *past == Past::FromOff) {
        let shadow = rng.random_range(n / 20..n / 6);
        let mut at = |place: usize, kind, to| events.push((place, Event::Flip(Flip { account, kind, to })));
        at(shadow, None, Stage::Shadow);
        let first = *KINDS.choose(rng).unwrap();
        let live = rng.random_range(shadow..n / 4);
        at(live, Some(first), Stage::Live);
        at(rng.random_range(live..n / 3), None, Stage::Live);
    }
}

fn job(rng: &mut StdRng, n: usize) -> Job {
    let (account, past, _) = *ACCOUNTS.choose_weighted(rng, |(_, _, share)| *share).unwrap();
    // What waits on Postgres is what can be handed over.
    let later = if past.may_fail_open() { 0.1 } else { 0.3 };
    let in_series = rng.random_bool(0.35);
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
        run_in: rng.random_bool(later).then(|| ms(rng, 500, if in_series { 1_500 } else { 8_000 })),
        repeat,
        cancel: rng.random_bool(0.08).then(|| ms(rng, 0, 1_000)),
    }
}

fn flip(rng: &mut StdRng) -> Flip {
    let changing: Vec<_> = ACCOUNTS.iter().filter(|(_, past, _)| past.stages().len() > 1).collect();
    let (account, past, _) = **changing.choose(rng).unwrap();
    let kind = rng.random_bool(0.4).then(|| *KINDS.choose(rng).unwrap());
    Flip { account, kind, to: *past.stages().choose(rng).unwrap() }
}

fn handover(rng: &mut StdRng) -> Handover {
    let owned = |past: Past| !matches!(past, Past::Off | Past::Shadow);
    let all: Vec<_> = ACCOUNTS.iter().filter(|(_, past, _)| owned(*past)).collect();
    let (account, ..) = **all.choose_weighted(rng, |(_, _, share)| *share).unwrap();
    let kind = rng.random_bool(0.4).then(|| *KINDS.choose(rng).unwrap());
    Handover { account, kind, killed: rng.random_bool(0.2).then(|| ms(rng, 50, 600)) }
}

#[test]
fn a_schedule_is_made_again_from_its_seed() {
    let options = Options { seed: 7, interactions: 2_000, faults: 300, flips: 100, handovers: 40 };
    assert_eq!(plan(options), plan(options));
    assert_ne!(plan(options), plan(Options { seed: 8, ..options }));
    let events = plan(options);
    let count = |wanted: fn(&Event) -> bool| events.iter().filter(|event| wanted(event)).count();
    assert_eq!(count(|event| matches!(event, Event::Enqueue(_))), 2_000);
    assert_eq!(count(|event| matches!(event, Event::Fault(_))), 300);
    assert_eq!(count(|event| matches!(event, Event::Handover(_))), 40);
    assert!(count(|event| matches!(event, Event::Flip(_))) > 100);
    assert!(count(|e| matches!(e, Event::Enqueue(job) if job.cancel.is_some())) > 50);
}

#[test]
fn what_begins_in_off_goes_to_live_early_and_no_chance_takes_it_back_before() {
    let options = Options { seed: 3, interactions: 1_000, faults: 0, flips: 200, handovers: 0 };
    for (account, ..) in ACCOUNTS.iter().filter(|(_, past, _)| *past == Past::FromOff) {
        let mut asked = 0;
        let mut stages = Vec::new();
        for event in plan(options) {
            match event {
                Event::Enqueue(_) => asked += 1,
                Event::Flip(flip) if flip.account == *account && asked < 400 => stages.push(flip.to),
                _ => {}
            }
        }
        assert_eq!(stages, [Stage::Shadow, Stage::Live, Stage::Live], "{account}");
    }
}
