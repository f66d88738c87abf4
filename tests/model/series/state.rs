//! What is known of a series, on both sides.

pub const MEMBERS: usize = 3;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Owner {
    Nobody,
    Temporal,
    Postgres,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    Nowhere,
    Ready,
    Running,
}

/// How far its effect is, judged by the attempt with the current fence.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Run {
    Not,
    Runs,
    Ran,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Member {
    /// Its place in the order in which callers got their answers; it was accepted.
    pub accepted: bool,
    /// Its number in the chain, from 1; 0 without a pin.
    pub no: u8,
    /// Its transaction has not committed; only where numbers are not taken under a lock.
    pub open: bool,
    pub owner: Owner,
    pub epoch: u8,
    pub ended: bool,
    pub outbox: bool,
    /// A delivery of this epoch is under way; bit 0 is epoch 1.
    pub net: u8,
    pub place: Place,
    /// The members that its envelope, by epoch, names as behind.
    pub behind: [u8; 2],
    pub run: Run,
}

/// A copy in the series' workflow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Copy {
    pub member: u8,
    pub epoch: u8,
    pub executes: bool,
}

/// What the workflow is at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Turn {
    Nobody,
    Waits(Copy),
    Runs(Copy),
    Settles(Copy),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct State {
    pub armed: bool,
    /// Nothing more starts unpinned: the barrier has passed.
    pub closing: bool,
    pub head: u8,
    pub last: u8,
    pub member: [Member; MEMBERS],
    /// A signal that the server has and the workflow has not handled.
    pub signal: Option<Copy>,
    pub queue: [Option<Copy>; MEMBERS + 2],
    pub turn: Turn,
    /// Copies that the workflow knows: a bit for each member and epoch.
    pub known: u8,
    pub operator: u8,
    pub wrong: u8,
}

impl State {
    pub fn start(armed: bool) -> Self {
        let member = Member {
            accepted: false,
            no: 0,
            open: false,
            owner: Owner::Nobody,
            epoch: 1,
            ended: false,
            outbox: false,
            net: 0,
            place: Place::Nowhere,
            behind: [0; 2],
            run: Run::Not,
        };
        Self {
            armed,
            closing: armed,
            head: 1,
            last: 0,
            member: [member; MEMBERS],
            signal: None,
            queue: [None; MEMBERS + 2],
            turn: Turn::Nobody,
            known: 0,
            operator: 0,
            wrong: 0,
        }
    }

    /// The next to be enqueued.
    pub fn next(&self) -> Option<usize> {
        self.member.iter().position(|m| !m.accepted)
    }

    /// Whether `i` is pinned, visible to others, and has not ended.
    pub fn unended(&self, i: usize) -> bool {
        let m = &self.member[i];
        m.no != 0 && !m.open && !m.ended
    }
}
