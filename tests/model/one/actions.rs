//! All that may happen, one step each.

use super::One;
use super::state::State;

/// The stage that a router's flags gave. Any router may hold any revision at any time, so every request may come with
/// every stage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Want {
    Off,
    Shadow,
    Live,
    Complete,
}

/// Routers, workflows (by epoch - 1) and workers are named by index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    // Callers and routers.
    StartUnpinned(usize),
    MarkCommits(usize),
    Pin(usize, Want, bool),
    FailOpen(usize),
    FailOpenWithPinInDoubt(usize),
    DoubtfulPinCommits(usize),
    DoubtfulPinFails(usize),
    StartLands(usize),
    StartAnswered(usize),
    StartLost(usize),
    KeyExpires,
    PinDropped,
    // Delivery.
    Send,
    Arrives(u8),
    Lost(u8),
    Sweep,
    DropRehearsal,
    // Temporal.
    Begin(usize),
    Effect(usize),
    StalledEffect(usize),
    Redeliver(usize),
    Record(usize),
    Settle(usize),
    BecomesVisible,
    Forgotten(usize),
    // Postgres.
    See(usize),
    Claim(usize),
    Run(usize),
    Finish(usize),
    Fail(usize),
    WorkerDies(usize),
    TakeOver,
    // Arming.
    Beat(usize),
    WorkersBeat,
    Flush(usize),
    Drop(usize),
    AnotherIsPinned,
    AnotherIsUnpinned(usize),
    Pinned,
    WindowPasses,
    Unwanted,
    Closed,
    Reconcile,
    Reconciled,
    Disarm,
    Disarmed,
    Crash(usize),
    Restart(usize),
    RestartBlank(usize),
    Forget(usize),
    Stop(usize),
    // Operators.
    Reset(usize),
    Terminate(usize),
    Handover,
    Cancel,
}

use Action::*;

impl Action {
    /// Neither a fault nor somebody from outside. A router that is down is started again, a registration without a
    /// process is forgotten: these are the repairs that an operator is told of.
    pub fn is_progress(&self) -> bool {
        !matches!(
            self,
            StartUnpinned(_)
                | Pin(..)
                | AnotherIsPinned
                | AnotherIsUnpinned(_)
                | FailOpen(_)
                | FailOpenWithPinInDoubt(_)
                | Redeliver(_)
                | WorkerDies(_)
                | Fail(_)
                | Drop(_)
                | Disarm
                | Unwanted
                | Crash(_)
                | Stop(_)
                | DropRehearsal
                | RestartBlank(_)
                | Reset(_)
                | Terminate(_)
                | Handover
                | Cancel
        )
    }
}

impl One {
    /// Takes the step if it can be taken.
    pub(super) fn step(&self, s: &mut State, action: Action) -> bool {
        match action {
            StartUnpinned(r) => self.start_unpinned(s, r),
            MarkCommits(r) => self.mark_commits(s, r),
            Pin(r, want, other) => self.pin(s, r, want, other),
            FailOpen(r) => self.fail_open(s, r, false),
            FailOpenWithPinInDoubt(r) => self.fail_open(s, r, true),
            DoubtfulPinCommits(r) => self.doubtful_pin_commits(s, r),
            DoubtfulPinFails(r) => self.doubtful_pin_fails(s, r),
            StartLands(r) => self.start_lands(s, r),
            StartAnswered(r) => self.start_answered(s, r),
            StartLost(r) => self.start_lost(s, r),
            KeyExpires => self.key_expires(s),
            PinDropped => self.pin_dropped(s),
            Send => self.send(s),
            Arrives(delivery) => self.arrives(s, delivery),
            Lost(delivery) => self.lost(s, delivery),
            Sweep => self.sweep(s),
            DropRehearsal => self.drop_rehearsal(s),
            Begin(e) => self.begin(s, e),
            Effect(e) => self.effect(s, e),
            StalledEffect(e) => self.stalled_effect(s, e),
            Redeliver(e) => self.redeliver(s, e),
            Record(e) => self.record(s, e),
            Settle(e) => self.settle(s, e),
            BecomesVisible => self.becomes_visible(s),
            Forgotten(e) => self.forgotten(s, e),
            See(w) => self.see(s, w),
            Claim(w) => self.claim(s, w),
            Run(w) => self.run(s, w),
            Finish(w) => self.finish(s, w),
            Fail(w) => self.fail(s, w),
            WorkerDies(w) => self.worker_dies(s, w),
            TakeOver => self.take_over(s),
            Beat(r) => self.beat(s, r),
            WorkersBeat => self.workers_beat(s),
            Flush(r) => self.flush(s, r),
            Drop(r) => self.drop_entry(s, r),
            AnotherIsPinned => self.another_is_pinned(s),
            AnotherIsUnpinned(r) => self.another_is_unpinned(s, r),
            Pinned => self.pinned(s),
            WindowPasses => self.window_passes(s),
            Unwanted => self.unwanted(s),
            Closed => self.closed(s),
            Reconcile => self.reconcile(s),
            Reconciled => self.reconciled(s),
            Disarm => self.disarm(s),
            Disarmed => self.disarmed(s),
            Crash(r) => self.crash(s, r),
            Restart(r) => self.restart(s, r),
            RestartBlank(r) => self.restart_blank(s, r),
            Forget(r) => self.forget(s, r),
            Stop(r) => self.stop(s, r),
            Reset(e) => self.reset(s, e),
            Terminate(e) => self.terminate(s, e),
            Handover => self.handover(s),
            Cancel => self.cancel(s),
        }
    }
}
