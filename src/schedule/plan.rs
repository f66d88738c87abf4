//! What a schedule that is due does now: what is enqueued, what is skipped and why, and when it is looked at again. Pure, so
//! that it can be tested without waiting, and so that every scheduler comes to the same answer.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::times::{Times, jittered};
use crate::interaction::names;

names! {
    /// What becomes of a run that is due while an earlier one has not ended.
    Overlap {
        /// It is skipped.
        Skip = "skip",
        /// One waits; further ones are skipped.
        QueueOne = "queue_one",
        /// All wait, up to a bound.
        QueueAll = "queue_all",
        /// The earlier one is cancelled, and it runs once that has ended.
        CancelOld = "cancel_old",
        /// None is due: the next time counts from the end of the last run.
        AfterLast = "after_last",
    }
}

names! {
    /// What becomes of times that nobody was there for.
    CatchUp {
        /// The latest of them runs.
        Latest = "latest",
        /// All of them run, oldest first.
        All = "all",
    }
}

names! {
    /// Why a time was skipped.
    Reason {
        /// An earlier run had not ended.
        Overlap = "overlap",
        /// As many runs wait as may.
        QueueFull = "queue_full",
        /// It was found later than the catch-up window allows.
        Missed = "missed",
        /// A later time was found with it, and only the latest runs.
        Superseded = "superseded",
        /// The schedule was paused.
        Paused = "paused",
    }
}

/// So many runs of a schedule are unended at most.
pub const MOST_UNENDED: usize = 1_000;
/// So many runs of a schedule are enqueued in one look at most; the rest follows in the next ones.
pub const AT_A_TIME: usize = 100;
/// Whoever cancels what is old looks again after so long.
const CANCELLING: TimeDelta = TimeDelta::milliseconds(50);
/// Whoever waits for the end of a run looks after a tenth of the time that it has taken, within these.
const SOONEST: TimeDelta = TimeDelta::milliseconds(200);
const LATEST: TimeDelta = TimeDelta::seconds(15);

/// A schedule as it stands when it is looked at.
#[derive(Debug, Clone)]
pub struct Standing<'a> {
    /// Which.
    pub id: Uuid,
    /// When it fires.
    pub times: &'a Times,
    /// If a run is under way.
    pub overlap: Overlap,
    /// If nobody was there.
    pub catch_up: CatchUp,
    /// How late a time may be found and still run.
    pub window: TimeDelta,
    /// By how much runs are delayed at most.
    pub jitter: TimeDelta,
    /// The next nominal time; none where there is no more, or where it counts from the end of the last run.
    pub nominal: Option<DateTime<Utc>>,
    /// What was triggered and has not run yet, by token.
    pub triggers: &'a [String],
    /// Its unended runs.
    pub unended: usize,
    /// Whether all of those are being cancelled.
    pub cancelling: bool,
    /// When its last run was enqueued.
    pub last_at: Option<DateTime<Utc>>,
    /// When that ended.
    pub last_end: Option<DateTime<Utc>>,
    /// Nothing is due; only what is triggered runs.
    pub paused: bool,
    /// So many runs of it may be enqueued in this look: at least one.
    pub most: usize,
    /// The database's clock.
    pub now: DateTime<Utc>,
}

/// What it does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// What is enqueued, in this order.
    pub runs: Vec<Due>,
    /// What is not.
    pub skipped: Vec<Skipped>,
    /// First, its unended runs are cancelled: nothing is enqueued before.
    pub cancel: bool,
    /// Triggers that wait on.
    pub triggers: Vec<String>,
    /// The next nominal time.
    pub nominal: Option<DateTime<Utc>>,
    /// When to look again; none: never.
    pub wake_at: Option<DateTime<Utc>>,
}

/// What a run is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// A nominal time.
    Time(DateTime<Utc>),
    /// A token.
    Trigger(String),
}

/// Times in a row, or a trigger, that were skipped for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The first; none for a trigger.
    pub from: Option<DateTime<Utc>>,
    /// The last; the same for a single one.
    pub to: Option<DateTime<Utc>>,
    /// How many; by a clock, 100 may be more.
    pub times: i64,
    /// Why.
    pub reason: Reason,
}

impl Standing<'_> {
    /// What it does now.
    pub fn plan(&self) -> Plan {
        let plan = self.once_cancelled();
        let cancel = self.overlap == Overlap::CancelOld && self.unended > 0 && !self.cancelling;
        if cancel && !plan.runs.is_empty() {
            let wake_at = Some(self.now + CANCELLING);
            let (triggers, nominal) = (self.triggers.to_vec(), self.nominal);
            return Plan { cancel, triggers, nominal, wake_at, ..Plan::default() };
        }
        plan
    }

    /// The same, where what must be cancelled first has been.
    fn once_cancelled(&self) -> Plan {
        if self.overlap == Overlap::AfterLast && self.unended > 0 {
            return self.wait_for_the_end(Plan { triggers: self.triggers.to_vec(), ..Plan::default() });
        }
        let nominal = self.nominal_now();
        let (mut plan, mut room) = (Plan::default(), self.room());
        for token in self.triggers {
            match room.checked_sub(1) {
                Some(_) if plan.runs.len() >= self.most => plan.triggers.push(token.clone()),
                Some(left) => {
                    room = left;
                    plan.runs.push(Due::Trigger(token.clone()));
                }
                None => plan.skipped.push(Skipped { from: None, to: None, times: 1, reason: self.full() }),
            }
        }
        plan.nominal = nominal;
        if !plan.triggers.is_empty() {
            return Plan { wake_at: Some(self.now), ..plan };
        }
        if self.paused {
            return plan;
        }
        if self.overlap == Overlap::AfterLast && !plan.runs.is_empty() {
            return self.wait_for_the_end(plan);
        }
        if let Some(first) = nominal.filter(|first| self.fires(*first) <= self.now) {
            self.fire(first, room, &mut plan);
            if self.overlap == Overlap::AfterLast && !plan.runs.is_empty() {
                return self.wait_for_the_end(plan);
            }
        }
        // What is left to catch up comes after what others have due by now.
        plan.wake_at = plan.nominal.map(|next| self.fires(next).max(self.now));
        plan
    }

    /// The next nominal time, once it can be known.
    fn nominal_now(&self) -> Option<DateTime<Utc>> {
        match (self.nominal, self.overlap) {
            (None, Overlap::AfterLast) => self.times.after_end(self.last_end.unwrap_or(self.now)),
            (nominal, _) => nominal,
        }
    }

    fn wait_for_the_end(&self, plan: Plan) -> Plan {
        let since = self.last_at.filter(|_| self.unended > 0).map_or(TimeDelta::zero(), |at| self.now - at);
        let wake_at = Some(self.now + (since / 10).clamp(SOONEST, LATEST));
        Plan { nominal: None, wake_at, ..plan }
    }

    /// How many more runs may be unended.
    fn room(&self) -> usize {
        match self.overlap {
            Overlap::Skip | Overlap::AfterLast => 1_usize.saturating_sub(self.unended),
            Overlap::QueueOne => 2_usize.saturating_sub(self.unended),
            Overlap::QueueAll => MOST_UNENDED.saturating_sub(self.unended),
            // What is there is being cancelled; some work takes its time to end.
            Overlap::CancelOld => usize::from(!self.cancelling || self.unended < MOST_UNENDED),
        }
    }

    fn full(&self) -> Reason {
        let full = self.overlap == Overlap::QueueAll || self.unended >= MOST_UNENDED;
        if full { Reason::QueueFull } else { Reason::Overlap }
    }

    /// When a nominal time is fired.
    fn fires(&self, nominal: DateTime<Utc>) -> DateTime<Utc> {
        jittered(self.id, nominal, self.jitter)
    }

    /// Enqueues or skips what is due from `first` on.
    fn fire(&self, first: DateTime<Utc>, room: usize, plan: &mut Plan) {
        let most = self.most.min(AT_A_TIME).saturating_sub(plan.runs.len());
        let (due, next) = self.due(first, room.min(most), &mut plan.skipped);
        plan.nominal = next;
        if let Some(from) = next.filter(|next| due.len() >= room && self.fires(*next) <= self.now) {
            let last = self.last_fired(from, self.now);
            skip(&mut plan.skipped, from, last, self.times.count(from, last), self.full());
            plan.nominal = self.times.after(last);
        }
        plan.runs.extend(due.into_iter().map(Due::Time));
    }

    /// The first `most` times from `first` on that are due and may run, oldest first, and the time after them. What is skipped
    /// for its age is told, and counted no further than it is worth.
    fn due(
        &self,
        first: DateTime<Utc>,
        most: usize,
        skipped: &mut Vec<Skipped>,
    ) -> (Vec<DateTime<Utc>>, Option<DateTime<Utc>>) {
        let oldest = self.now - self.window - TimeDelta::milliseconds(1);
        let mut at = Some(first);
        if self.fires(first) <= oldest {
            // `first` may be of an older definition, so it is told for itself.
            let last = self.last_fired(first, oldest);
            skip(skipped, first, last, self.times.count(first, last), Reason::Missed);
            at = self.times.after(last);
        }
        // Only one of them can run: of these, the latest is worth it.
        let latest =
            self.catch_up == CatchUp::Latest || matches!(self.overlap, Overlap::CancelOld | Overlap::AfterLast);
        if let (true, Some(from)) = (latest, at) {
            let last = self.last_fired(from, self.now);
            if last > from {
                let before =
                    self.times.until(last - TimeDelta::milliseconds(1)).filter(|before| *before > from).unwrap_or(from);
                skip(skipped, from, before, self.times.count(from, before), Reason::Superseded);
                at = Some(last);
            }
        }
        let mut due = Vec::new();
        while let Some(time) = at.filter(|time| due.len() < most && self.fires(*time) <= self.now) {
            due.push(time);
            at = self.times.after(time);
        }
        (due, at)
    }

    /// The last time after `from` that is fired until `instant`; else `from`.
    fn last_fired(&self, from: DateTime<Utc>, instant: DateTime<Utc>) -> DateTime<Utc> {
        let mut last = self.times.until(instant);
        while let Some(time) = last.filter(|time| *time > from) {
            if self.fires(time) <= instant {
                return time;
            }
            last = self.times.until(time - TimeDelta::milliseconds(1));
        }
        from
    }
}

/// Adds to what is skipped; what follows for the same reason is told together.
pub(super) fn skip(skipped: &mut Vec<Skipped>, from: DateTime<Utc>, to: DateTime<Utc>, times: i64, reason: Reason) {
    match skipped.last_mut() {
        Some(last) if last.reason == reason && last.from.is_some() => {
            (last.to, last.times) = (Some(to), last.times.saturating_add(times));
        }
        _ => skipped.push(Skipped { from: Some(from), to: Some(to), times, reason }),
    }
}

/// What a pause has passed over, from the next nominal time that there was to `now`; and the next one then.
pub fn passed_over(
    times: &Times,
    nominal: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> (Option<Skipped>, Option<DateTime<Utc>>) {
    let Some(first) = nominal.filter(|first| *first <= now) else { return (None, nominal) };
    let last = times.until(now).filter(|last| *last > first).unwrap_or(first);
    let counted = times.count(first, last);
    let skipped = Skipped { from: Some(first), to: Some(last), times: counted, reason: Reason::Paused };
    (Some(skipped), times.after(now))
}

#[cfg(test)]
mod tests;
