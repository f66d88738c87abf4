//! What has to change in the flags so that an account, or one kind of it, comes to stand in a stage. Pure.
//!
//! The flag of the stage and those below it are turned on, so that the way back is one step; those above it are turned
//! off. Only strategies that do nothing but list accounts are touched. The result is asked of the evaluator itself:
//! who was meant must stand where it was asked for, and nobody else anywhere else than before. What another strategy
//! or the kill switch holds is refused and named.
//!
//! The order of the changes matters where each is a call of its own: what is added comes first and from the bottom, what
//! is taken away follows from the top. So nothing ever stands above both its old and its new stage, and a crash
//! between two calls leaves something that the same command, repeated, finishes.

mod check;
mod entry;
mod kinds;
mod refusal;
mod text;

use std::fmt;

use serde_json::Value;

pub use self::check::Known;
pub use self::entry::{List, NewConstraint, NewStrategy};
pub use self::refusal::Refusal;

use self::entry::Entry;
use self::kinds::Kinds;
use super::constraint::matchable;
use super::document::{Document, Flag};
use crate::interaction::Stage;

/// Stands in a list of Unleash that would be empty otherwise, as in `flags/unleash-import.json`. No account.
pub const NOBODY: &str = "crossover:nobody";
/// Unleash takes so many names in a list, unless it is told otherwise.
const SERVERS_ROOM: usize = 250;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The account.
    pub account: String,
    /// One kind of it; absent for all.
    pub kind: Option<String>,
    /// Where it is to stand.
    pub stage: Stage,
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Some(kind) => write!(f, "kind {kind} of account {}", self.account),
            None => write!(f, "account {}", self.account),
        }
    }
}

/// One change of one flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A list of accounts in a strategy that is there.
    Names {
        /// The flag.
        flag: Flag,
        /// Its strategy, counted from 0.
        strategy: usize,
        /// The list in the strategy.
        list: List,
        /// What it holds.
        before: Vec<String>,
        /// What it is to hold.
        after: Vec<String>,
    },
    /// Another strategy.
    Add {
        /// The flag.
        flag: Flag,
        /// What is added.
        strategy: NewStrategy,
    },
    /// The flag itself is turned on.
    Enable {
        /// The flag.
        flag: Flag,
    },
}

impl Change {
    /// The flag that it changes.
    pub fn flag(&self) -> Flag {
        match self {
            Change::Names { flag, .. } | Change::Add { flag, .. } | Change::Enable { flag } => *flag,
        }
    }

    /// Whether both come to the same for the account, and for the flag as such.
    fn is_like(&self, other: &Change, account: &str) -> bool {
        let lists = |change: &Change| match change {
            Change::Names { after, .. } => Some(after.iter().any(|name| name == account)),
            Change::Add { .. } => Some(true),
            Change::Enable { .. } => None,
        };
        self.flag() == other.flag() && lists(self) == lists(other)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = self.flag().name();
        match self {
            Change::Names { strategy, before, after, .. } => {
                let (verb, names) = match before.len() < after.len() {
                    true => ("add", after.iter().filter(|name| !before.contains(name)).collect::<Vec<_>>()),
                    false => ("remove", before.iter().filter(|name| !after.contains(name)).collect()),
                };
                let (names, preposition) = (
                    names.into_iter().cloned().collect::<Vec<_>>().join(", "),
                    if verb == "add" { "to" } else { "from" },
                );
                write!(
                    f,
                    "{flag}: {verb} {names} {preposition} strategy {} ({} accounts then)",
                    strategy + 1,
                    after.len()
                )
            }
            Change::Add { strategy, .. } => {
                let terms = strategy
                    .constraints
                    .iter()
                    .map(|c| format!("{} {} {}", c.context_name, c.operator, c.values.join(", ")));
                write!(f, "{flag}: add a strategy, {}", terms.collect::<Vec<_>>().join(" and "))
            }
            Change::Enable { .. } => write!(f, "{flag}: enable it"),
        }
    }
}

/// What a command would do to the flags.
#[derive(Debug)]
pub struct Plan {
    /// The changes, in the order in which they are safe one by one. Empty: everything is as it should be.
    pub changes: Vec<Change>,
    /// Where what was asked about stands now.
    pub from: Stage,
    /// Every kind that is meant, and where it stands now; an empty one is every kind without a name of its own.
    pub kinds: Vec<(String, Stage)>,
    /// The flags as they would be.
    pub after: Document,
}

impl Document {
    /// What has to change so that `wish` comes true, and the document that results. `known` are the accounts and kinds
    /// that are known to exist; those that the document names are looked at too.
    pub fn plan(&self, wish: &Wish, known: &Known) -> Result<Plan, Refusal> {
        self.planned(wish, known, Features::of(self))
    }

    /// The same for flags that live in Unleash: lists are bounded there, and none is left empty.
    pub fn plan_on_server(&self, wish: &Wish, known: &Known) -> Result<Plan, Refusal> {
        self.planned(wish, known, Features { room: SERVERS_ROOM, server: true, ..Features::of(self) })
    }

    fn planned(&self, wish: &Wish, known: &Known, features: Features) -> Result<Plan, Refusal> {
        let changes = features.changes(self, wish)?;
        let text = text::apply(self.text(), &changes);
        let after = Document::parse(&text).map_err(Refusal::Broken)?;
        check::check(self, &after, wish, known, &features)?;
        let (from, kinds) = check::stands(self, &after, wish, known);
        Ok(Plan { changes, from, kinds, after })
    }
}

impl Plan {
    /// Whether `now`, planned later for the same wish, is the same step: from the same stages, and no flag has another
    /// change in it for the account. In which strategy the account is listed may be another.
    pub fn covers(&self, now: &Plan, account: &str) -> bool {
        let known = |change: &Change| self.changes.iter().any(|one| one.is_like(change, account));
        self.from == now.from && self.apart().eq(now.apart()) && now.changes.iter().all(known)
    }

    /// The kinds of the account that don't stand where it stands.
    pub fn apart(&self) -> impl Iterator<Item = &(String, Stage)> {
        self.kinds.iter().filter(|(_, stage)| *stage != self.from)
    }
}

/// The flags' strategies as values.
struct Features {
    root: Value,
    /// So many names go into a list.
    room: usize,
    server: bool,
}

impl Features {
    fn of(document: &Document) -> Self {
        // A document that was parsed is JSON; no flags is what the check then complains about.
        Self { root: serde_json::from_str(document.text()).unwrap_or(Value::Null), room: usize::MAX, server: false }
    }

    fn feature(&self, flag: Flag) -> &Value {
        let features = self.root["features"].as_array().map_or(&[][..], Vec::as_slice);
        features.iter().find(|feature| feature["name"] == flag.name()).unwrap_or(&Value::Null)
    }

    fn enabled(&self, flag: Flag) -> bool {
        self.feature(flag)["enabled"].as_bool().unwrap_or(false)
    }

    fn strategies(&self, flag: Flag) -> &[Value] {
        self.feature(flag)["strategies"].as_array().map_or(&[], Vec::as_slice)
    }

    /// The strategies that list accounts, with their numbers.
    fn entries(&self, flag: Flag) -> Vec<(usize, Entry)> {
        let read = |(n, strategy)| entry::read(strategy).map(|entry| (n, entry));
        self.strategies(flag).iter().enumerate().filter_map(read).collect()
    }

    /// Every change, the safe order included.
    fn changes(&self, document: &Document, wish: &Wish) -> Result<Vec<Change>, Refusal> {
        for name in [Some(&wish.account), wish.kind.as_ref()].into_iter().flatten() {
            matchable(name).map_err(|why| Refusal::Name { name: name.clone(), why })?;
        }
        let mut changes = Vec::new();
        let flags = [(Flag::Shadow, Stage::Shadow), (Flag::Live, Stage::Live), (Flag::Complete, Stage::Complete)];
        for (flag, _) in flags.into_iter().filter(|(_, stage)| *stage <= wish.stage) {
            match self.is_on(document, flag, wish) {
                true => changes.extend(self.listed_once(flag, &wish.account)),
                false => changes.extend(self.turn_on(flag, wish)?),
            }
        }
        for (flag, _) in flags.into_iter().rev().filter(|(_, stage)| *stage > wish.stage) {
            changes.extend(self.turn_off(flag, wish));
        }
        if self.server {
            for change in &mut changes {
                if let Change::Names { after, .. } = change
                    && after.is_empty()
                {
                    after.push(NOBODY.to_owned());
                }
            }
        }
        Ok(changes)
    }

    /// Whether the flag is on for all that is meant, by whichever strategy.
    fn is_on(&self, document: &Document, flag: Flag, wish: &Wish) -> bool {
        check::kinds_meant(document, wish, &Known::default())
            .iter()
            .all(|kind| document.is_on(flag, &wish.account, kind))
    }

    fn turn_on(&self, flag: Flag, wish: &Wish) -> Result<Vec<Change>, Refusal> {
        let entries = self.entries(flag);
        let enabled = self.enabled(flag);
        if !enabled {
            let own =
                |entry: &Entry| entry.accounts.iter().all(|account| *account == wish.account || account == NOBODY);
            if entries.len() < self.strategies(flag).len() || !entries.iter().all(|(_, entry)| own(entry)) {
                return Err(Refusal::Disabled { flag });
            }
        }
        // What a disabled flag lists has not been on.
        let now = if enabled { kinds_of(&entries, &wish.account) } else { Kinds::none() };
        let mut changes = self.rewrite(flag, &entries, &wish.account, &now.with(&Kinds::of(wish.kind.as_deref())));
        if !enabled {
            changes.push(Change::Enable { flag });
        }
        Ok(changes)
    }

    fn turn_off(&self, flag: Flag, wish: &Wish) -> Vec<Change> {
        let entries = self.entries(flag);
        let now = kinds_of(&entries, &wish.account);
        let then = now.without(&Kinds::of(wish.kind.as_deref()));
        if now == then && !then.is_none() { Vec::new() } else { self.rewrite(flag, &entries, &wish.account, &then) }
    }

    /// Takes the account out of a server's strategies that say what another before them says of it: whoever adds one there
    /// can't know that somebody else does so at the same moment.
    fn listed_once(&self, flag: Flag, account: &str) -> Vec<Change> {
        let entries = self.entries(flag);
        let listing: Vec<_> = entries.iter().filter(|(_, entry)| self.server && entry.lists(account)).collect();
        let again = |at: usize| listing[..at].iter().any(|(_, before)| before.kinds == listing[at].1.kinds);
        let twice = (0..listing.len()).filter(|at| again(*at)).map(|at| listing[at]);
        twice.map(|(n, entry)| names(flag, *n, entry, entry.without(account))).collect()
    }

    /// Has the account listed once, for exactly these kinds.
    fn rewrite(&self, flag: Flag, entries: &[(usize, Entry)], account: &str, kinds: &Kinds) -> Vec<Change> {
        let fits = |(_, entry): &&(usize, Entry)| !kinds.is_none() && entry.kinds == *kinds;
        let there = entries.iter().filter(fits).find(|(_, entry)| entry.lists(account));
        let home = there.or_else(|| entries.iter().filter(fits).find(|(_, entry)| entry.can_take(account, self.room)));
        let added = match home {
            _ if kinds.is_none() || there.is_some() => None,
            Some((n, entry)) => Some(names(flag, *n, entry, entry.with(account))),
            None => Some(Change::Add { flag, strategy: entry::write(account, kinds) }),
        };
        let stays = home.map(|(n, _)| *n);
        let elsewhere = entries.iter().filter(|(n, entry)| Some(*n) != stays && entry.lists(account));
        added.into_iter().chain(elsewhere.map(|(n, entry)| names(flag, *n, entry, entry.without(account)))).collect()
    }
}

fn names(flag: Flag, strategy: usize, entry: &Entry, after: Vec<String>) -> Change {
    Change::Names { flag, strategy, list: entry.list, before: entry.accounts.clone(), after }
}

/// For which kinds the lists have the account.
fn kinds_of(entries: &[(usize, Entry)], account: &str) -> Kinds {
    let listing = entries.iter().filter(|(_, entry)| entry.lists(account));
    listing.fold(Kinds::none(), |all, (_, entry)| all.with(&entry.kinds))
}
