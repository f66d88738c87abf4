//! Judges a run by what callers were told, what the runner saw, and what the API says of each interaction in the end.
//! Pure. The promises that `crossover::proof` judges every run by are judged by it; what is only worth asking where
//! processes stall and answers get lost is asked here.

use std::collections::{BTreeMap, HashMap, HashSet};

use crossover::interaction::{Fence, Side};
use crossover::proof::{Accepted, Seen, judge as judge_promises};
use serde_json::Value;
use uuid::Uuid;

use super::callers::Told;

/// What the API says of an interaction.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// It has a pin.
    Pinned { state: String, owner: Side, epoch: i32, result: Option<Value>, ends: Vec<End> },
    /// It was started in `off`: Temporal's state, if it can be looked up there.
    Unpinned(Option<String>),
}

/// An attempt of an execution that ended it, as it is recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    pub side: Side,
    pub fence: Fence,
    pub outcome: String,
}

impl Found {
    pub fn has_ended(&self) -> bool {
        match self {
            Found::Pinned { state, .. } => is_end(state),
            Found::Unpinned(state) => state.as_ref().is_none_or(|state| is_end(state)),
        }
    }

    fn is_cancelled(&self) -> bool {
        matches!(self, Found::Pinned { state, .. } if state == "cancelled")
    }

    /// Whether it was handed over to Temporal.
    fn has_moved(&self) -> bool {
        matches!(self, Found::Pinned { epoch: 2.., .. })
    }
}

/// Microseconds, as the runner counts them, between which a worker or what it was sent was held up.
#[derive(Debug, Clone, Copy)]
pub struct Stall {
    pub from: u64,
    pub to: u64,
}

/// What operators handed over.
#[derive(Debug, Clone, Default)]
pub struct Moved {
    pub accounts: HashSet<&'static str>,
    pub commands: u64,
    /// As the commands said.
    pub interactions: u64,
    /// Commands that didn't say: killed, refused, or without Postgres in the middle.
    pub unanswered: u64,
}

/// A call that was sent before a cancellation came through reaches the runner so much later at most, where nothing holds up
/// the worker or the way: a lease, and what a busy machine adds.
const ON_ITS_WAY: u64 = 3_000_000;

fn is_end(state: &str) -> bool {
    matches!(state, "succeeded" | "failed" | "cancelled" | "expired")
}

#[derive(Debug, Default)]
pub struct Verdict {
    /// Each broken promise, in words.
    pub broken: Vec<String>,
    /// How much of what there was.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Verdict {
    fn breaks(&mut self, text: String) {
        self.broken.push(text);
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }
}

/// What a run is judged by.
pub struct Evidence<'a> {
    pub told: &'a Told,
    pub calls: &'a [Seen],
    pub found: &'a HashMap<Uuid, Found>,
    pub moved: &'a Moved,
    pub stalls: &'a [Stall],
}

pub fn judge(evidence: &Evidence<'_>) -> Verdict {
    let Evidence { told, calls, found, .. } = *evidence;
    let mut verdict = Verdict::default();
    told.wrong.iter().for_each(|wrong| verdict.breaks(format!("a caller was told what it must not be: {wrong}")));
    let mut of: HashMap<Uuid, Vec<&Seen>> = HashMap::new();
    calls.iter().for_each(|call| of.entry(call.id).or_default().push(call));

    // What was cancelled needs no call; everything else must have had its answer. What was handed over is Temporal's.
    let cancelled = |id: &Uuid| found.get(id).is_some_and(Found::is_cancelled);
    let accepted: Vec<_> =
        told.accepted.iter().map(|one| Accepted { owner: owner(one, found), ..one.clone() }).collect();
    let kept: Vec<_> = accepted.iter().filter(|one| !cancelled(&one.id)).cloned().collect();
    let others: Vec<Seen> = calls.iter().filter(|call| !cancelled(&call.id)).cloned().collect();
    let promises = judge_promises(&kept, &others);
    for (promise, count) in promises.promises() {
        if count > 0 {
            verdict.breaks(format!("{promise}: {count}, for instance {:?}", promises.examples.get(promise)));
        }
    }
    judge_in_doubt(&mut verdict, told, &of);
    judge_owners(&mut verdict, evidence);
    judge_cancelled(&mut verdict, evidence, &of);
    verdict.counts.insert("accepted", told.accepted.len() as u64);
    verdict.counts.insert("accepted without Postgres", told.failed_open as u64);
    verdict.counts.insert("calls", calls.len() as u64);
    verdict.counts.insert("executed on temporal", promises.executed.temporal);
    verdict.counts.insert("executed on postgres", promises.executed.postgres);
    verdict.counts.insert("succeeded more than once", promises.repeated);
    verdict.counts.entry("late results refused").or_default();

    for one in &accepted {
        let mine = of.get(&one.id).map(Vec::as_slice).unwrap_or_default();
        match found.get(&one.id) {
            None => verdict.breaks(format!("{}: accepted, and can't be looked up", one.id)),
            Some(found) if !found.has_ended() => verdict.breaks(format!("{}: has not ended, it is {found:?}", one.id)),
            Some(Found::Unpinned(_)) => verdict.count("never pinned"),
            Some(Found::Pinned { state, .. }) if state == "cancelled" => {
                verdict.count("cancelled");
                // It may have been called off while it ran; then its worker may be the last to know.
                if mine.iter().any(|call| call.side != one.owner) {
                    verdict.breaks(format!("{}: is cancelled, and ran off its owner: {mine:?}", one.id));
                }
                if !mine.is_empty() {
                    verdict.count("cancelled while they ran");
                }
            }
            Some(Found::Pinned { state, ends, .. }) if ends.is_empty() && told.unobserved.contains(&one.id) => {
                judge_unobserved(&mut verdict, one.id, state, mine);
            }
            Some(Found::Pinned { state, owner, result, ends, .. }) => {
                judge_end(&mut verdict, one.id, state, (*owner, result, ends), mine, calls);
            }
        }
    }
    verdict
}

/// Whose it is in the end.
fn owner(one: &Accepted, found: &HashMap<Uuid, Found>) -> Side {
    let moved = found.get(&one.id).is_some_and(Found::has_moved);
    if moved { Side::Temporal } else { one.owner }
}

/// Of what nobody knows whether it was accepted it is known that it doesn't run on both sides.
fn judge_in_doubt(verdict: &mut Verdict, told: &Told, of: &HashMap<Uuid, Vec<&Seen>>) {
    let asked: HashSet<Uuid> = told.accepted.iter().map(|one| one.id).chain(told.in_doubt.iter().copied()).collect();
    let foreign = of.keys().filter(|id| !asked.contains(id)).count();
    if foreign > 0 {
        verdict.breaks(format!("{foreign} were run that nobody was told are accepted"));
    }
    for id in &told.in_doubt {
        let mine = of.get(id).map(Vec::as_slice).unwrap_or_default();
        if mine.iter().any(|call| call.side != mine[0].side) {
            verdict.breaks(format!("{id}: its caller gave up, and it ran on both sides: {mine:?}"));
        }
    }
    if told.in_doubt.len() * 7 > told.accepted.len() {
        verdict.breaks(format!("{} callers never got an answer: this run proves too little", told.in_doubt.len()));
    }
    verdict.counts.insert("in doubt for ever", told.in_doubt.len() as u64);
}

/// What anybody was told of an owner is so in the end, or an operator has moved it from Postgres to Temporal.
fn judge_owners(verdict: &mut Verdict, evidence: &Evidence<'_>) {
    let Evidence { told, found, moved, .. } = *evidence;
    let accounts: HashMap<Uuid, &str> = told.accepted.iter().map(|one| (one.id, &*one.account)).collect();
    let first = told.accepted.iter().map(|one| (one.id, one.owner));
    for (id, told) in first.chain(told.again.iter().copied()) {
        match found.get(&id) {
            Some(Found::Unpinned(_)) if told == Side::Temporal => {}
            Some(Found::Pinned { owner, epoch: 1, .. }) if *owner == told => {}
            Some(Found::Pinned { owner: Side::Temporal, epoch: 2, .. })
                if accounts.get(&id).is_none_or(|account| moved.accounts.contains(account)) => {}
            None => {}
            Some(found) => verdict.breaks(format!("{id}: a caller was told {told}, and it is {found:?}")),
        }
    }
    let count = found.values().filter(|found| found.has_moved()).count() as u64;
    verdict.counts.insert("handed over", count);
    verdict.counts.insert("handovers", moved.commands);
    // What callers gave up on is not looked up.
    if moved.unanswered == 0 && !(count..=count + told.in_doubt.len() as u64).contains(&moved.interactions) {
        verdict.breaks(format!("{count} were handed over, the operators were told {}", moved.interactions));
    }
}

/// What somebody was told is cancelled is, was asked for, and no call begins after that, but for one that was under way to
/// the runner already.
fn judge_cancelled(verdict: &mut Verdict, evidence: &Evidence<'_>, of: &HashMap<Uuid, Vec<&Seen>>) {
    let Evidence { told, found, stalls, .. } = *evidence;
    for (id, at) in &told.cancelled {
        if !found.get(id).is_some_and(Found::is_cancelled) {
            verdict.breaks(format!("{id}: a caller was told that it is cancelled, and it is {:?}", found.get(id)));
        }
        let held_up = |call: &Seen| {
            let stalled = |s: &Stall| s.from <= at + ON_ITS_WAY && s.to >= *at && call.started <= s.to + ON_ITS_WAY;
            stalls.iter().any(stalled)
        };
        for call in of.get(id).into_iter().flatten().filter(|call| call.started > *at) {
            verdict.count("calls after a cancellation came through");
            if call.started > at + ON_ITS_WAY && !held_up(call) {
                verdict.breaks(format!("{id}: a call began after a caller was told at {at} us of its end: {call:?}"));
            }
        }
    }
    let asked: HashSet<Uuid> = told.cancel_asked.iter().copied().collect();
    for (id, _) in found.iter().filter(|(id, found)| found.is_cancelled() && !asked.contains(id)) {
        verdict.breaks(format!("{id}: is cancelled, and nobody asked for it"));
    }
}

/// It was begun without a pin, and came to the end that the runner gave it.
fn judge_unobserved(verdict: &mut Verdict, id: Uuid, state: &str, mine: &[&Seen]) {
    verdict.count("ended with no attempt recorded");
    let fits = |status: u16| match state {
        "succeeded" => status < 300,
        "failed" => (400..500).contains(&status),
        _ => false,
    };
    if !mine.iter().any(|call| call.side == Side::Temporal && call.answered.is_some_and(fits)) {
        verdict.breaks(format!("{id}: is {state} with no attempt recorded, and the runner answered {mine:?}"));
    }
}

/// The recorded end is that of the highest fence that the runner was ever called with: a late one was refused.
fn judge_end(
    verdict: &mut Verdict,
    id: Uuid,
    state: &str,
    (owner, result, ends): (Side, &Option<Value>, &[End]),
    mine: &[&Seen],
    all: &[Seen],
) {
    let [end] = ends else { return verdict.breaks(format!("{id}: has not one end but {ends:?}")) };
    if end.side != owner || end.outcome != state {
        verdict.breaks(format!("{id}: is {state} on {owner}, recorded is {end:?}"));
    }
    let Some(highest) = mine.iter().map(|call| call.fence).max() else {
        return verdict.breaks(format!("{id}: is {state}, and the runner was never called"));
    };
    if end.fence != highest {
        verdict.breaks(format!("{id}: the end of {} is recorded, the runner was called with {highest}", end.fence));
    }
    let refused = |call: &&&Seen| call.fence == end.fence && call.answered.is_some_and(|s| (400..500).contains(&s));
    match state {
        "succeeded" => match result.as_ref().and_then(|r| all.get(r["call"].as_u64()? as usize)) {
            Some(call) if (call.id, call.side, call.fence, call.answered) == (id, owner, end.fence, Some(200)) => {}
            call => verdict.breaks(format!("{id}: its result {result:?} under {} is of {call:?}", end.fence)),
        },
        "failed" if mine.iter().any(|call| refused(&call)) => verdict.count("failed for good"),
        _ => verdict.breaks(format!("{id}: is {state}, and the runner answered {mine:?}")),
    }
    // An answer that came to nothing, because a later attempt had begun.
    let late = mine.iter().filter(|call| call.fence < end.fence && call.answered.is_some_and(|status| status < 300));
    *verdict.counts.entry("late results refused").or_default() += late.count() as u64;
}

#[cfg(test)]
mod tests {
    use crossover::interaction::Stage;
    use serde_json::json;

    use super::*;

    type Run = (Told, Vec<Seen>, HashMap<Uuid, Found>, Moved, Vec<Stall>);

    fn verdict((told, calls, found, moved, stalls): &Run) -> Verdict {
        judge(&Evidence { told, calls, found, moved, stalls })
    }

    /// Two of a series on Postgres, of which the first was called for twice because its worker stalled.
    fn sound() -> Run {
        let (mut told, mut found) = (Told::default(), HashMap::new());
        for n in 0..2 {
            let (id, series) = (Uuid::from_u128(n + 1), Some("s".into()));
            told.accepted.push(Accepted {
                id,
                account: "a".into(),
                kind: "k".into(),
                series,
                seq: n as u64,
                owner: Side::Postgres,
                stage: Stage::Live,
                max_attempts: 9,
            });
        }
        let calls = vec![call(&told, 0, 1, (1, 30)), call(&told, 0, 2, (10, 20)), call(&told, 1, 1, (21, 29))];
        for (n, call, attempt) in [(0, 1, 2), (1, 2, 1)] {
            let fence = Fence { epoch: 1, attempt };
            let ends = vec![End { side: Side::Postgres, fence, outcome: "succeeded".into() }];
            let (state, result) = ("succeeded".into(), Some(json!({ "call": call })));
            let pinned = Found::Pinned { state, owner: Side::Postgres, epoch: 1, result, ends };
            found.insert(told.accepted[n].id, pinned);
        }
        (told, calls, found, Moved::default(), Vec::new())
    }

    fn call(told: &Told, n: usize, attempt: i32, (started, ended): (u64, u64)) -> Seen {
        let Accepted { id, account, kind, series, .. } = told.accepted[n].clone();
        let (fence, ended, answered) = (Fence { epoch: 1, attempt }, Some(ended), Some(200));
        Seen { id, account, kind, series, side: Side::Postgres, fence, started, ended, answered }
    }

    fn broken(change: impl FnOnce(&mut Run)) -> String {
        let mut run = sound();
        change(&mut run);
        verdict(&run).broken.join("\n")
    }

    fn change(run: &mut Run, change: impl FnOnce(&mut String, &mut Option<Value>, &mut Vec<End>)) {
        match run.2.get_mut(&run.0.accepted[0].id).unwrap() {
            Found::Pinned { state, result, ends, .. } => change(state, result, ends),
            Found::Unpinned(_) => unreachable!(),
        }
    }

    #[test]
    fn a_sound_run_breaks_nothing_and_its_late_result_is_counted() {
        let verdict = verdict(&sound());
        assert_eq!((verdict.broken, verdict.counts["late results refused"]), (vec![], 1));
    }

    #[test]
    fn a_late_result_that_became_the_recorded_one_is_found() {
        let recorded_late = broken(|run| change(run, |_, _, ends| ends[0].fence.attempt = 1));
        assert!(
            recorded_late.contains("the end of 1.1 is recorded, the runner was called with 1.2"),
            "{recorded_late}"
        );
        let result_of_the_late = broken(|run| change(run, |_, result, _| *result = Some(json!({ "call": 0 }))));
        assert!(result_of_the_late.contains("its result"), "{result_of_the_late}");
        let twice = broken(|run| change(run, |_, _, ends| ends.push(ends[0].clone())));
        assert!(twice.contains("has not one end"), "{twice}");
    }

    #[test]
    fn a_result_that_the_runner_never_gave_is_found() {
        assert!(broken(|run| change(run, |_, result, _| *result = Some(json!({ "call": 77 })))).contains("its result"));
        assert!(broken(|run| change(run, |_, result, _| *result = None)).contains("its result"));
        let failed = broken(|run| {
            change(run, |state, _, ends| {
                *state = "failed".into();
                ends[0].outcome = "failed".into();
            })
        });
        assert!(failed.contains("is failed, and the runner answered"), "{failed}");
    }

    #[test]
    fn what_has_not_ended_or_is_not_there_or_on_another_side_is_found() {
        assert!(broken(|run| change(run, |state, _, _| *state = "running".into())).contains("has not ended"));
        assert!(broken(|run| drop(run.2.remove(&Uuid::from_u128(1)))).contains("can't be looked up"));
        assert!(broken(|run| run.1[0].side = Side::Temporal).contains("run on both sides"));
        assert!(broken(|run| run.0.accepted[0].owner = Side::Temporal).contains("a caller was told temporal"));
        assert!(broken(|run| drop(run.0.accepted.remove(1))).contains("nobody was told"));
    }

    #[test]
    fn an_overlap_under_a_current_fence_is_found_and_one_under_an_old_fence_is_none() {
        assert!(broken(|run| run.1[2].started = 15).contains("series overlaps"));
        assert!(broken(|run| (run.1[0].started, run.1[0].ended) = (22, Some(40))).is_empty());
    }

    #[test]
    fn a_cancelled_one_runs_on_no_other_side_and_what_ended_otherwise_must_not_be_called_cancelled() {
        let cancel = |run: &mut Run| {
            run.0.cancel_asked.push(Uuid::from_u128(1));
            run.0.cancelled.push((Uuid::from_u128(1), 15));
            change(run, |state, result, ends| (*state, *result, *ends) = ("cancelled".into(), None, vec![]));
        };
        assert_eq!(broken(cancel), "", "it was called off while it ran");
        let elsewhere = broken(|run| {
            cancel(run);
            run.1[1].side = Side::Temporal;
        });
        assert!(elsewhere.contains("is cancelled, and ran off its owner"), "{elsewhere}");
        assert_eq!(
            broken(|run| {
                cancel(run);
                run.1.drain(..2);
                let Found::Pinned { result, .. } = run.2.get_mut(&Uuid::from_u128(2)).unwrap() else { unreachable!() };
                *result = Some(json!({ "call": 0 }));
            }),
            ""
        );
        assert!(
            broken(|run| run.0.cancelled.push((Uuid::from_u128(1), 40)))
                .contains("a caller was told that it is cancelled")
        );
        assert!(
            broken(|run| {
                cancel(run);
                run.0.cancel_asked.clear();
            })
            .contains("nobody asked for it")
        );
    }

    #[test]
    fn a_call_that_begins_after_a_cancellation_came_through_is_found_unless_something_held_it_up() {
        let late = |run: &mut Run| {
            run.0.cancel_asked.push(Uuid::from_u128(1));
            run.0.cancelled.push((Uuid::from_u128(1), 5));
            change(run, |state, result, ends| (*state, *result, *ends) = ("cancelled".into(), None, vec![]));
            // The result of the other is that of the last call.
            (run.1[1].started, run.1[1].ended) = (ON_ITS_WAY + 6, Some(ON_ITS_WAY + 7));
        };
        assert!(broken(late).contains("a call began after"));
        let stalled = |from, to| {
            broken(|run| {
                late(run);
                run.4.push(Stall { from, to });
            })
        };
        assert_eq!(stalled(0, 9), "");
        assert!(stalled(0, 4).contains("a call began after"), "it was over before the answer");
        assert!(stalled(ON_ITS_WAY + 6, ON_ITS_WAY + 9).contains("a call began after"), "it began too late");
    }

    #[test]
    fn what_was_handed_over_ran_on_temporal_alone_under_its_second_epoch() {
        let fence = Fence { epoch: 2, attempt: 1 };
        let moved = |run: &mut Run| {
            let id = Uuid::from_u128(2);
            run.3 = Moved { accounts: ["a"].into(), commands: 1, interactions: 1, unanswered: 0 };
            (run.1[2].side, run.1[2].fence) = (Side::Temporal, fence);
            let ends = vec![End { side: Side::Temporal, fence, outcome: "succeeded".into() }];
            let (state, result) = ("succeeded".into(), Some(json!({ "call": 2 })));
            run.2.insert(id, Found::Pinned { state, owner: Side::Temporal, epoch: 2, result, ends });
        };
        assert_eq!(broken(moved), "");
        let begun_before = broken(|run| {
            moved(run);
            run.1[2].side = Side::Postgres;
        });
        assert!(begun_before.contains("run off its owner"), "{begun_before}");
        let unasked = broken(|run| {
            moved(run);
            run.3.accounts.clear();
        });
        assert!(unasked.contains("a caller was told postgres"), "{unasked}");
        let miscounted = broken(|run| {
            moved(run);
            run.3.interactions = 2;
        });
        assert!(miscounted.contains("the operators were told 2"), "{miscounted}");
    }

    #[test]
    fn what_a_repetition_was_told_and_what_a_caller_gave_up_on_are_judged_too() {
        assert!(broken(|run| run.0.again.push((Uuid::from_u128(1), Side::Temporal))).contains("was told temporal"));
        let both = broken(|run| {
            run.0.in_doubt.push(Uuid::from_u128(9));
            for side in [Side::Postgres, Side::Temporal] {
                let mut call = run.1[0].clone();
                (call.id, call.side, call.series) = (Uuid::from_u128(9), side, None);
                run.1.push(call);
            }
        });
        assert!(both.contains("its caller gave up, and it ran on both sides"), "{both}");
    }
}
