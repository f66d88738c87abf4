//! The memory of a series: what waits, what runs, what was there before. Pure, and small enough to be carried
//! through continue-as-new.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::interaction::{Envelope, Outcome, Side};

use super::ledger::End;

/// Keys remembered at most: a megabyte of the two that Temporal takes as an input.
const REMEMBER: usize = 12_000;

/// What an envelope weighs beside its payload, about.
const ENVELOPE_WEIGHT: usize = 4_000;
/// The epoch of what has no pin.
const UNPINNED: i32 = 1;
const LATE: &str = "it ended before it was pinned; its result wasn't kept";

/// One step of the series.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// A copy to run or to rehearse.
    Run(Box<Envelope>),
    /// A copy that ended unpinned and has been pinned since.
    Settle(Box<End>),
}

/// Among which of those that wait one finds its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    /// All, as in histories of before: where one with a later number was called off, it came before those with earlier ones.
    All,
    /// Those that still have their turn.
    InTurn,
}

/// When it ended (absent: it hasn't), how, for one that ended unpinned, and the head of its payload's hash.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Memory(Option<i64>, Option<(Outcome, i32)>, String);

/// See the module.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Backlog {
    pending: VecDeque<Work>,
    #[serde(skip)]
    running: Option<Envelope>,
    remembered: BTreeMap<String, Memory>,
    /// Forgotten before the window had passed, for want of room.
    pub forgotten_early: u64,
}

impl Backlog {
    /// Takes a copy, unless it is a repeat. A pinned repeat of an unpinned copy makes that one pinned; one that carries
    /// other work under the same key fails, for it will never run.
    /// A cancelled one that is not known yet is taken like any other, and never runs.
    pub fn accept(&mut self, envelope: Envelope) {
        if self.has_later_epoch(&envelope) {
            return;
        }
        let hash = hash_head(&envelope);
        if envelope.cancelled && self.remembered.contains_key(&name(&envelope)) {
            return self.call_off(&envelope);
        }
        match self.remembered.get_mut(&name(&envelope)) {
            None => {
                self.remembered.insert(name(&envelope), Memory(None, None, hash));
                self.pending.push_back(Work::Run(Box::new(envelope)));
            }
            Some(memory) if envelope.pinned && memory.2 != hash => {
                let reason = "its key came before, unpinned, with another payload";
                self.settle(late_end(&envelope, Outcome::Failed, 0, reason));
            }
            Some(memory) if envelope.pinned => match memory.1.take() {
                Some((outcome, attempt)) => {
                    self.settle(late_end(&envelope, outcome, attempt, LATE));
                }
                // What Postgres owns is no pin of the copy that came without one: that asks before it runs, and never does.
                None if envelope.owner == Side::Temporal => self.adopt(&envelope),
                None => {}
            },
            Some(_) => {}
        }
    }

    /// Takes the copy of what was handed over: in place of the copy of an earlier epoch, and before what waits with a later
    /// number. True where that whose turn it is must give way to it, if it can: it has a later number, or is the old copy.
    pub fn hand_over(&mut self, envelope: Envelope, among: Among) -> bool {
        if self.remembered.contains_key(&name(&envelope)) || self.has_later_epoch(&envelope) {
            self.accept(envelope);
            return false;
        }
        let older = |work: &Work| matches!(work, Work::Run(e) if e.id == envelope.id && e.epoch < envelope.epoch);
        for epoch in 1..envelope.epoch {
            self.remembered.remove(&name_of(envelope.id, epoch));
        }
        self.pending.retain(|work| !older(work));
        self.remembered.insert(name(&envelope), Memory(None, None, hash_head(&envelope)));
        let gives_way = self.running.as_ref().is_some_and(|r| r.id == envelope.id || follows(r, &envelope));
        self.insert(envelope, among);
        gives_way
    }

    /// Puts that whose turn it is back, for it has not begun and an earlier one came. False where it is to end: it was called
    /// off, or another copy has taken its place.
    pub fn put_back(&mut self, among: Among) -> bool {
        let Some(running) = self.running.take_if(|r| !r.cancelled) else { return false };
        if self.has_later_epoch(&running) {
            self.running = Some(running);
            return false;
        }
        self.insert(running, among);
        true
    }

    /// Puts it before the first that has a later number. What was called off goes out of its turn, so that it says nothing of
    /// where the others are.
    fn insert(&mut self, envelope: Envelope, among: Among) {
        let counts = |e: &Envelope| among == Among::All || !e.cancelled;
        let later = |work: &Work| matches!(work, Work::Run(e) if counts(e) && follows(e, &envelope));
        let at = self.pending.iter().position(later).unwrap_or(self.pending.len());
        self.pending.insert(at, Work::Run(Box::new(envelope)));
    }

    /// Whether a later copy of the same interaction came before this one: then this one is late. An epoch is a handover,
    /// and there are few of an interaction.
    fn has_later_epoch(&self, envelope: &Envelope) -> bool {
        (envelope.epoch + 1..=envelope.epoch + 4)
            .any(|epoch| self.remembered.contains_key(&name_of(envelope.id, epoch)))
    }

    /// That whose turn it is was called off: it is not put back.
    pub fn call_off_running(&mut self) {
        if let Some(running) = &mut self.running {
            running.cancelled = true;
        }
    }

    /// Whether that whose turn it is runs nothing.
    pub fn is_rehearsing(&self) -> bool {
        self.running.as_ref().is_some_and(|running| !running.executes_on(Side::Temporal))
    }

    /// Whether the copy is the one whose turn it is.
    pub fn is_running(&self, envelope: &Envelope) -> bool {
        self.running.as_ref().is_some_and(|running| running.id == envelope.id && running.epoch == envelope.epoch)
    }

    /// Calls off what waits; it runs nothing, so it goes first and its end is known soon.
    fn call_off(&mut self, envelope: &Envelope) {
        let same = |work: &Work| matches!(work, Work::Run(e) if e.id == envelope.id && e.epoch == envelope.epoch);
        let at = self.pending.iter().position(same);
        if let Some(Work::Run(mut known)) = at.and_then(|at| self.pending.remove(at)) {
            known.cancelled = true;
            known.pinned |= envelope.pinned;
            self.pending.push_front(Work::Run(known));
        }
    }

    fn settle(&mut self, end: End) {
        self.pending.push_back(Work::Settle(Box::new(end)));
    }

    fn adopt(&mut self, pinned: &Envelope) {
        self.own(pinned.id, pinned.epoch);
    }

    fn own(&mut self, id: uuid::Uuid, epoch: i32) {
        let waiting = self.pending.iter_mut().filter_map(|work| match work {
            Work::Run(envelope) => Some(&mut **envelope),
            Work::Settle(_) => None,
        });
        let known = waiting.chain(&mut self.running).find(|e| e.id == id && e.epoch == epoch);
        if let Some(known) = known {
            known.pinned = true;
        }
    }

    /// Those that wait or run without a pin, the one that runs first, without the first `skip`: as many as `most` bytes take,
    /// and one at least.
    pub fn unpinned(&self, skip: usize, most: usize) -> Vec<Envelope> {
        let waiting = self.pending.iter().filter_map(|work| match work {
            Work::Run(envelope) => Some(&**envelope),
            Work::Settle(_) => None,
        });
        let mut weight = 0;
        let fits = |envelope: &&Envelope| {
            let first = weight == 0;
            weight += ENVELOPE_WEIGHT + envelope.payload.get().len();
            first || weight <= most
        };
        let unpinned = self.running.iter().chain(waiting).filter(|envelope| !envelope.pinned);
        unpinned.skip(skip).take_while(fits).cloned().collect()
    }

    /// These have a pin now. One that has ended meanwhile has its end settled.
    pub fn adopt_all(&mut self, ids: &[uuid::Uuid]) {
        for id in ids {
            let ended = self.remembered.get_mut(&name_of(*id, UNPINNED)).and_then(|memory| memory.1.take());
            if let Some((outcome, attempt)) = ended {
                let reason = Some(LATE.to_owned());
                let (attempt_report, lost) = (None, false);
                self.settle(End { id: *id, epoch: UNPINNED, outcome, attempt, reason, attempt_report, lost });
            }
            self.own(*id, UNPINNED);
        }
    }

    /// What runs has a pin after all.
    pub fn adopt_running(&mut self) {
        if let Some(running) = &mut self.running {
            running.pinned = true;
        }
    }

    /// Keys that are remembered of what has ended.
    pub fn remembers(&self) -> usize {
        self.remembered.values().filter(|memory| memory.0.is_some()).count()
    }

    /// The head of the queue, which runs from now on.
    pub fn begin(&mut self) -> Option<Work> {
        let work = self.pending.pop_front()?;
        if let Work::Run(envelope) = &work {
            self.running = Some((**envelope).clone());
        }
        Some(work)
    }

    /// Whether what runs has a pin.
    pub fn running_is_pinned(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.pinned)
    }

    /// What ran has ended.
    pub fn finish(&mut self, now: i64, outcome: Option<Outcome>, attempt: i32) {
        let Some(done) = self.running.take() else { return };
        let how = outcome.filter(|_| !done.pinned).map(|outcome| (outcome, attempt));
        self.remembered.insert(name(&done), Memory(Some(now), how, hash_head(&done)));
    }

    /// Forgets what ended before `since`, and the oldest of what is too much.
    pub fn forget(&mut self, since: i64) {
        self.remembered.retain(|_, memory| memory.0.is_none_or(|at| at > since));
        let excess = self.remembered.len().saturating_sub(REMEMBER);
        if excess == 0 {
            return;
        }
        let mut ended: Vec<_> = self.remembered.iter().filter_map(|(k, m)| Some((m.0?, k.clone()))).collect();
        ended.sort();
        for (_, key) in ended.into_iter().take(excess) {
            self.remembered.remove(&key);
            self.forgotten_early += 1;
        }
    }

    /// Nothing waits.
    pub fn is_drained(&self) -> bool {
        self.pending.is_empty()
    }

    /// What it weighs as the next run's input, in bytes.
    pub fn weight(&self) -> usize {
        serde_json::to_vec(self).map_or(usize::MAX, |text| text.len())
    }

    /// For the query.
    pub fn status(&self) -> SeriesStatus {
        let waiting = self.pending.iter().filter_map(|work| match work {
            Work::Run(envelope) => Some(Member::from(&**envelope)),
            Work::Settle(_) => None,
        });
        SeriesStatus {
            pending: waiting.collect(),
            running: self.running.as_ref().map(Member::from),
            remembered: self.remembered.keys().cloned().collect(),
            forgotten_early: self.forgotten_early,
        }
    }
}

/// What a series has and had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeriesStatus {
    /// In order.
    pub pending: Vec<Member>,
    /// At most one at a time.
    pub running: Option<Member>,
    /// [`name`]s of all that it knows, the pending and running ones included.
    pub remembered: Vec<String>,
    /// How many were forgotten before the window had passed.
    pub forgotten_early: u64,
}

/// An interaction in a series.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The interaction.
    pub id: uuid::Uuid,
    /// Its epoch.
    pub epoch: i32,
    /// The caller's key.
    pub key: String,
    /// Whether it has a pin.
    pub pinned: bool,
}

impl From<&Envelope> for Member {
    fn from(envelope: &Envelope) -> Self {
        Self { id: envelope.id, epoch: envelope.epoch, key: envelope.key.clone(), pinned: envelope.pinned }
    }
}

/// Half of SHA-256 over `id:epoch`, in hex.
pub fn name(envelope: &Envelope) -> String {
    name_of(envelope.id, envelope.epoch)
}

/// The name of its copy under another epoch.
fn name_of(id: uuid::Uuid, epoch: i32) -> String {
    let digest = Sha256::digest(format!("{id}:{epoch}"));
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Whether `one` has a later number in the series than `other`. What came without a pin has none here and follows nobody: it
/// was accepted before its account was armed, and so before all that can be handed over. Should it have to ask its pin, it
/// does not wait there for what was handed over either.
fn follows(one: &Envelope, other: &Envelope) -> bool {
    one.series_no.zip(other.series_no).is_some_and(|(one, other)| one > other)
}

fn late_end(envelope: &Envelope, outcome: Outcome, attempt: i32, reason: &str) -> End {
    let reason = Some(reason.to_owned());
    End { id: envelope.id, epoch: envelope.epoch, outcome, attempt, reason, attempt_report: None, lost: false }
}

fn hash_head(envelope: &Envelope) -> String {
    envelope.payload_hash.chars().take(8).collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::interaction::{Payload, Side, interaction_id};
    use crate::policy::Policy;

    fn envelope(key: &str, pinned: bool) -> Envelope {
        Envelope {
            id: interaction_id("a", key),
            account: "a".into(),
            kind: "k".into(),
            key: key.into(),
            series: Some("s".into()),
            series_no: None,
            group: None,
            run_at: None,
            policy: Policy::default(),
            owner: Side::Temporal,
            epoch: 1,
            pinned,
            cancelled: false,
            payload_hash: String::new(),
            behind: vec![],
            payload: Payload::parse("1.10".into()).unwrap(),
        }
    }

    fn keys(backlog: &Backlog) -> Vec<String> {
        backlog.status().pending.into_iter().map(|member| member.key).collect()
    }

    #[test]
    fn it_keeps_the_order_of_arrival_and_takes_a_copy_once() {
        let mut backlog = Backlog::default();
        for key in ["b", "a", "b", "c"] {
            backlog.accept(envelope(key, true));
        }
        assert_eq!(keys(&backlog), ["b", "a", "c"]);
        backlog.begin();
        backlog.accept(envelope("b", true));
        backlog.finish(5, Some(Outcome::Succeeded), 1);
        backlog.accept(envelope("b", true));
        assert_eq!(keys(&backlog), ["a", "c"]);
    }

    #[test]
    fn it_forgets_what_ended_before_the_window_and_never_what_has_not_ended() {
        let mut backlog = Backlog::default();
        backlog.accept(envelope("a", true));
        backlog.accept(envelope("b", true));
        backlog.begin();
        backlog.finish(5, None, 0);
        backlog.forget(4);
        assert_eq!(backlog.status().remembered.len(), 2);
        backlog.forget(5);
        assert_eq!(backlog.status().remembered, [name(&envelope("b", true))]);
    }

    #[test]
    fn a_pinned_repeat_adopts_a_copy_that_waits_or_runs_or_has_ended() {
        let mut backlog = Backlog::default();
        backlog.accept(envelope("a", false));
        backlog.accept(envelope("a", true));
        backlog.begin();
        assert!(backlog.running_is_pinned());
        backlog.finish(1, Some(Outcome::Succeeded), 1);

        backlog.accept(envelope("b", false));
        backlog.begin();
        assert!(!backlog.running_is_pinned());
        backlog.finish(2, Some(Outcome::Failed), 3);
        backlog.accept(envelope("b", true));
        backlog.accept(envelope("b", true));
        match backlog.begin() {
            Some(Work::Settle(end)) => assert_eq!((end.outcome, end.attempt), (Outcome::Failed, 3)),
            other => panic!("{other:?}"),
        }
        assert!(backlog.is_drained());
    }

    #[test]
    fn a_rehearsal_does_not_adopt_the_copy_that_came_without_a_pin() {
        let mut backlog = Backlog::default();
        backlog.accept(envelope("a", false));
        backlog.accept(Envelope { owner: Side::Postgres, ..envelope("a", true) });
        backlog.begin();
        assert!(!backlog.running_is_pinned(), "it asks before it runs");
    }

    #[test]
    fn other_work_under_a_key_that_came_unpinned_fails_and_does_not_end_as_the_first() {
        let mut backlog = Backlog::default();
        backlog.accept(envelope("a", false));
        backlog.begin();
        let other = Envelope { payload_hash: "0123456789".into(), ..envelope("a", true) };
        backlog.accept(other);
        assert!(!backlog.running_is_pinned());
        backlog.finish(1, Some(Outcome::Succeeded), 1);
        match backlog.begin() {
            Some(Work::Settle(end)) => assert_eq!(end.outcome, Outcome::Failed),
            unexpected => panic!("{unexpected:?}"),
        }
    }

    #[test]
    fn what_waits_is_called_off_first_and_what_is_unknown_when_its_turn_comes() {
        let mut backlog = Backlog::default();
        for key in ["a", "b", "c"] {
            backlog.accept(envelope(key, true));
        }
        backlog.begin();
        let off = |key| Envelope { cancelled: true, ..envelope(key, true) };
        assert!(backlog.is_running(&off("a")));
        for key in ["a", "c", "d"] {
            backlog.accept(off(key));
        }
        backlog.accept(envelope("d", true));
        let turns: Vec<_> = std::iter::from_fn(|| match backlog.begin()? {
            Work::Run(envelope) => Some((envelope.key.clone(), envelope.cancelled)),
            Work::Settle(_) => None,
        })
        .collect();
        assert_eq!(turns, [("c".into(), true), ("b".into(), false), ("d".into(), true)]);
    }

    fn member(no: i64, epoch: i32, owner: Side) -> Envelope {
        Envelope { series_no: Some(no), epoch, owner, ..envelope(&no.to_string(), true) }
    }

    /// The turns that are left, as number and epoch.
    fn turns(mut backlog: Backlog) -> Vec<(i64, i32)> {
        let mut turns = Vec::new();
        while let Some(work) = backlog.begin() {
            if let Work::Run(envelope) = work {
                turns.push((envelope.series_no.unwrap(), envelope.epoch));
            }
            backlog.finish(1, Some(Outcome::Succeeded), 1);
        }
        turns
    }

    #[test]
    fn what_is_handed_over_takes_the_place_of_its_rehearsal_and_what_came_first_stays_away() {
        let mut backlog = Backlog::default();
        for no in 1..=4 {
            backlog.accept(member(no, 1, Side::Postgres));
        }
        backlog.begin();
        assert!(backlog.is_rehearsing());
        assert!(!backlog.hand_over(member(3, 2, Side::Temporal), Among::InTurn), "the first goes before it");
        assert!(!backlog.hand_over(member(3, 2, Side::Temporal), Among::InTurn), "a repeat");
        backlog.accept(member(3, 1, Side::Postgres));
        assert!(backlog.hand_over(member(1, 2, Side::Temporal), Among::InTurn), "its own rehearsal stands aside");
        assert!(!backlog.put_back(Among::InTurn));
        backlog.finish(1, None, 0);
        assert_eq!(turns(backlog), [(1, 2), (2, 1), (3, 2), (4, 1)]);
    }

    #[test]
    fn what_was_never_delivered_goes_before_those_that_wait_for_it() {
        let mut backlog = Backlog::default();
        backlog.accept(member(6, 1, Side::Temporal));
        backlog.accept(member(8, 1, Side::Temporal));
        backlog.begin();
        assert!(backlog.hand_over(member(5, 2, Side::Temporal), Among::InTurn) && backlog.put_back(Among::InTurn));
        assert!(!backlog.hand_over(member(7, 2, Side::Temporal), Among::InTurn));
        assert_eq!(turns(backlog), [(5, 2), (6, 1), (7, 2), (8, 1)]);
    }

    #[test]
    fn what_was_called_off_out_of_its_turn_takes_nothing_that_is_handed_over_along() {
        let mut backlog = Backlog::default();
        for (no, owner) in [(1, Side::Temporal), (2, Side::Postgres), (3, Side::Temporal)] {
            backlog.accept(member(no, 1, owner));
        }
        backlog.accept(Envelope { cancelled: true, ..member(3, 1, Side::Temporal) });
        assert!(!backlog.hand_over(member(2, 2, Side::Temporal), Among::InTurn));
        assert_eq!(turns(backlog), [(3, 1), (1, 1), (2, 2)]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Arrives(Side),
        NeverArrives,
        CalledOff(i64),
        HandedOver(i64),
        Begins,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            prop_oneof![Just(Side::Temporal), Just(Side::Postgres)].prop_map(Step::Arrives),
            Just(Step::NeverArrives),
            (1..12i64).prop_map(Step::CalledOff),
            (1..12i64).prop_map(Step::HandedOver),
            Just(Step::Begins),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_what_is_not_called_off_waits_in_the_order_of_its_numbers(steps in vec(step(), 1..40)) {
            let (mut backlog, mut last) = (Backlog::default(), 0);
            for step in steps {
                match step {
                    Step::Arrives(owner) => {
                        last += 1;
                        backlog.accept(member(last, 1, owner));
                    }
                    Step::NeverArrives => last += 1,
                    Step::CalledOff(no) if no <= last => {
                        backlog.accept(Envelope { cancelled: true, ..member(no, 1, Side::Temporal) });
                    }
                    Step::HandedOver(no) if no <= last => {
                        if backlog.hand_over(member(no, 2, Side::Temporal), Among::InTurn) && !backlog.put_back(Among::InTurn) {
                            backlog.finish(1, None, 0);
                        }
                    }
                    Step::CalledOff(_) | Step::HandedOver(_) => {}
                    Step::Begins => {
                        backlog.finish(1, Some(Outcome::Succeeded), 1);
                        backlog.begin();
                    }
                }
                let waits: Vec<i64> = backlog.pending.iter().filter_map(|work| match work {
                    Work::Run(e) if !e.cancelled => e.series_no,
                    _ => None,
                }).collect();
                prop_assert!(waits.is_sorted(), "{waits:?}");
            }
        }
    }

    #[test]
    fn what_came_without_a_pin_goes_before_what_is_handed_over() {
        let mut backlog = Backlog::default();
        for key in ["early", "earlier"] {
            backlog.accept(envelope(key, false));
        }
        backlog.accept(member(6, 1, Side::Temporal));
        backlog.begin();
        assert!(
            !backlog.hand_over(member(5, 2, Side::Temporal), Among::InTurn),
            "it was accepted before that had a number"
        );
        assert_eq!(keys(&backlog), ["earlier", "5", "6"]);
    }

    #[test]
    fn what_gives_way_and_is_called_off_ends() {
        let mut backlog = Backlog::default();
        backlog.accept(member(6, 1, Side::Temporal));
        backlog.begin();
        assert!(backlog.hand_over(member(5, 2, Side::Temporal), Among::InTurn));
        backlog.call_off_running();
        assert!(!backlog.put_back(Among::InTurn) && backlog.running_is_pinned());
    }

    #[test]
    fn those_without_a_pin_are_named_in_turn_as_many_as_fit_and_no_more_once_they_are_told() {
        let mut backlog = Backlog::default();
        for (key, pinned) in [("a", false), ("b", true), ("c", false), ("d", false)] {
            backlog.accept(envelope(key, pinned));
        }
        backlog.begin();
        let named =
            |backlog: &Backlog, skip, most| backlog.unpinned(skip, most).into_iter().map(|e| e.key).collect::<Vec<_>>();
        assert_eq!(named(&backlog, 0, 1_000_000), ["a", "c", "d"]);
        assert_eq!(named(&backlog, 0, 1), ["a"], "one at least");
        assert_eq!(named(&backlog, 1, 1_000_000), ["c", "d"]);
        backlog.adopt_all(&[interaction_id("a", "a"), interaction_id("a", "d")]);
        assert_eq!(named(&backlog, 0, 1_000_000), ["c"]);
        assert!(backlog.running_is_pinned());
        assert_eq!(backlog.remembers(), 0);
    }

    #[test]
    fn one_that_ended_before_it_was_told_of_its_pin_settles_once() {
        let mut backlog = Backlog::default();
        backlog.accept(envelope("a", false));
        backlog.begin();
        backlog.finish(1, Some(Outcome::Succeeded), 2);
        for _ in 0..2 {
            backlog.adopt_all(&[interaction_id("a", "a"), interaction_id("a", "unknown")]);
        }
        match backlog.begin() {
            Some(Work::Settle(end)) => assert_eq!((end.outcome, end.attempt), (Outcome::Succeeded, 2)),
            unexpected => panic!("{unexpected:?}"),
        }
        assert!(backlog.is_drained());
    }

    #[test]
    fn it_is_carried_whole_with_every_digit() {
        let mut backlog = Backlog::default();
        backlog.accept(envelope("a", true));
        let text = serde_json::to_vec(&backlog).unwrap();
        let mut back: Backlog = serde_json::from_slice(&text).unwrap();
        back.accept(envelope("a", true));
        match back.begin() {
            Some(Work::Run(envelope)) => assert_eq!(envelope.payload.get(), "1.10"),
            other => panic!("{other:?}"),
        }
        assert!(back.is_drained());
    }

    #[test]
    fn the_oldest_are_forgotten_when_there_are_too_many_and_that_is_counted() {
        let mut backlog = Backlog::default();
        for n in 0..REMEMBER as i64 + 2 {
            backlog.accept(Envelope { payload_hash: "0123456789abcdef".into(), ..envelope(&n.to_string(), false) });
            backlog.begin();
            backlog.finish(1_790_000_000_000 + n, Some(Outcome::Succeeded), 1);
        }
        backlog.forget(-1);
        assert_eq!(backlog.status().remembered.len(), REMEMBER);
        assert_eq!(backlog.forgotten_early, 2);
        assert!(serde_json::to_vec(&backlog).unwrap().len() < 1_000_000);
    }
}
