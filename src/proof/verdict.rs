//! Judges a run by what callers were told and what the runner saw. Pure, and without a look at Crossover's tables.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Serialize;
use uuid::Uuid;

use crate::interaction::{Fence, Side, Stage, series_id};

/// Examples that are kept of each broken promise; the counts are whole.
const EXAMPLES: usize = 5;

/// An interaction that a caller was told is accepted.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// From the answer.
    pub id: Uuid,
    /// The tenant.
    pub account: Arc<str>,
    /// The type of work.
    pub kind: Arc<str>,
    /// The series.
    pub series: Option<Arc<str>>,
    /// Grows within a series in the order in which its members were accepted.
    pub seq: u64,
    /// The side that executes it, from the answer.
    pub owner: Side,
    /// The stage it was accepted in, from the answer.
    pub stage: Stage,
    /// What its policy allows.
    pub max_attempts: i32,
}

/// One call as the runner saw it. Times are microseconds of the runner's own clock.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The interaction.
    pub id: Uuid,
    /// The tenant.
    pub account: Arc<str>,
    /// The type of work.
    pub kind: Arc<str>,
    /// The series.
    pub series: Option<Arc<str>>,
    /// Who called.
    pub side: Side,
    /// With which fence.
    pub fence: Fence,
    /// When the call came in.
    pub started: u64,
    /// When its answer went out, or the caller hung up. Absent while it runs.
    pub ended: Option<u64>,
    /// The status answered. Absent while it runs and where the caller hung up.
    pub answered: Option<u16>,
}

impl Seen {
    /// Whether the answer leaves nothing to repeat: a result, or a refusal for good.
    fn is_final(&self) -> bool {
        self.answered.is_some_and(|status| matches!(status, 200..=299 | 400..=428 | 430..=499))
    }

    fn end(&self) -> u64 {
        self.ended.unwrap_or(u64::MAX)
    }
}

/// A count for each side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct BySide {
    /// On Temporal.
    pub temporal: u64,
    /// On Postgres.
    pub postgres: u64,
}

impl BySide {
    fn add(&mut self, side: Side) {
        match side {
            Side::Temporal => self.temporal += 1,
            Side::Postgres => self.postgres += 1,
        }
    }
}

/// What a run comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Interactions that callers were told are accepted.
    pub accepted: u64,
    /// Of these, how many each side called the runner for.
    pub executed: BySide,
    /// The same by the stage they were accepted in.
    pub executed_by_stage: BTreeMap<Stage, BySide>,
    /// Every call of the runner, retries included.
    pub calls: u64,
    /// Accepted ones that ended without a final answer because every attempt was used.
    pub used_up: u64,
    /// Accepted ones whose runner call was answered with success more than once; allowed, for execution is at least once.
    pub repeated: u64,
    /// Interactions that were called for without having been accepted in this run.
    pub foreign: u64,
    /// Accepted, but the runner never got to answer it for good, with attempts left.
    pub lost: u64,
    /// Both sides called for the same interaction.
    pub run_on_both_sides: u64,
    /// Called for by a side that is not the owner the caller was told.
    pub run_off_owner: u64,
    /// Members of a series that began while another one was not over.
    pub series_overlaps: u64,
    /// Members of a series that took effect before one that was accepted earlier.
    pub series_out_of_order: u64,
    /// Called for with another account, kind or series than it was accepted with.
    pub altered: u64,
    /// Some of what was counted, in words.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub examples: BTreeMap<&'static str, Vec<String>>,
}

impl Verdict {
    /// Every promise with how often it was broken.
    pub fn promises(&self) -> [(&'static str, u64); 6] {
        [
            ("lost", self.lost),
            ("run on both sides", self.run_on_both_sides),
            ("run off its owner", self.run_off_owner),
            ("series overlaps", self.series_overlaps),
            ("series out of order", self.series_out_of_order),
            ("altered", self.altered),
        ]
    }

    /// Whether every promise was kept.
    pub fn is_clean(&self) -> bool {
        self.promises().iter().all(|(_, count)| *count == 0)
    }

    fn example(&mut self, promise: &'static str, text: impl FnOnce() -> String) {
        let examples = self.examples.entry(promise).or_default();
        if examples.len() < EXAMPLES {
            examples.push(text());
        }
    }
}

/// What the runner saw of one interaction.
struct Story<'a> {
    /// In the order they came in.
    calls: Vec<&'a Seen>,
}

/// From the first call to the end of the last one, and where the last one began. Calls that came with a fence older
/// than one seen before are left out, and a call ends where a later fence begins.
#[derive(Debug, Clone, Copy)]
struct Span {
    id: Uuid,
    start: u64,
    end: u64,
    effect: u64,
}

impl Story<'_> {
    fn is_settled(&self, max_attempts: i32) -> bool {
        self.calls.iter().any(|call| call.is_final()) || self.has_used_up(max_attempts)
    }

    fn has_used_up(&self, max_attempts: i32) -> bool {
        let last = self.calls.iter().find(|call| call.fence.attempt >= max_attempts && call.ended.is_some());
        last.is_some() && !self.calls.iter().any(|call| call.is_final())
    }

    fn ran_on(&self, side: Side) -> bool {
        self.calls.iter().any(|call| call.side == side)
    }

    fn successes(&self) -> usize {
        self.calls.iter().filter(|call| call.answered.is_some_and(|status| status < 300)).count()
    }

    fn span(&self) -> Option<Span> {
        let first = self.calls.first()?;
        let mut span = Span { id: first.id, start: first.started, end: 0, effect: 0 };
        let mut highest = first.fence;
        for (at, call) in self.calls.iter().enumerate() {
            if call.fence < highest {
                continue;
            }
            highest = call.fence;
            let superseded = self.calls[at + 1..].iter().find(|later| later.fence > call.fence);
            span.end = span.end.max(superseded.map_or(call.end(), |later| call.end().min(later.started)));
            span.effect = call.started;
        }
        Some(span)
    }
}

fn stories(calls: &[Seen]) -> HashMap<Uuid, Story<'_>> {
    let mut stories: HashMap<Uuid, Story<'_>> = HashMap::new();
    for call in calls {
        stories.entry(call.id).or_insert_with(|| Story { calls: Vec::new() }).calls.push(call);
    }
    stories.values_mut().for_each(|story| story.calls.sort_by_key(|call| (call.started, call.fence)));
    stories
}

/// The accepted interactions that the runner still has to answer for good.
pub fn unsettled(accepted: &[Accepted], calls: &[Seen]) -> Vec<Uuid> {
    let stories = stories(calls);
    let open = |one: &&Accepted| !stories.get(&one.id).is_some_and(|story| story.is_settled(one.max_attempts));
    accepted.iter().filter(open).map(|one| one.id).collect()
}

/// Counts what was promised against what the runner saw.
pub fn judge(accepted: &[Accepted], calls: &[Seen]) -> Verdict {
    let stories = stories(calls);
    let known: HashMap<Uuid, &Accepted> = accepted.iter().map(|one| (one.id, one)).collect();
    let mut verdict = Verdict { accepted: known.len() as u64, calls: calls.len() as u64, ..Verdict::default() };
    for one in known.values() {
        judge_one(&mut verdict, one, stories.get(&one.id));
    }
    verdict.foreign = stories.keys().filter(|id| !known.contains_key(id)).count() as u64;
    for members in series(&known, &stories).into_values() {
        judge_series(&mut verdict, members);
    }
    verdict
}

fn judge_one(verdict: &mut Verdict, one: &Accepted, story: Option<&Story<'_>>) {
    let Accepted { id, account, kind, owner, stage, .. } = one;
    if !story.is_some_and(|story| story.is_settled(one.max_attempts)) {
        verdict.lost += 1;
        let calls = story.map_or(0, |story| story.calls.len());
        verdict
            .example("lost", || format!("{id} ({account}, {kind}, {stage}, owner {owner}): {calls} calls, none final"));
    }
    let Some(story) = story else { return };
    verdict.used_up += u64::from(story.has_used_up(one.max_attempts));
    verdict.repeated += u64::from(story.successes() > 1);
    for side in Side::ALL.iter().copied().filter(|side| story.ran_on(*side)) {
        verdict.executed.add(side);
        verdict.executed_by_stage.entry(*stage).or_default().add(side);
        if side != *owner {
            verdict.run_off_owner += 1;
            verdict.example("run off its owner", || {
                format!("{id} ({account}, {kind}, {stage}): {side} ran it, {owner} owns it")
            });
        }
    }
    if story.ran_on(Side::Temporal) && story.ran_on(Side::Postgres) {
        verdict.run_on_both_sides += 1;
        let calls: Vec<_> = story.calls.iter().map(|call| format!("{} {}", call.side, call.fence)).collect();
        verdict.example("run on both sides", || format!("{id} ({account}, {kind}, {stage}): {}", calls.join(", ")));
    }
    let altered = |call: &&&Seen| (&call.account, &call.kind, &call.series) != (account, kind, &one.series);
    if let Some(call) = story.calls.iter().find(altered) {
        verdict.altered += 1;
        let came = format!("{} {} {:?}", call.account, call.kind, call.series);
        verdict.example("altered", || format!("{id}: accepted as {account} {kind} {:?}, called as {came}", one.series));
    }
}

/// A member's place in the order of acceptance, where it has one, and its span.
type Member = (Option<u64>, Span);

/// The members of each series, by what they were accepted as; foreign ones by what the runner was told.
fn series(known: &HashMap<Uuid, &Accepted>, stories: &HashMap<Uuid, Story<'_>>) -> HashMap<Uuid, Vec<Member>> {
    let mut all: HashMap<Uuid, Vec<Member>> = HashMap::new();
    for (id, story) in stories {
        let (Some(span), Some(call)) = (story.span(), story.calls.first()) else { continue };
        let (seq, account, kind, series) = match known.get(id) {
            Some(one) => (Some(one.seq), &one.account, &one.kind, &one.series),
            None => (None, &call.account, &call.kind, &call.series),
        };
        if let Some(series) = series {
            all.entry(series_id(account, kind, series)).or_default().push((seq, span));
        }
    }
    all
}

fn judge_series(verdict: &mut Verdict, mut members: Vec<Member>) {
    members.sort_by_key(|(_, span)| (span.start, span.end));
    let mut longest: Option<Span> = None;
    for (_, span) in &members {
        if let Some(before) = longest.filter(|before| span.start < before.end) {
            verdict.series_overlaps += 1;
            verdict.example("series overlaps", || {
                format!("{} began at {} us, {} was not over before {} us", span.id, span.start, before.id, before.end)
            });
        }
        longest = longest.into_iter().chain([*span]).max_by_key(|span| span.end);
    }
    let mut ordered: Vec<(u64, Span)> = members.into_iter().filter_map(|(seq, span)| Some((seq?, span))).collect();
    ordered.sort_by_key(|(seq, _)| *seq);
    let mut latest: Option<Span> = None;
    for (_, span) in ordered {
        if let Some(before) = latest.filter(|before| span.effect < before.effect) {
            verdict.series_out_of_order += 1;
            verdict.example("series out of order", || {
                format!(
                    "{} took effect at {} us, {} (accepted earlier) at {} us",
                    span.id, span.effect, before.id, before.effect
                )
            });
        } else {
            latest = Some(span);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A run in which nothing goes wrong: the members of two series and some without, one after the other, with
    /// failed attempts in between and each on its owner.
    fn sound(shape: &[(u8, bool, u8)]) -> (Vec<Accepted>, Vec<Seen>) {
        let (mut accepted, mut calls, mut now) = (Vec::new(), Vec::new(), 0);
        for (seq, (lane, on_postgres, failures)) in shape.iter().enumerate() {
            let stage = if *on_postgres { Stage::Live } else { Stage::Shadow };
            let series: Option<Arc<str>> = (lane % 3 > 0).then(|| format!("s{}", lane % 3).into());
            let one = Accepted {
                id: Uuid::from_u128(seq as u128 + 1),
                account: "a".into(),
                kind: "k".into(),
                series,
                seq: seq as u64,
                owner: stage.owner(),
                stage,
                max_attempts: 3,
            };
            for attempt in 1..=i32::from(failures % 4).min(2) + 1 {
                let answered = Some(if attempt <= i32::from(failures % 4) { 500 } else { 200 });
                calls.push(call(&one, attempt, now, now + 10, answered));
                now += 10 + u64::from(failures % 2);
            }
            accepted.push(one);
        }
        (accepted, calls)
    }

    fn call(one: &Accepted, attempt: i32, started: u64, ended: u64, answered: Option<u16>) -> Seen {
        let fence = Fence { epoch: 1, attempt };
        let Accepted { id, account, kind, series, owner, .. } = one.clone();
        Seen { id, account, kind, series, side: owner, fence, started, ended: Some(ended), answered }
    }

    fn broken(verdict: &Verdict) -> Vec<(&'static str, u64)> {
        verdict.promises().into_iter().filter(|(_, count)| *count > 0).collect()
    }

    fn shape() -> impl Strategy<Value = Vec<(u8, bool, u8)>> {
        prop::collection::vec(any::<(u8, bool, u8)>(), 1..40)
    }

    /// At least two members of the first series, the second right after the first.
    fn pair(shape: Vec<(u8, bool, u8)>) -> Vec<(u8, bool, u8)> {
        [vec![(1, true, 0), (1, true, 0)], shape].concat()
    }

    proptest! {
        #[test]
        fn a_run_one_after_the_other_is_clean(shape in shape()) {
            let (accepted, calls) = sound(&shape);
            let verdict = judge(&accepted, &calls);
            prop_assert_eq!(broken(&verdict), []);
            prop_assert!(unsettled(&accepted, &calls).is_empty());
            prop_assert_eq!(verdict.executed.temporal + verdict.executed.postgres, verdict.accepted);
        }

        #[test]
        fn a_call_that_never_came_is_a_loss_and_nothing_else(shape in shape(), at: prop::sample::Index) {
            let (accepted, mut calls) = sound(&shape);
            let gone = accepted[at.index(accepted.len())].id;
            calls.retain(|call| call.id != gone);
            prop_assert_eq!(broken(&judge(&accepted, &calls)), [("lost", 1)]);
            prop_assert_eq!(unsettled(&accepted, &calls), [gone]);
        }

        #[test]
        fn the_order_in_which_calls_were_noted_does_not_matter(shape in shape(), seed: u64) {
            let (accepted, mut calls) = sound(&shape);
            let verdict = judge(&accepted, &calls);
            calls.sort_by_key(|call| call.id.as_u128().wrapping_mul(u128::from(seed | 1)).wrapping_add(call.started.into()));
            prop_assert_eq!(judge(&accepted, &calls), verdict);
        }

        #[test]
        fn a_member_that_begins_too_early_is_an_overlap_and_nothing_else(shape in shape()) {
            let (accepted, mut calls) = sound(&pair(shape));
            calls[1].started = calls[0].started + 1;
            prop_assert_eq!(broken(&judge(&accepted, &calls)), [("series overlaps", 1)]);
        }

        #[test]
        fn two_members_that_changed_places_are_out_of_order_and_nothing_else(shape in shape()) {
            let (accepted, mut calls) = sound(&pair(shape));
            let (first, second) = ((calls[0].started, calls[0].ended), (calls[1].started, calls[1].ended));
            (calls[0].started, calls[0].ended) = second;
            (calls[1].started, calls[1].ended) = first;
            prop_assert_eq!(broken(&judge(&accepted, &calls)), [("series out of order", 1)]);
        }
    }

    #[test]
    fn an_attempt_of_the_other_side_is_run_on_both() {
        let (accepted, mut calls) = sound(&[(0, true, 0)]);
        let mut other = call(&accepted[0], 2, 50, 60, Some(200));
        other.side = Side::Temporal;
        calls.push(other);
        let verdict = judge(&accepted, &calls);
        assert_eq!(broken(&verdict), [("run on both sides", 1), ("run off its owner", 1)]);
        assert_eq!(verdict.executed, BySide { temporal: 1, postgres: 1 });
        assert_eq!(verdict.repeated, 1);
    }

    #[test]
    fn a_member_between_two_attempts_of_another_is_an_overlap_and_out_of_order() {
        let (accepted, mut calls) = sound(&[(1, true, 0), (1, true, 0)]);
        calls[0].answered = Some(500);
        calls.push(call(&accepted[0], 2, 40, 50, Some(200)));
        let verdict = judge(&accepted, &calls);
        assert_eq!(broken(&verdict), [("series overlaps", 1), ("series out of order", 1)]);
    }

    #[test]
    fn a_call_that_a_later_fence_superseded_no_longer_counts() {
        let (accepted, mut calls) = sound(&[(1, true, 0), (1, true, 0)]);
        // The first member's worker died: its call goes on for ever, the second attempt ends before the other member.
        (calls[0].ended, calls[0].answered) = (None, None);
        calls.insert(1, call(&accepted[0], 2, 4, 6, Some(200)));
        assert_eq!(broken(&judge(&accepted, &calls)), []);
        // And where the dead one's call only comes in now, it comes with an old fence.
        calls.push(call(&accepted[0], 1, 12, 99, Some(200)));
        assert_eq!(broken(&judge(&accepted, &calls)), []);
    }

    #[test]
    fn what_used_all_its_attempts_is_not_lost_and_what_has_some_left_is() {
        let (accepted, calls) = sound(&[(0, false, 3)]);
        let verdict = judge(&accepted, &calls);
        assert_eq!((verdict.lost, verdict.used_up), (0, 1));
        assert_eq!(judge(&accepted, &calls[..2]).lost, 1);
    }

    #[test]
    fn a_throttled_call_is_not_final_and_a_refused_one_is() {
        let (accepted, mut calls) = sound(&[(0, false, 0)]);
        calls[0].answered = Some(429);
        assert_eq!(judge(&accepted, &calls).lost, 1);
        calls[0].answered = Some(422);
        assert_eq!(judge(&accepted, &calls).lost, 0);
    }

    #[test]
    fn a_call_for_another_series_than_accepted_is_altered() {
        let (accepted, mut calls) = sound(&[(1, true, 0)]);
        calls[0].series = None;
        assert_eq!(broken(&judge(&accepted, &calls)), [("altered", 1)]);
    }

    #[test]
    fn what_this_run_did_not_enqueue_is_told_but_breaks_nothing() {
        let (accepted, calls) = sound(&[(1, true, 0), (2, true, 0)]);
        let verdict = judge(&accepted[..1], &calls);
        assert_eq!((verdict.foreign, verdict.is_clean()), (1, true));
    }
}
