//! A clean run, looked at whenever it is: sightings arrive in any order and as late as they like, and some are lost in gaps.
//! Nothing of it is ever a divergence.

use proptest::prelude::*;

use super::*;
use crate::comparator::gather::Gathered;
use crate::interaction::Attempt;
use crate::ledger::{ComparedPin, OpenRehearsal, Pin};
use crate::observer::{Recorded, Seen, Sighting};
use crate::queue::{Placed, QueuePlace};

/// One interaction as it was planned; times in ms.
#[derive(Debug, Clone)]
struct Plan {
    live: bool,
    in_series: bool,
    pinned: i64,
    wait: i64,
    delivery: i64,
    /// How long each attempt runs; all but the last fail.
    runs: Vec<i64>,
    start: PerSide<i64>,
    /// How long after the real end the rehearsal knows.
    mirror: i64,
    /// The rehearsal on Postgres is handed back once.
    handed_back: bool,
    arrivals: Vec<i64>,
}

/// Whatever was noted, when it happened.
#[derive(Debug, Clone)]
struct Event {
    at: i64,
    /// When it is in the database.
    written: i64,
    recorded: Recorded,
}

/// What is recorded durably of one attempt.
#[derive(Debug, Clone)]
struct Durable {
    side: Side,
    number: i32,
    rehearsal: bool,
    due: i64,
    began: i64,
    ended: i64,
    retry: Option<i64>,
}

#[derive(Debug, Clone)]
struct Played {
    id: Uuid,
    series_no: Option<i64>,
    plan: Plan,
    placed: i64,
    ended: i64,
    attempts: Vec<Durable>,
    events: Vec<Event>,
}

const RETRY: i64 = 300;

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let runs = prop_oneof![4 => (1..600i64).prop_map(|run| vec![run]), 1 => prop::collection::vec(1..300i64, 2..4)];
    let plan = (
        (any::<bool>(), 0..4_000i64, prop_oneof![3 => Just(0), 1 => 0..3_000i64], 1..400i64, runs),
        (1..300i64, 1..300i64, 1..200i64, prop::bool::weighted(0.2), prop::collection::vec(1..9_000i64, 24)),
    );
    let plan =
        plan.prop_map(|((in_series, pinned, wait, delivery, runs), (t, p, mirror, handed_back, arrivals))| Plan {
            live: false,
            in_series,
            pinned,
            wait,
            delivery,
            runs,
            start: PerSide { temporal: t, postgres: p },
            mirror,
            handed_back,
            arrivals,
        });
    (any::<bool>(), prop::collection::vec(plan, 1..9)).prop_map(|(live, mut plans)| {
        plans.iter_mut().for_each(|plan| plan.live = live);
        plans.sort_by_key(|plan| plan.pinned);
        plans
    })
}

/// Plays the plans, each side a little slow as a whole.
fn play(plans: &[Plan], slow: PerSide<i64>) -> Vec<Played> {
    let mut played: Vec<Played> = Vec::new();
    for (n, plan) in plans.iter().enumerate() {
        let before = played.iter().rev().find(|p| plan.in_series && p.series_no.is_some()).cloned();
        played.push(one(Uuid::from_u128(n as u128 + 1), plan, before.as_ref(), slow));
    }
    played
}

fn one(id: Uuid, plan: &Plan, before: Option<&Played>, slow: PerSide<i64>) -> Played {
    let due = plan.pinned + plan.wait;
    let owner = if plan.live { Side::Postgres } else { Side::Temporal };
    let ended_before = before.map_or(0, |b| b.ended);
    // Temporal takes a series one by one; Postgres places a member when everything before it has ended.
    let free = |side: Side| {
        before.map_or(0, |b| b.attempts.iter().filter(|a| a.side == side).map(|a| a.ended).max().unwrap_or(0))
    };
    let placed = due.max(ended_before);
    let first_due = PerSide {
        temporal: if before.is_some() { due.max(free(Side::Temporal)).max(plan.pinned + plan.delivery) } else { due },
        postgres: placed,
    };
    let start = |side: Side, due: i64| {
        due.max(if side == Side::Temporal { plan.pinned + plan.delivery } else { 0 })
            + plan.start.of(side)
            + slow.of(side)
    };
    let mut attempts = Vec::new();
    // An execution waits for what is before it, wherever that runs.
    let mut next = (*first_due.of(owner)).max(ended_before);
    for (n, run) in plan.runs.iter().enumerate() {
        let (began, retry) = (start(owner, next), (n + 1 < plan.runs.len()).then_some(RETRY));
        attempts.push(Durable {
            side: owner,
            number: n as i32 + 1,
            rehearsal: false,
            due: next,
            began,
            ended: began + run,
            retry,
        });
        next = began + run + RETRY;
    }
    let ended = attempts.last().map_or(0, |a| a.ended);
    let there = owner.other();
    let mut next = *first_due.of(there);
    for real in attempts.clone() {
        let began = start(there, next);
        let end = began.max(real.ended) + plan.mirror;
        attempts.push(Durable { side: there, rehearsal: true, due: next, began, ended: end, ..real });
        next = end + RETRY;
    }
    let series_no = plan.in_series.then(|| before.and_then(|b| b.series_no).unwrap_or(0) + 1);
    let mut played = Played { id, series_no, plan: plan.clone(), placed, ended, attempts, events: Vec::new() };
    played.events = events(&played);
    played
}

fn events(played: &Played) -> Vec<Event> {
    let mut found = vec![(Side::Temporal, 0, false, played.plan.pinned + played.plan.delivery, Seen::Delivered)];
    for a in &played.attempts {
        let dequeued = Seen::Dequeued {
            due_at: at(a.due),
            kind: "sync".into(),
            group: "default".into(),
            payload_hash: payload().hash(),
            payload: None,
        };
        // What is recorded of it is the last time that it began.
        let handed_back = played.plan.handed_back && a.side == Side::Postgres && a.rehearsal && a.number == 1;
        if handed_back {
            let first = a.began - (a.began - a.due).min(2);
            found.push((a.side, a.number, a.rehearsal, first, dequeued.clone()));
            found.push((a.side, a.number, a.rehearsal, a.began, Seen::Released));
        }
        found.push((a.side, a.number, a.rehearsal, a.began, dequeued));
        let outcome = Some(if a.retry.is_some() { Outcome::Failed } else { Outcome::Succeeded });
        found.push((a.side, a.number, a.rehearsal, a.ended, Seen::Ended { outcome, retry_ms: a.retry, error: None }));
    }
    let event = |(n, (side, attempt, rehearsal, ms, what)): (usize, _)| {
        let written = ms + played.plan.arrivals[n % played.plan.arrivals.len()];
        let fence = Fence { epoch: 1, attempt };
        let sighting = Sighting { id: played.id, side, fence, rehearsal, at: at(ms), what };
        Event { at: ms, written, recorded: Recorded { seen_at: at(written), observer: Uuid::nil(), sighting } }
    };
    found.into_iter().enumerate().map(event).collect()
}

/// What is to be read at `now`.
fn gathered(all: &[Played], now: i64, gaps: &[(i64, i64)]) -> Gathered {
    let mut gathered = Gathered::default();
    let series = Uuid::from_u128(99);
    for played in all.iter().filter(|p| p.plan.pinned <= now) {
        let id = played.id;
        let undelivered = played.plan.pinned + played.plan.delivery > now;
        let ended = played.ended <= now;
        let behind_head = !ended
            && played.series_no.is_some()
            && played.placed > now
            && played.placed > played.plan.pinned + played.plan.wait;
        gathered.pins.insert(id, compared(played, series, ended, behind_head, undelivered));
        played.series_no.map(|no| gathered.members.insert((series, no), id));
        let visible =
            |e: &&Event| e.written <= now && !gaps.iter().any(|(from, until)| (*from..=*until).contains(&e.at));
        gathered.sightings.insert(id, played.events.iter().filter(visible).map(|e| e.recorded.clone()).collect());
        for a in &played.attempts {
            durable(played, a, now, &mut gathered);
        }
        let mine: Vec<&Durable> = played.attempts.iter().filter(|a| a.side == Side::Postgres).collect();
        if let Some(a) = mine.iter().find(|a| a.ended > now).filter(|_| !behind_head) {
            let running = a.began <= now;
            let place = if running {
                QueuePlace::Running
            } else if a.due > now {
                QueuePlace::Scheduled
            } else {
                QueuePlace::Ready
            };
            let claimed = running.then(|| (1, at(a.began)));
            let placed = Placed { id, place, due_at: at(a.due), attempt: a.number, execute: !a.rehearsal, claimed };
            gathered.places.insert(id, placed);
        }
        if played.attempts.iter().any(|a| a.ended > now) {
            gathered.unsettled.insert(id);
        }
    }
    gathered
}

fn durable(played: &Played, a: &Durable, now: i64, gathered: &mut Gathered) {
    let fence = Fence { epoch: 1, attempt: a.number };
    if a.ended <= now {
        gathered.attempts.entry(played.id).or_default().push(Attempt {
            id: played.id,
            side: a.side,
            fence,
            rehearsal: a.rehearsal,
            due_at: at(a.due),
            started_at: at(a.began),
            ended_at: at(a.ended),
            outcome: Some(if a.retry.is_some() { Outcome::Failed } else { Outcome::Succeeded }),
            failure: None,
            retry_ms: a.retry,
            result: None,
            error: None,
        });
    } else if a.began <= now && a.rehearsal && a.side == Side::Temporal {
        gathered.rehearsals.entry(played.id).or_default().push(OpenRehearsal {
            id: played.id,
            fence,
            token: Vec::new(),
            due_at: at(a.due),
            dequeued_at: at(a.began),
            bound_at: at(a.ended + 60_000),
        });
    }
}

fn compared(played: &Played, series: Uuid, ended: bool, behind_head: bool, undelivered: bool) -> ComparedPin {
    let stage = if played.plan.live { Stage::Live } else { Stage::Shadow };
    let pin = Pin {
        id: played.id,
        created_at: at(played.plan.pinned),
        run_at: at(played.plan.pinned + played.plan.wait),
        owner: stage.owner(),
        stage,
        epoch: 1,
        series_no: played.series_no,
        kind: "sync".into(),
        flag_revision: String::new(),
        payload_hash: payload().hash().to_vec(),
        attempts: played.plan.runs.len() as i32,
        outcome: ended.then_some(Outcome::Succeeded),
        ended_at: ended.then(|| at(played.ended)),
        reason: None,
        conflict: None,
        cancel_requested_at: None,
    };
    ComparedPin {
        pin,
        account: "a".into(),
        series: played.series_no.map(|_| "s".into()),
        series_id: played.series_no.map(|_| series),
        group: "default".into(),
        priority: 0,
        on_temporal: true,
        on_postgres: true,
        swept: false,
        behind_head,
        undelivered,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn a_clean_run_never_diverges_whatever_is_lost_or_late(
        plans in plans(),
        slow_temporal in 0..4_000i64, slow_postgres in 0..4_000i64,
        looks in prop::collection::vec(0..60_000i64, 1..6),
        gaps in prop::collection::vec((0..12_000i64, 0..3_000i64), 0..4),
    ) {
        let all = play(&plans, PerSide { temporal: slow_temporal, postgres: slow_postgres });
        let gaps: Vec<(i64, i64)> = gaps.into_iter().map(|(from, length)| (from, from + length)).collect();
        for now in looks.into_iter().chain([200_000]) {
            let gathered = gathered(&all, now, &gaps);
            let pinned: Vec<&Played> = all.iter().filter(|p| p.plan.pinned <= now).collect();
            let mut world = World { now, watermark: None, ..World::default() };
            pinned.iter().for_each(|p| world.lanes.note(&gathered.facts(p.id)));
            world.gaps = gaps.iter().map(|(from, until)| Span { from: at(*from), until: at(*until) }).collect();
            world.watermark = world.lanes.highest(Side::Temporal).map(|due| (due - at(0)).num_milliseconds());
            // Whatever was seen by then is written.
            let late = all.iter().flat_map(|p| &p.events).filter(|e| e.written > now).map(|e| e.at - 1).min();
            world.sighted_until = late.map_or(now, |late| late.min(now));
            for played in pinned {
                let judgement = world.judge(&gathered.facts(played.id));
                prop_assert!(judgement.divergences.is_empty(), "at {now}: {judgement:?} of {played:#?}");
                prop_assert!(now < 200_000 || judgement.verdict != Verdict::InFlight, "{judgement:?} of {played:#?}");
                prop_assert!(now < 200_000 || !gaps.is_empty() || judgement.verdict == Verdict::Matched, "{judgement:?} of {played:#?}");
            }
        }
    }
}
