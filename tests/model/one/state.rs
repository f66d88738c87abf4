//! One interaction of one account, and everything that decides who runs it.
//!
//! Time has no numbers. What may be late may happen at any later step: a message, a look, an answer. So outages and silence need
//! no state: whoever is away does nothing, and a router that thinks Postgres away fails open whenever it likes.

/// Where the account stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Account {
    Open,
    Pinning,
    Window,
    Closing,
    Reconciling,
    Armed,
    Disarming,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    Temporal,
    Postgres,
}

/// What became of a pin.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum End {
    Open,
    Done,
    Failed,
    Cancelled,
}

/// The row in `pins`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Pin {
    pub owner: Side,
    pub epoch: u8,
    pub end: End,
    /// Somebody wants it cancelled.
    pub wish: bool,
    /// Temporal has another copy: nothing of it runs.
    pub held: bool,
    /// Which of two payloads it carries.
    pub other: bool,
}

/// Where the Postgres copy of the owner is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    Nowhere,
    /// With the number of its next attempt.
    Ready(u8),
    /// With the worker and the attempt.
    Running(u8, u8),
}

/// What a Postgres worker believes to hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Hold {
    Nothing,
    /// Seen in `ready`, not claimed: only where a claim is no swap.
    Seen(u8),
    Claimed(u8),
    Ran(u8),
}

/// How far a workflow is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// Never started, or forgotten.
    None,
    Waiting,
    /// An activity was given to a worker; it has not called the runner.
    Claimed,
    /// The runner was called; Temporal does not know the result.
    Ran,
    /// The result is in the history, the pin's end is not.
    Result,
    /// Called off before it began; the pin does not know.
    CalledOff,
    Closed,
    /// It asked its pin and must not run.
    GaveUp,
    Terminated,
}

/// The workflow `id:epoch`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Workflow {
    pub step: Step,
    /// By its envelope: false is a rehearsal.
    pub executes: bool,
    pub pinned: bool,
    pub other: bool,
    pub visible: bool,
    pub reset: bool,
    pub attempt: u8,
    /// An attempt whose worker stalled before it called the runner.
    pub zombie: u8,
}

impl Workflow {
    pub const NONE: Self = Self {
        step: Step::None,
        executes: false,
        pinned: false,
        other: false,
        visible: false,
        reset: false,
        attempt: 1,
        zombie: 0,
    };

    pub fn open(&self) -> bool {
        matches!(self.step, Step::Waiting | Step::Claimed | Step::Ran | Step::Result | Step::CalledOff)
    }
}

/// A start without a pin that a router has under way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Start {
    None,
    /// It asked for the mark; only where that is not one step.
    Asked,
    Off,
    FailOpen,
}

/// What a router keeps on disk of what it failed open.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Spool {
    Empty,
    Entry,
    Dropped,
}

/// What a router may do, from what it knows of the account.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Level {
    /// `off` starts unpinned; it fails open.
    Free,
    /// Everything pins; it fails open.
    Pins,
    /// Everything pins.
    MustPin,
    /// It has neither registered nor a disk.
    Unknown,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Router {
    pub alive: bool,
    pub registered: bool,
    /// A registration of an earlier life, whose disk is lost; nobody answers for it.
    pub orphan: bool,
    pub level: Level,
    /// What it has acknowledged, as Postgres has it.
    pub acked: u8,
    pub start: Start,
    /// The process that began `start` lives.
    pub mine: bool,
    pub spool: Spool,
    /// `start` is of a life whose disk nobody reads any more.
    pub stray: bool,
    /// It remembers that the account is marked.
    pub knows_mark: bool,
    /// A pin that it gave up waiting for and that may still commit.
    pub doubt: bool,
}

/// Whether callers still repeat the key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Key {
    Unused,
    /// First used before the window began.
    Old,
    /// First used since.
    New,
    Expired,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    pub account: Account,
    /// `accounts.unpinned_at`.
    pub marked: bool,
    pub pin: Option<Pin>,
    /// The epoch of the outbox row; 0: there is none.
    pub outbox: u8,
    pub outbox_cancel: bool,
    pub place: Place,
    pub hold: [Hold; 2],
    pub flow: [Workflow; 2],
    /// Deliveries under way, see `delivery`.
    pub net: u8,
    pub router: [Router; 2],
    /// The Temporal workers hold that unpinned copies of the account must ask.
    pub asks: bool,
    pub key: Key,
    /// The caller was told yes.
    pub accepted: bool,
    /// What callers, faults and operators may still do.
    pub requests: u8,
    pub faults: u8,
    pub operator: u8,
    /// Fences with an effect: a bit each.
    pub ran_postgres: u8,
    pub ran_temporal: u16,
    /// What went wrong on the way, see `properties`.
    pub wrong: u8,
}

impl State {
    pub fn start(account: Account, routers: usize) -> Self {
        let level = level(account);
        let router = Router {
            alive: true,
            registered: true,
            orphan: false,
            level,
            acked: level as u8,
            start: Start::None,
            mine: false,
            stray: false,
            knows_mark: false,
            spool: Spool::Empty,
            doubt: false,
        };
        let absent = Router { alive: false, registered: false, level: Level::Unknown, acked: 0, ..router };
        Self {
            account,
            marked: false,
            pin: None,
            outbox: 0,
            outbox_cancel: false,
            place: Place::Nowhere,
            hold: [Hold::Nothing; 2],
            flow: [Workflow::NONE; 2],
            net: 0,
            router: [router, if routers > 1 { router } else { absent }],
            asks: account >= Account::Closing,
            key: Key::Unused,
            accepted: false,
            requests: 2,
            faults: 0,
            operator: 0,
            ran_postgres: 0,
            ran_temporal: 0,
            wrong: 0,
        }
    }

    /// The pin if it has not ended and nothing holds it.
    pub fn open_pin(&self) -> Option<Pin> {
        self.pin.filter(|pin| pin.end == End::Open && !pin.held)
    }
}

/// What a router that reads this account's state may do.
pub fn level(account: Account) -> Level {
    match account {
        Account::Open => Level::Free,
        Account::Pinning | Account::Window => Level::Pins,
        _ => Level::MustPin,
    }
}
