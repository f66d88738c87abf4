//! Each class, and its nearest innocent neighbour; `clean` has what must never be a divergence, `speed` how
//! fast it is.

mod clean;
mod speed;

use chrono::TimeDelta;
use uuid::Uuid;

use super::*;
use crate::comparator::facts::{End, Moment, Neighbour, Place, Read, SideFacts, Try};
use crate::comparator::lanes::Lane;
use crate::interaction::{Fence, Outcome, Payload, Stage};

const LATE: TimeDelta = TimeDelta::seconds(5);

fn at(ms: i64) -> Instant {
    Instant::from_timestamp_millis(1_700_000_000_000 + ms).unwrap()
}

fn ms(ms: i64) -> TimeDelta {
    TimeDelta::milliseconds(ms)
}

fn moment(at: Instant, seen_at: Instant) -> Moment {
    Moment { at, seen_at, clock: Uuid::nil() }
}

fn payload() -> Payload {
    Payload::parse(r#"{"n":1}"#.to_owned()).unwrap()
}

fn read() -> Read {
    Read { kind: "sync".into(), group: "default".into(), payload_hash: payload().hash(), payload: None }
}

/// An attempt that was due, began and ended.
fn attempt(number: i32, rehearsal: bool, due: i64, began: i64, ended: i64) -> Try {
    Try {
        fence: Fence { epoch: 1, attempt: number },
        rehearsal,
        due_at: Some(at(due)),
        dequeues: vec![moment(at(began), at(began + 5))],
        releases: 0,
        recorded_at: Some(at(began)),
        read: vec![read()],
        end: Some(End {
            at: at(ended),
            seen_at: Some(at(ended + 5)),
            outcome: Some(Outcome::Succeeded),
            retry: None,
            error: None,
        }),
    }
}

fn failed(number: i32, rehearsal: bool, due: i64, began: i64, ended: i64, retry: Option<i64>) -> Try {
    let mut failed = attempt(number, rehearsal, due, began, ended);
    let end = failed.end.as_mut().unwrap();
    (end.outcome, end.retry) = (Some(Outcome::Failed), retry.map(ms));
    failed
}

fn side(tries: Vec<Try>) -> SideFacts {
    SideFacts { tries, ..SideFacts::default() }
}

/// A clean interaction in `stage`, due at 0.
fn clean(stage: Stage) -> Facts {
    let real = side(vec![attempt(1, false, 0, 20, 500)]);
    let rehearsal = side(vec![attempt(1, true, 0, 10, 510)]);
    let (mut temporal, postgres) = if stage.owner() == Side::Temporal { (real, rehearsal) } else { (rehearsal, real) };
    temporal.delivered = Some(moment(at(5), at(6)));
    Facts {
        id: Uuid::from_u128(7),
        pin: Some(PinFacts {
            created_at: at(0),
            run_at: at(0),
            ended_at: Some(at(505)),
            outcome: Some(Outcome::Succeeded),
            reason: None,
            stage,
            owner: stage.owner(),
            epoch: 1,
            copies: PerSide { temporal: true, postgres: true },
            account: "a".into(),
            kind: "sync".into(),
            group: "default".into(),
            priority: 0,
            series: None,
            series_no: None,
            payload_hash: payload().hash().to_vec(),
            payload: Some(payload()),
            conflict: None,
            swept: false,
        }),
        sides: PerSide { temporal, postgres },
        before: None,
        after: None,
    }
}

/// The second of a series, whose first was clean and ended before it.
fn member(stage: Stage) -> Facts {
    let mut facts = clean(stage);
    let before = Neighbour {
        id: Uuid::from_u128(6),
        created_at: at(-600),
        ended_at: Some(at(-1)),
        priority: 0,
        sides: facts.sides.clone(),
        settled: true,
    };
    let mut before = before;
    for one in Side::ALL {
        for t in &mut before.sides.of_mut(*one).tries {
            let back = ms(600);
            t.recorded_at = t.recorded_at.map(|at| at - back);
            t.dequeues.iter_mut().for_each(|d| *d = moment(d.at - back, d.seen_at - back));
            t.end.iter_mut().for_each(|e| e.at -= back);
        }
    }
    let pin = facts.pin.as_mut().unwrap();
    (pin.series, pin.series_no) = (Some("s".into()), Some(2));
    facts.before = Some(before);
    facts
}

struct World {
    now: i64,
    sighted_until: i64,
    lanes: Lanes,
    disturbances: PerSide<Vec<Span>>,
    gaps: Vec<Span>,
    watermark: Option<i64>,
    rules: Rules,
}

impl Default for World {
    fn default() -> Self {
        let rules = Rules { late: LATE, ..Rules::default() };
        let (lanes, disturbances, gaps) = (Lanes::default(), PerSide::default(), Vec::new());
        Self { now: 60_000, sighted_until: 60_000, lanes, disturbances, gaps, watermark: Some(50_000), rules }
    }
}

impl World {
    fn judge(&self, facts: &Facts) -> Judgement {
        let bounds = Bounds { patience: ms(30_000), clocks: ms(250), recovery: ms(10_000) };
        let context = Context {
            now: at(self.now),
            sighted_until: at(self.sighted_until),
            temporal_passed: self.watermark.map(at),
            disturbances: &self.disturbances,
            gaps: &self.gaps,
            lanes: &self.lanes,
            bounds,
        };
        super::judge(facts, &self.rules, &context)
    }

    fn disturbed(mut self, side: Side, from: i64, until: i64) -> Self {
        self.disturbances.of_mut(side).push(Span { from: at(from), until: at(until) });
        self
    }

    fn gap(mut self, from: i64, until: i64) -> Self {
        self.gaps.push(Span { from: at(from), until: at(until) });
        self
    }
}

fn judged(facts: &Facts) -> Judgement {
    World::default().judge(facts)
}

#[track_caller]
fn diverges(judgement: &Judgement, class: Class, side: Side) {
    let found: Vec<_> = judgement.divergences.iter().map(|d| (d.class, d.side)).collect();
    assert_eq!((judgement.verdict, found), (Verdict::Diverged, vec![(class, side)]), "{judgement:?}");
}

#[track_caller]
fn is(judgement: &Judgement, verdict: Verdict) {
    assert_eq!((judgement.verdict, judgement.divergences.len()), (verdict, 0), "{judgement:?}");
    assert_eq!(judgement.reason.is_none(), verdict == Verdict::Matched, "{judgement:?}");
}

#[test]
fn two_sides_that_did_the_same_match() {
    for stage in [Stage::Shadow, Stage::Live] {
        is(&judged(&clean(stage)), Verdict::Matched);
        is(&judged(&member(stage)), Verdict::Matched);
    }
}

// Missing ----------------------------------------------------------------------------------------------------

#[test]
fn a_copy_that_is_nowhere_is_missing() {
    let mut facts = clean(Stage::Shadow);
    facts.sides.postgres = SideFacts::default();
    diverges(&judged(&facts), Class::Missing, Side::Postgres);
    let mut facts = clean(Stage::Live);
    facts.sides.temporal.tries.clear();
    diverges(&judged(&facts), Class::Missing, Side::Temporal);
}

#[test]
fn a_copy_that_waits_anywhere_is_in_flight() {
    for place in [Place::BehindHead, Place::Scheduled, Place::Ready, Place::Held, Place::Outbox] {
        let mut facts = clean(Stage::Shadow);
        facts.sides.postgres = SideFacts { waits: Some(place), ..SideFacts::default() };
        let judgement = judged(&facts);
        is(&judgement, Verdict::InFlight);
        assert!(judgement.look_again.is_some_and(|again| again > at(60_000)));
    }
}

#[test]
fn a_rehearsal_that_temporal_may_still_come_to_is_in_flight() {
    let mut facts = clean(Stage::Live);
    facts.sides.temporal.tries.clear();
    is(&World { watermark: Some(0), ..World::default() }.judge(&facts), Verdict::InFlight);
    is(&World { watermark: None, ..World::default() }.judge(&facts), Verdict::InFlight);
    is(&World::default().disturbed(Side::Temporal, 1_000, 2_000).judge(&facts), Verdict::InFlight);
    is(&World { now: 20_000, ..World::default() }.judge(&facts), Verdict::InFlight);
    let mut facts = member(Stage::Live);
    facts.sides.temporal.tries.clear();
    facts.before.as_mut().unwrap().settled = false;
    is(&judged(&facts), Verdict::InFlight);
}

#[test]
fn a_rehearsal_on_temporal_that_a_gap_may_hide_is_incomplete() {
    let mut facts = clean(Stage::Live);
    facts.sides.temporal.tries.clear();
    is(&World::default().gap(1_000, 2_000).judge(&facts), Verdict::Incomplete);
}

#[test]
fn what_is_not_long_due_and_not_ended_is_in_flight() {
    let mut facts = clean(Stage::Shadow);
    facts.sides.temporal.tries.clear();
    facts.sides.postgres.tries[0].end = None;
    facts.sides.postgres.waits = Some(Place::Held);
    let pin = facts.pin.as_mut().unwrap();
    (pin.ended_at, pin.outcome) = (None, None);
    is(&World { now: 10_000, ..World::default() }.judge(&facts), Verdict::InFlight);
}

#[test]
fn what_its_owner_lost_is_missing_there_once_nothing_waits() {
    let mut facts = clean(Stage::Live);
    facts.sides.postgres = SideFacts::default();
    facts.sides.temporal.tries[0] = attempt(1, true, 0, 10, 20_000);
    facts.sides.temporal.tries[0].end.as_mut().unwrap().outcome = None;
    let pin = facts.pin.as_mut().unwrap();
    (pin.ended_at, pin.outcome) = (None, None);
    let judgement = judged(&facts);
    diverges(&judgement, Class::Missing, Side::Postgres);
    assert!(judgement.look_again.is_some(), "it may come yet");
    facts.sides.temporal.tries[0].end = None;
    facts.sides.temporal.waits = Some(Place::Held);
    diverges(&judged(&facts), Class::Missing, Side::Postgres);
}

#[test]
fn what_ended_before_it_was_delivered_is_dropped() {
    let mut facts = clean(Stage::Live);
    facts.sides.temporal = SideFacts { skipped: Some("it had ended".into()), ..SideFacts::default() };
    is(&judged(&facts), Verdict::Dropped);
}

#[test]
fn a_rehearsal_for_which_there_was_no_room_is_not_comparable_and_says_why() {
    let mut facts = clean(Stage::Live);
    facts.sides.temporal = SideFacts { skipped: Some(crate::ledger::LEFT_OUT.into()), ..SideFacts::default() };
    let judgement = judged(&facts);
    is(&judgement, Verdict::NotComparable);
    assert!(judgement.reason.unwrap().contains("relay.rehearsal_backlog"));
}

#[test]
fn what_ended_before_its_turn_in_the_series_is_dropped() {
    let mut facts = member(Stage::Shadow);
    facts.sides.postgres = SideFacts::default();
    facts.before.as_mut().unwrap().ended_at = Some(at(900));
    is(&judged(&facts), Verdict::Dropped);
    facts.before.as_mut().unwrap().ended_at = Some(at(0));
    diverges(&judged(&facts), Class::Missing, Side::Postgres);
}

#[test]
fn what_was_called_off_before_it_ran_is_dropped() {
    let mut facts = clean(Stage::Shadow);
    (facts.sides.temporal.tries, facts.sides.postgres.tries) = (Vec::new(), Vec::new());
    facts.pin.as_mut().unwrap().outcome = Some(Outcome::Cancelled);
    is(&judged(&facts), Verdict::Dropped);
}

// Extra, owner conflict, unclaimed effect ----------------------------------------------------------------------

#[test]
fn what_nobody_pinned_is_extra() {
    let mut facts = clean(Stage::Shadow);
    facts.pin = None;
    facts.sides.temporal = SideFacts::default();
    diverges(&judged(&facts), Class::Extra, Side::Postgres);
}

#[test]
fn a_copy_on_a_side_that_its_stage_does_not_write_to_is_extra() {
    let mut facts = clean(Stage::Complete);
    facts.pin.as_mut().unwrap().copies.temporal = false;
    diverges(&judged(&facts), Class::Extra, Side::Temporal);
    facts.sides.temporal = SideFacts::default();
    is(&judged(&facts), Verdict::Dropped);
}

#[test]
fn an_owner_conflict_is_told_at_once_and_alone() {
    let mut facts = clean(Stage::Live);
    facts.sides.postgres = SideFacts::default();
    let pin = facts.pin.as_mut().unwrap();
    (pin.conflict, pin.ended_at, pin.outcome) = (Some("another payload".into()), None, None);
    diverges(&judged(&facts), Class::OwnerConflict, Side::Temporal);
}

#[test]
fn an_effect_on_the_side_that_does_not_own_it_is_told_while_it_is_in_flight() {
    let mut facts = clean(Stage::Shadow);
    facts.sides.postgres = side(vec![attempt(1, false, 0, 10, 20)]);
    facts.pin.as_mut().unwrap().ended_at = None;
    let judgement = judged(&facts);
    diverges(&judgement, Class::UnclaimedEffect, Side::Postgres);
    assert!(judgement.look_again.is_some());
}

#[test]
fn what_was_handed_over_is_not_comparable_and_an_effect_of_its_former_owner_is_told_all_the_same() {
    let mut facts = clean(Stage::Shadow);
    facts.pin.as_mut().unwrap().epoch = 2;
    is(&judged(&facts), Verdict::NotComparable);
    facts.sides.postgres.tries[0].rehearsal = false;
    diverges(&judged(&facts), Class::UnclaimedEffect, Side::Postgres);
    facts.sides.postgres.tries[0].rehearsal = true;
    facts.pin.as_mut().unwrap().ended_at = None;
    is(&judged(&facts), Verdict::InFlight);
}

// Duplicate --------------------------------------------------------------------------------------------------

fn begun_twice() -> Facts {
    let mut facts = clean(Stage::Shadow);
    facts.sides.postgres.tries[0].dequeues.push(moment(at(30), at(35)));
    facts
}

#[test]
fn an_attempt_that_began_twice_is_a_duplicate() {
    diverges(&judged(&begun_twice()), Class::Duplicate, Side::Postgres);
}

#[test]
fn an_attempt_that_was_handed_back_in_between_is_none() {
    let mut facts = begun_twice();
    facts.sides.postgres.tries[0].releases = 1;
    is(&judged(&facts), Verdict::Matched);
}

#[test]
fn an_attempt_whose_hand_back_may_be_unseen_is_not_comparable() {
    is(&World::default().gap(15, 25).judge(&begun_twice()), Verdict::NotComparable);
    is(&World::default().disturbed(Side::Postgres, 15, 25).judge(&begun_twice()), Verdict::NotComparable);
}

#[test]
fn a_second_attempt_is_no_duplicate() {
    let mut facts = clean(Stage::Shadow);
    facts.sides.temporal.tries = vec![failed(1, false, 0, 20, 100, Some(100)), attempt(2, false, 200, 210, 500)];
    facts.sides.postgres.tries = vec![failed(1, true, 0, 10, 120, Some(100)), attempt(2, true, 220, 225, 510)];
    is(&judged(&facts), Verdict::Matched);
}

// Late and early ---------------------------------------------------------------------------------------------

/// Postgres began it ten seconds late, and `overtaken` says whether others began meanwhile that were due after it.
fn late(overtaken: bool) -> (World, Facts) {
    let mut facts = clean(Stage::Shadow);
    facts.sides.postgres.tries[0] = attempt(1, true, 0, 10_000, 10_010);
    let mut world = World::default();
    if overtaken {
        world.lanes.began(Lane::of(&facts, Side::Postgres).unwrap(), at(9_000), at(9_010));
    }
    (world, facts)
}

#[test]
fn what_began_late_and_was_overtaken_is_late() {
    let (world, facts) = late(true);
    diverges(&world.judge(&facts), Class::Late, Side::Postgres);
}

#[test]
fn what_began_late_with_its_whole_side_is_not() {
    let (world, facts) = late(false);
    is(&world.judge(&facts), Verdict::Matched);
}

#[test]
fn what_both_sides_began_late_is_not() {
    let (world, mut facts) = late(true);
    facts.sides.temporal.tries[0] = attempt(1, false, 0, 9_000, 9_100);
    is(&world.judge(&facts), Verdict::Matched);
}

#[test]
fn what_was_late_in_an_outage_or_a_gap_is_not_comparable() {
    for world in [late(true).0.disturbed(Side::Postgres, 2_000, 3_000), late(true).0.gap(5_000, 6_000)] {
        is(&world.judge(&late(true).1), Verdict::NotComparable);
    }
    let (world, facts) = late(true);
    is(&world.disturbed(Side::Postgres, -9_000, -8_000).judge(&facts), Verdict::NotComparable);
}

#[test]
fn what_was_delivered_late_is_due_when_it_was_delivered() {
    let mut facts = clean(Stage::Live);
    facts.sides.temporal.tries[0] = attempt(1, true, 0, 10_000, 10_010);
    let mut world = World::default();
    world.lanes.began(Lane::of(&facts, Side::Temporal).unwrap(), at(9_000), at(9_010));
    diverges(&world.judge(&facts), Class::Late, Side::Temporal);
    facts.sides.temporal.delivered = Some(moment(at(9_900), at(9_900)));
    is(&world.judge(&facts), Verdict::Matched);
}

#[test]
fn what_began_before_it_was_due_is_early() {
    let mut facts = clean(Stage::Shadow);
    facts.pin.as_mut().unwrap().run_at = at(2_000);
    facts.sides.temporal.tries[0] = attempt(1, false, 2_000, 2_010, 2_100);
    facts.sides.postgres.tries[0] = attempt(1, true, 2_000, 1_000, 2_100);
    diverges(&judged(&facts), Class::Early, Side::Postgres);
    facts.sides.postgres.tries[0] = attempt(1, true, 2_000, 1_800, 2_100);
    is(&judged(&facts), Verdict::Matched);
}

// Order and overlap ------------------------------------------------------------------------------------------

#[test]
fn an_execution_after_a_flip_may_begin_before_the_rehearsal_of_the_member_before_it() {
    let mut second = member(Stage::Live);
    let first = &mut second.before.as_mut().unwrap().sides;
    first.temporal.tries[0] = attempt(1, false, -600, -590, -490);
    first.postgres.tries[0] = attempt(1, true, -600, 40, 60);
    is(&judged(&second), Verdict::Matched);
}

#[test]
fn a_member_that_began_before_the_one_before_it_is_out_of_order_and_that_one_is_not() {
    let mut second = member(Stage::Shadow);
    let first = &mut second.before.as_mut().unwrap().sides.postgres;
    first.tries[0] = attempt(1, true, -600, 40, 60);
    diverges(&judged(&second), Class::Order, Side::Postgres);

    // The other one waited for it, and was overtaken by what it let pass.
    let (world, mut first) = late(true);
    first.after = Some(Neighbour {
        id: second.id,
        created_at: at(1),
        ended_at: Some(at(700)),
        priority: 0,
        sides: PerSide { temporal: SideFacts::default(), postgres: side(vec![attempt(1, true, 0, 9_000, 9_500)]) },
        settled: true,
    });
    is(&world.judge(&first), Verdict::Matched);
}

#[test]
fn two_that_are_of_no_series_may_begin_in_any_order() {
    let mut facts = member(Stage::Shadow);
    facts.before.as_mut().unwrap().sides.postgres.tries[0] = attempt(1, true, -600, 40, 60);
    facts.before = None;
    is(&judged(&facts), Verdict::Matched);
}

#[test]
fn a_rehearsal_of_higher_priority_may_overtake_the_one_before_it() {
    let mut facts = member(Stage::Shadow);
    let before = facts.before.as_mut().unwrap();
    before.sides.postgres.tries[0] = attempt(1, true, -600, 40, 60);
    before.priority = -5;
    is(&judged(&facts), Verdict::Matched);
}

#[test]
fn an_order_that_was_not_seen_whole_is_not_judged() {
    let mut facts = member(Stage::Shadow);
    let first = &mut facts.before.as_mut().unwrap().sides.postgres.tries[0];
    *first = attempt(1, true, -600, 40, 60);
    first.dequeues.clear();
    is(&judged(&facts), Verdict::Matched);
    let mut facts = member(Stage::Shadow);
    facts.before.as_mut().unwrap().sides.postgres.tries[0] = attempt(1, true, -600, 40, 60);
    is(&World::default().gap(-100, -50).judge(&facts), Verdict::NotComparable);
}

#[test]
fn a_member_waits_for_the_verdict_until_the_one_before_it_was_seen() {
    let mut facts = member(Stage::Shadow);
    let before = facts.before.as_mut().unwrap();
    before.sides.postgres = SideFacts { waits: Some(Place::Ready), ..SideFacts::default() };
    let soon = World { now: 2_000, ..World::default() };
    is(&soon.judge(&facts), Verdict::InFlight);
    is(&judged(&facts), Verdict::Matched);
}

#[test]
fn an_execution_that_began_before_the_one_before_it_had_ended_overlaps_it_on_any_side() {
    for there in [Side::Temporal, Side::Postgres] {
        let mut facts = member(Stage::Shadow);
        let before = facts.before.as_mut().unwrap();
        before.ended_at = Some(at(400));
        before.sides = PerSide::default();
        *before.sides.of_mut(there) = side(vec![attempt(1, false, -600, -590, 399)]);
        diverges(&judged(&facts), Class::Overlap, Side::Temporal);
    }
}

#[test]
fn a_rehearsal_that_outlasts_its_real_run_overlaps_nothing() {
    let mut facts = member(Stage::Shadow);
    facts.before.as_mut().unwrap().sides.postgres.tries[0] = attempt(1, true, -600, -590, 5_000);
    is(&judged(&facts), Verdict::Matched);
}

#[test]
fn an_execution_that_was_taken_over_has_an_old_fence() {
    let mut facts = member(Stage::Live);
    let before = &mut facts.before.as_mut().unwrap().sides.postgres;
    before.tries[0].end = Some(End {
        at: at(5_000),
        seen_at: None,
        outcome: Some(Outcome::Failed),
        retry: Some(ms(1)),
        error: Some("its worker stopped reporting".into()),
    });
    is(&judged(&facts), Verdict::Matched);
}

// Content ----------------------------------------------------------------------------------------------------

#[test]
fn another_payload_diverges_unless_the_rules_say_it_is_the_same() {
    let mut facts = clean(Stage::Shadow);
    let other = Payload::parse(r#"{"n":1,"sent_at":7}"#.to_owned()).unwrap();
    let read = &mut facts.sides.postgres.tries[0].read[0];
    (read.payload_hash, read.payload) = (other.hash(), Some(other));
    diverges(&judged(&facts), Class::Payload, Side::Postgres);
    let mut world = World::default();
    world.rules.ignore = vec!["/sent_at".into()];
    is(&world.judge(&facts), Verdict::Matched);
}

#[test]
fn another_kind_or_group_diverges() {
    let mut facts = clean(Stage::Shadow);
    facts.sides.temporal.tries[0].read[0].group = "bulk".into();
    diverges(&judged(&facts), Class::Routing, Side::Temporal);
}

// Attempts and outcome ---------------------------------------------------------------------------------------

/// Temporal failed once and succeeded; Postgres as given.
fn retried(postgres: Vec<Try>) -> Facts {
    let mut facts = clean(Stage::Shadow);
    facts.sides.temporal.tries =
        vec![failed(1, false, 0, 20, 100, Some(1_000)), attempt(2, false, 1_100, 1_110, 1_200)];
    facts.sides.postgres.tries = postgres;
    facts.pin.as_mut().unwrap().ended_at = Some(at(1_205));
    facts
}

#[test]
fn another_number_of_attempts_diverges() {
    let mut once = vec![failed(1, true, 0, 10, 120, None)];
    diverges(&judged(&retried(once.clone())), Class::Attempts, Side::Postgres);
    once[0].end.as_mut().unwrap().error = Some("its worker stopped reporting".into());
    is(&judged(&retried(once)), Verdict::NotComparable);
}

#[test]
fn other_waits_between_attempts_diverge() {
    let waits =
        |wait| vec![failed(1, true, 0, 10, 120, Some(wait)), attempt(2, true, 120 + wait, 130 + wait, 1_300 + wait)];
    is(&judged(&retried(waits(1_100))), Verdict::Matched);
    diverges(&judged(&retried(waits(4_000))), Class::Attempts, Side::Postgres);
}

#[test]
fn an_attempt_that_is_due_later_than_announced_diverges() {
    let tries = vec![failed(1, true, 0, 10, 120, Some(1_000)), attempt(2, true, 9_000, 9_010, 9_100)];
    diverges(&judged(&retried(tries.clone())), Class::Attempts, Side::Postgres);
    let world = World::default().disturbed(Side::Postgres, 500, 600);
    is(&world.judge(&retried(tries)), Verdict::NotComparable);
}

#[test]
fn a_lost_attempt_is_not_compared() {
    let mut facts = retried(vec![attempt(1, true, 0, 10, 1_210)]);
    facts.sides.temporal.tries[0].end = None;
    is(&judged(&facts), Verdict::NotComparable);
}

#[test]
fn an_attempt_whose_end_was_not_taken_or_not_recorded_is_not_compared() {
    let once = || retried(vec![attempt(1, true, 0, 10, 1_210)]);
    let mut facts = once();
    facts.sides.temporal.tries[0].end.as_mut().unwrap().retry = None;
    is(&judged(&facts), Verdict::NotComparable);
    let mut facts = once();
    facts.sides.temporal.tries[0].recorded_at = None;
    is(&judged(&facts), Verdict::NotComparable);
    diverges(&judged(&once()), Class::Attempts, Side::Postgres);
}

#[test]
fn another_outcome_diverges() {
    let mut facts = clean(Stage::Live);
    facts.sides.temporal.tries[0] = failed(1, true, 0, 10, 510, None);
    diverges(&judged(&facts), Class::Outcome, Side::Temporal);
}

#[test]
fn a_bounded_rehearsal_is_not_comparable() {
    let mut facts = clean(Stage::Live);
    let end = facts.sides.temporal.tries[0].end.as_mut().unwrap();
    (end.outcome, end.error) = (None, Some("bounded".into()));
    is(&judged(&facts), Verdict::NotComparable);
}

#[test]
fn an_attempt_that_nobody_saw_begin_is_incomplete() {
    let mut facts = clean(Stage::Shadow);
    let t = &mut facts.sides.postgres.tries[0];
    (t.dequeues, t.read) = (Vec::new(), Vec::new());
    is(&judged(&facts), Verdict::Incomplete);
}

#[test]
fn nothing_is_judged_before_its_sightings_can_be_there() {
    is(&World { now: 505, sighted_until: 500, ..World::default() }.judge(&clean(Stage::Shadow)), Verdict::InFlight);
}
